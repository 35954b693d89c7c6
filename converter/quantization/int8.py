"""int8 of a network, and the steps of it that stay in floating point where a budget needs that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converter.errors import ConverterError
from converter.evaluation.loss import LossEstimator
from converter.graph.network import LARGEST_FILE, inputs, size
from converter.graph.survey import QUANTIZED_LAYERS
from converter.models.source import Source
from converter.options import Options
from converter.quantization.channel_equalization import equalize
from converter.quantization.quantize import linear_steps, observed_ranges, quantized
from converter.search.find_plan import Found

EXAMPLES, BATCH, RANKED = 256, 16, 32


def as_int8(
    network: ir.Model,
    source: Source,
    options: Options,
    lost: Callable[[ir.Model], float] | None = None,
) -> ir.Model:
    """Quantize a version of a network for the sample inputs.

    Args:
        network: Left as it is.
        source: The original, with sample inputs.
        options: Options.
        lost: Says what a network loses, as a share of what it may lose. Where int8 loses too much
            and ``network`` does not, those steps stay in floating point that err most alone, as
            few (1, 2, 4, ...) as keep the limit.

    Raises:
        ConverterError: When onnxruntime cannot quantize the network.
    """
    inputs_seen = source.calib or source.train
    assert inputs_seen is not None
    insisted = inputs(network)[0].shape[0]
    data = inputs_seen.sample(EXAMPLES, options.resources.seed).repeated_to(insisted or 1)
    batch = insisted or min(BATCH, data.count)
    data = data.take(np.arange(data.count - data.count % batch))  # whole batches
    network, ranges = equalize(network, observed_ranges(network, data, batch))
    whole = quantized(network, ranges)
    if lost is None or lost(whole) <= 1 or lost(network) > 1:
        return whole
    few = min(max(RANKED, insisted or 1), data.count)
    judge = LossEstimator.of(network, data.take(np.arange(few)), 1)
    steps = linear_steps(network)

    def error(step: str) -> float:
        alone = quantized(network, ranges, [other for other in steps if other != step])
        return judge.loss(alone).output_error

    worst = sorted(steps, key=error, reverse=True)
    for count in (2**n for n in range(len(steps).bit_length())):
        spared = quantized(network, ranges, worst[:count])
        if lost(spared) <= 1:
            return spared
    return whole


def check_int8(source: Source) -> None:
    """Refuse at once what cannot be quantized.

    Raises:
        ConverterError: When there are no sample inputs, or the network is not of float32 or too
            large.
    """
    if source.calib is None:
        raise ConverterError("--int8 needs sample inputs; give --calib.")
    if any(n.op_type in ("DequantizeLinear", *QUANTIZED_LAYERS) for n in source.network.graph):
        raise ConverterError("The network is quantized already; leave out --int8.")
    weights = source.network.graph.initializers.values()
    if any(
        value.dtype == ir.DataType.FLOAT16 for value in (*weights, *source.network.graph.inputs)
    ):
        raise ConverterError("A float16 network cannot be quantized; give it in float32.")
    if size(source.network) >= LARGEST_FILE:
        raise ConverterError("A network of 2 GB or more cannot be quantized; leave out --int8.")


def quantize_if_requested(
    network: ir.Model, source: Source, found: Found, options: Options
) -> tuple[ir.Model | None, str | None]:
    """Quantize a network if that was asked for.

    Returns:
        It, or None; and the sentence that says why the budget is missed, or None.

    Raises:
        ConverterError: When onnxruntime cannot quantize the network.
    """
    if not options.search.int8:
        return None, found.problem
    int8 = as_int8(network, source, options, found.lost)
    if found.lost is None:
        return int8, found.problem
    times = found.lost(int8)
    return int8, f"The int8 network loses {times:.2f} times what it may." if times > 1 else None
