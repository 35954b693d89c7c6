"""Cross-layer equalization for int8 (Nagel et al., arXiv 1906.04721, section 4.1).

Between two linear steps of a chain the scale of each channel is free: the weights of the first step
can be multiplied by it if the weights of the second are divided by it. In int8 a tensor has one
scale, so all its channels are brought to the same range. The paper does so through ReLU; here
nothing stands between the steps.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.graph.fold import along_axis, along_outputs, by_group
from converter.graph.network import constant, in_onnx_domain
from converter.graph.nodes import CONVOLUTIONS, LINEAR
from converter.quantization.quantize import Ranges

MAX_SCALE = 1e3  # largest factor of a channel


def equalize(network: ir.Model, ranges: Ranges) -> tuple[ir.Model, Ranges]:
    """Bring the channels between two linear steps to the same range; outputs stay as they are.

    Returns:
        A copy, and the ranges of its tensors.
    """
    copy, equalized = network.clone(), dict(ranges)
    for node in list(copy.graph):
        following = _next_linear(node)
        if following is None:
            continue
        name = str(node.outputs[0].name)
        first, second = (constant(n.inputs[1]) for n in (node, following))
        if first is None or second is None or name not in ranges:
            continue
        low, high = ranges[name]
        largest = np.maximum(-low, high)
        if not largest.max() > 0:
            continue
        scale = largest.max() / np.maximum(largest, largest.max() / MAX_SCALE)
        factors = along_outputs(node, scale, first)
        if factors is None:
            continue
        equalized[name] = low * scale, high * scale
        _set_weight(node.inputs[1], first * factors)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _set_weight(node.inputs[2], np.asarray(constant(node.inputs[2])) * scale)
        _set_weight(following.inputs[1], second / _along_inputs(following, scale, second))
    return copy, equalized


def _next_linear(node: ir.Node) -> ir.Node | None:
    """Return the linear step that alone uses the output of a linear step, or None."""
    output = node.outputs[0]
    uses = list(output.uses())
    if not _is_linear(node) or len(uses) != 1 or output.is_graph_output():
        return None
    following, position = uses[0]
    if position != 0 or not _is_linear(following):
        return None
    # In other pairs, the outputs of the first are not along the axis that the second sums over.
    pair = {"Conv" if n.op_type == "ConvTranspose" else n.op_type for n in (node, following)}
    return following if pair in ({"Conv"}, {"Gemm"}, {"Gemm", "MatMul"}) else None


def _is_linear(node: ir.Node) -> bool:
    """Whether a node is a linear step whose weights no other node uses."""
    if not in_onnx_domain(node) or node.op_type not in LINEAR:
        return False
    unscaled = all(
        attribute.value == 1.0
        for name, attribute in node.attributes.items()
        if name in ("alpha", "beta")
    )
    weights = [value for value in node.inputs[1:] if value is not None]
    if not unscaled or not all(v.is_initializer() and len(v.uses()) == 1 for v in weights):
        return False
    weight = constant(node.inputs[1])
    matrix = weight is not None and weight.ndim == 2
    return node.op_type in CONVOLUTIONS or (matrix and not node.attributes.get_int("transA", False))


def _along_inputs(node: ir.Node, scale: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Shape a scale per input so that it multiplies the stored weight, which may have groups."""
    if node.op_type == "Conv":  # (O, I / groups, *k)
        return by_group(scale, weight)
    transposed = node.op_type != "ConvTranspose" and node.attributes.get_int("transB", False)
    return along_axis(scale, 1 if transposed else 0, weight.ndim)


def _set_weight(value: ir.Value | None, array: np.ndarray) -> None:
    """Replace the array of an initializer; its type stays."""
    assert value is not None and value.const_value is not None
    dtype = value.const_value.dtype.numpy()
    value.const_value = ir.tensor(array.astype(dtype), name=value.name)
