"""Quantization within the budget: some layers may stay in floating point."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from converter.evaluation.loss import LossEstimator
from converter.evaluation.tasks.task import Task
from converter.models.source import Source
from converter.options import Options
from converter.quantization.int8 import Int8, calibration_data, quantize_within

RANKING_EXAMPLES = 32  # on which layers are ranked by their error


def quantize(
    network: ir.Model,
    source: Source,
    options: Options,
    tasks: Sequence[Task] = (),
    usage: Callable[[ir.Model], float] | None = None,
) -> Int8:
    """Quantize a network, calibrated on the sample inputs.

    Args:
        network: The original or a converted network; it is not changed.
        source: The original, with sample inputs.
        options: Options of the conversion.
        tasks: What the outputs mean.
        usage: Network -> share of the allowed loss that it uses; None without a limit.

    Raises:
        ConverterError: When the runtime cannot quantize the network.
    """
    examples = source.calib or source.train
    assert examples is not None
    data = calibration_data(network, examples, options.resources.seed)
    if usage is None:
        return quantize_within(network, data)
    batch = source.inputs[0].shape[0] or 1
    ranking_data = data.take(np.arange(min(max(RANKING_EXAMPLES, batch), data.count)))

    @functools.cache
    def estimator() -> LossEstimator:  # only made if layers must be ranked
        return LossEstimator.of(network, ranking_data, 1, tasks)

    def output_error(quantized: ir.Model) -> float:
        return estimator().loss(quantized).output_error

    return quantize_within(network, data, usage=usage, output_error=output_error)
