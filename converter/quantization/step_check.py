"""Hold each quantized step of an int8 network against its value in floating point.

onnxruntime has computed quantized convolutions wrongly on some processors. Rounding explains an
error of about one quantization step and no more, so such faults show on a few examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays
from converter.graph.fold import along_axis
from converter.graph.network import (
    compute_values,
    constant,
    open_session,
    values_by_name,
    weight_value,
)
from converter.graph.outputs import output_names, with_outputs
from converter.runtime.ort import OnnxRuntime, run
from converter.runtime.runtime import Runtime

MAX_ERROR = 2.0  # quantization steps; rounding explains one
FLOAT_ERROR = 1e-6  # relative; steps of a bias can be smaller
# What onnxruntime's quantizer adds to the names of constants and of the network's outputs.
CONSTANT_SUFFIX, OUTPUT_SUFFIX = "_quantized", "_QuantizeLinear_Input"


@dataclass(frozen=True)
class WrongStep:
    """A quantized step that does not compute what it should.

    Attributes:
        outputs: Outputs of its nodes in the network in floating point, the last one first.
        error: Its error in quantization steps: root mean square for its output, and the largest one
            for its weights and bias.
    """

    outputs: tuple[str, ...]
    error: float


def wrong_steps(
    network: ir.Model, int8: ir.Model, feeds: Arrays, runtime: Runtime = OnnxRuntime()
) -> tuple[WrongStep, ...]:
    """Find the steps of an int8 network whose error is more than their quantization explains.

    The int8 network runs once with its quantized tensors as outputs. Then each step is computed in
    floating point from the quantized inputs that it had in this run, so that errors do not add up.
    Its weights and bias are held against those in floating point.

    Args:
        network: The network in floating point.
        int8: The same network from ``quantize.quantized``.
        feeds: Sample inputs, one batch.
        runtime: The runtime that runs the int8 network.

    Raises:
        ConverterError: When the runtime cannot run the network.
    """
    quantizers = {str(n.outputs[0].name): n for n in int8.graph if n.op_type == "QuantizeLinear"}
    if not quantizers:
        return ()
    tensors = run(open_session(with_outputs(int8, list(quantizers)), runtime=runtime), feeds)
    in_float, restored = _without_quantization(int8)
    inputs = {
        name: _dequantized(node, tensors[str(node.inputs[0].name)])
        for name, node in restored.items()
        if node.inputs[0] is not None
    }
    (expected,) = compute_values(in_float, output_names(in_float), [feeds | inputs])
    parameters, values = _parameter_errors(network, int8), values_by_name(in_float)
    wrong = {}
    for name, node in quantizers.items():
        source = str(node.inputs[0].name) if node.inputs[0] is not None else ""
        nodes = _nodes_before(values[source]) if source in expected else []
        errors = [
            parameters.get(str(v.name), 0.0) for n in nodes for v in n.inputs if v is not None
        ]
        if nodes:
            errors.append(_error(node, tensors[name], expected[source]))
        if not max(errors, default=0.0) <= MAX_ERROR:  # NaN is wrong, too
            outputs = [str(n.outputs[0].name).removesuffix(OUTPUT_SUFFIX) for n in nodes]
            wrong[source] = WrongStep(tuple(outputs), max(errors))
    return tuple(wrong.values())


def _without_quantization(int8: ir.Model) -> tuple[ir.Model, dict[str, ir.Node]]:
    """Return a network of the steps, each of which begins at inputs and ends at outputs.

    Returns:
        The network, and the nodes (DequantizeLinear) in whose place it has inputs, by name of their
        outputs. Constants are dequantized.
    """
    copy, restored = int8.clone(), {}
    for node in list(copy.graph):
        if node.op_type != "DequantizeLinear":
            continue
        output, array = node.outputs[0], constant(node.inputs[0])
        name = str(output.name)
        output.name = f"{name}.removed"
        if array is None:
            restored[name] = next(n for n in int8.graph if n.outputs[0].name == name)
            value = ir.val(name, dtype=ir.DataType.FLOAT)
            copy.graph.inputs.append(value)
        else:
            value = weight_value(name, _dequantized(node, array))
            copy.graph.register_initializer(value)
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        copy.graph.remove(node, safe=True)
    copy.graph.outputs.clear()
    computed = {}
    for node in list(copy.graph):
        source = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if source is not None:
            if source.producer() is not None:
                computed[source.name] = source
            copy.graph.remove(node, safe=True)
    copy.graph.outputs.extend(computed.values())
    return copy, restored


def _dequantized(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """Compute a DequantizeLinear in float32."""
    scale, zero = _scale(node, array.ndim)
    return np.asarray((array.astype(np.float32) - zero) * scale, np.float32)


def _scale(node: ir.Node, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Read scale and zero point of a node that quantizes or dequantizes, shaped for its tensor."""
    scale = np.asarray(constant(node.inputs[1]), np.float32)
    point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = np.zeros_like(scale) if point is None else point.astype(np.float32)
    if scale.ndim == 0 or scale.size == 1:
        return scale.reshape(()), zero.reshape(())
    axis = min(node.attributes.get_int("axis", 1), ndim - 1)  # a bias has one axis
    return along_axis(scale, axis, ndim), along_axis(zero, axis, ndim)


def _error(node: ir.Node, computed: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square of the error of a quantized tensor, in quantization steps."""
    scale, zero = _scale(node, computed.ndim)
    limits = np.iinfo(computed.dtype)
    steps = np.clip(expected / scale + zero, limits.min, limits.max)
    return float(np.sqrt(np.mean((steps - computed) ** 2)))


def _parameter_errors(network: ir.Model, int8: ir.Model) -> dict[str, float]:
    """Return the largest errors of weights and biases in steps, by output of their node."""
    originals, errors = values_by_name(network), {}
    for node in int8.graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        array = constant(value)
        if value is None or array is None:
            continue
        original = constant(originals.get(str(value.name).removesuffix(CONSTANT_SUFFIX)))
        if original is None:
            continue
        scale, _ = _scale(node, array.ndim)
        if original.shape != array.shape:
            errors[str(node.outputs[0].name)] = np.inf
            continue
        difference = np.abs(_dequantized(node, array) - original)
        difference -= FLOAT_ERROR * np.abs(original)
        errors[str(node.outputs[0].name)] = float(np.max(difference / scale, initial=0.0))
    return errors


def _nodes_before(value: ir.Value) -> list[ir.Node]:
    """List the nodes that compute a value from the inputs of the network, the last one first."""
    nodes: dict[ir.Node, None] = {}
    todo = [value]
    while todo:
        producer = todo.pop().producer()
        if producer is not None and producer not in nodes:
            nodes[producer] = None
            todo += [source for source in producer.inputs if source is not None]
    return list(nodes)
