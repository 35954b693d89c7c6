"""int8 within what may be lost: layers stay in floating point where that needs it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converter.evaluation.loss import LossEstimator
from converter.models.source import Source
from converter.options import Options
from converter.quantization.int8 import calibration_data, quantize_within

RANKING_EXAMPLES = 32  # by which layers are ranked


def quantize(
    network: ir.Model,
    source: Source,
    options: Options,
    usage: Callable[[ir.Model], float] | None = None,
) -> ir.Model:
    """Quantize a version of a network, calibrated on its sample inputs.

    Args:
        network: Left as it is.
        source: The original, with sample inputs.
        options: Of the conversion.
        usage: A network -> the share that it uses of what may be lost; None without a limit.

    Raises:
        ConverterError: When the runtime cannot quantize the network.
    """
    examples = source.calib or source.train
    assert examples is not None
    data = calibration_data(network, examples, options.resources.seed)
    if usage is None:
        return quantize_within(network, data)
    batch = source.inputs[0].shape[0] or 1
    few = data.take(np.arange(min(max(RANKING_EXAMPLES, batch), data.count)))
    estimators: list[LossEstimator] = []  # made where layers have to be ranked at all

    def output_error(quantized: ir.Model) -> float:
        if not estimators:
            estimators.append(LossEstimator.of(network, few, 1))
        return estimators[0].loss(quantized).output_error

    return quantize_within(network, data, usage=usage, output_error=output_error)
