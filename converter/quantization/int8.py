"""int8 that is computed rightly and within a budget; some layers may stay in floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from converter.data.data import Data
from converter.errors import ConverterError
from converter.graph.network import inputs
from converter.graph.nodes import LINEAR
from converter.graph.other_layers import QUANTIZED_LAYERS
from converter.quantization.channel_equalization import equalize
from converter.quantization.quantize import (
    Ranges,
    check_size,
    linear_steps,
    observed_ranges,
    quantized,
)
from converter.quantization.step_check import WrongStep, wrong_steps
from converter.runtime.ort import OnnxRuntime
from converter.runtime.runtime import Runtime

CALIBRATION_EXAMPLES, BATCH = 256, 16
CHECKED_EXAMPLES, MAX_CHECKS = 2, 3


@dataclass(frozen=True)
class Int8:
    """An int8 network.

    Attributes:
        network: The network.
        notes: Sentences on what stays in floating point because it is computed wrongly in int8.
    """

    network: ir.Model
    notes: tuple[str, ...] = ()


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
    runtime: Runtime = OnnxRuntime(),
) -> Int8:
    """Quantize a network to int8, within a budget if possible.

    Steps that the runtime computes wrongly in int8 stay in floating point. If int8 exceeds the
    budget and ``network`` does not, further layers do: those that cause the largest error when they
    alone are quantized, as few (1, 2, 4, ...) as keep the budget.

    Args:
        network: Left as it is.
        data: Sample inputs, from ``calibration_data``.
        usage: Returns the share of its budget that a network uses, at most 1 if it is within the
            budget; None without a budget.
        output_error: Returns the error of a network's outputs relative to ``network``; layers are
            ranked by it. Needed with ``usage``.
        runtime: The runtime that runs the int8 network.

    Returns:
        The int8 network; quantized as a whole if no choice of layers keeps the budget.

    Raises:
        ConverterError: When onnxruntime cannot quantize the network.
    """
    batch = _batch_size(network, data)
    ranges = observed_ranges(network, data, batch)
    equalized, ranges = equalize(network, ranges)
    checked = data.take(np.arange(inputs(network)[0].shape[0] or min(CHECKED_EXAMPLES, data.count)))
    full, wrong = _without_wrong_steps(equalized, ranges, checked, runtime)
    notes = tuple(_note(equalized, step) for step in wrong)
    quantized_but = partial(_quantized_but, equalized, ranges, wrong)
    if usage is None or output_error is None or usage(full) <= 1 or usage(equalized) > 1:
        return Int8(full, notes)
    steps = linear_steps(equalized)
    errors = {
        step: output_error(quantized_but([other for other in steps if other != step]))
        for step in steps
    }
    worst = sorted(steps, key=lambda step: errors[step], reverse=True)
    for count in (2**n for n in range(len(steps).bit_length())):
        partly = quantized_but(worst[:count])
        if usage(partly) <= 1:
            return Int8(partly, notes)
    return Int8(full, notes)


def _without_wrong_steps(
    network: ir.Model, ranges: Ranges, data: Data, runtime: Runtime
) -> tuple[ir.Model, tuple[WrongStep, ...]]:
    """Quantize a network, but for the steps that the runtime then computes wrongly."""
    wrong: tuple[WrongStep, ...] = ()
    feeds = data.read(np.arange(data.count))
    for _ in range(MAX_CHECKS):
        int8 = _quantized_but(network, ranges, wrong)
        wrong_now = wrong_steps(network, int8, feeds, runtime)
        if not wrong_now:
            return int8, wrong
        wrong += wrong_now
    return _quantized_but(network, ranges, wrong), wrong


def _quantized_but(
    network: ir.Model, ranges: Ranges, wrong: Sequence[WrongStep], in_float: Sequence[str] = ()
) -> ir.Model:
    return quantized(network, ranges, [*in_float, *(name for s in wrong for name in s.outputs)])


def _note(network: ir.Model, step: WrongStep) -> str:
    """Say that a step stays in floating point; a layer is named by its weight."""
    weights = [
        str(node.inputs[1].name).removesuffix(".weight")
        for node in network.graph
        if node.op_type in LINEAR and node.outputs[0].name in step.outputs and node.inputs[1]
    ]
    name = f"Layer {weights[0]}" if weights else f"The step {step.outputs[0]}"
    return (
        f"{name} stays in floating point: in int8, its outputs are {step.error:.0f} quantization "
        "steps off on this machine."
    )


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
