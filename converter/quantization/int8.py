"""int8 within a budget: if needed, some layers stay in floating point."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converter.data.data import Data
from converter.errors import ConverterError
from converter.graph.network import inputs
from converter.graph.survey import QUANTIZED_LAYERS
from converter.quantization.channel_equalization import equalize
from converter.quantization.quantize import check_size, linear_steps, observed_ranges, quantized

CALIBRATION_EXAMPLES, BATCH = 256, 16


def calibration_data(network: ir.Model, data: Data, seed: int) -> Data:
    """Choose up to ``CALIBRATION_EXAMPLES`` sample inputs for int8, in whole batches."""
    data = data.sample(CALIBRATION_EXAMPLES, seed)
    data = data.repeated_to(inputs(network)[0].shape[0] or 1)
    return data.take(np.arange(data.count - data.count % _batch_size(network, data)))


def quantize_within(
    network: ir.Model,
    data: Data,
    *,
    usage: Callable[[ir.Model], float] | None = None,
    output_error: Callable[[ir.Model], float] | None = None,
) -> ir.Model:
    """Quantize a network to int8, within a budget if possible.

    If int8 exceeds the budget and ``network`` does not, some layers stay in floating point: those
    that cause the largest error when they alone are quantized, as few (1, 2, 4, ...) as keep the
    budget.

    Args:
        network: Left as it is.
        data: Sample inputs, from ``calibration_data``.
        usage: Returns the share of its budget that a network uses, at most 1 if it is within the
            budget; None without a budget.
        output_error: Returns the error of a network's outputs relative to ``network``; layers are
            ranked by it. Needed with ``usage``.

    Returns:
        The int8 network; quantized as a whole if no choice of layers keeps the budget.

    Raises:
        ConverterError: When onnxruntime cannot quantize the network.
    """
    ranges = observed_ranges(network, data, _batch_size(network, data))
    equalized, ranges = equalize(network, ranges)
    full = quantized(equalized, ranges)
    if usage is None or output_error is None or usage(full) <= 1 or usage(equalized) > 1:
        return full
    steps = linear_steps(equalized)
    errors = {}
    for step in steps:
        alone = quantized(equalized, ranges, [other for other in steps if other != step])
        errors[step] = output_error(alone)
    worst = sorted(steps, key=lambda step: errors[step], reverse=True)
    for count in (2**n for n in range(len(steps).bit_length())):
        partial = quantized(equalized, ranges, worst[:count])
        if usage(partial) <= 1:
            return partial
    return full


def _batch_size(network: ir.Model, data: Data) -> int:
    return inputs(network)[0].shape[0] or min(BATCH, data.count)


def check_int8(network: ir.Model, has_samples: bool) -> None:
    """Refuse a network that cannot be quantized, before any work is done.

    Args:
        network: The network.
        has_samples: Whether there are sample inputs.

    Raises:
        ConverterError: When there are no sample inputs, or the network is not in float32 or too
            large.
    """
    if not has_samples:
        raise ConverterError("--int8 needs sample inputs; give --calib.")
    if any(n.op_type in ("DequantizeLinear", *QUANTIZED_LAYERS) for n in network.graph):
        raise ConverterError("The network is quantized already; leave out --int8.")
    values = (*network.graph.initializers.values(), *network.graph.inputs)
    types = [value.dtype for value in values]
    for node in network.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            types.append(node.attributes["value"].as_tensor().dtype)
    if ir.DataType.FLOAT16 in types:
        raise ConverterError("A float16 network cannot be quantized; give it in float32.")
    check_size(network)
