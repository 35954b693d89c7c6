"""Components between linear steps brought to the same range, for int8.

Between two linear steps of a chain the scale of each component is free: what one step gives more
of the next takes less of. A tensor has one scale in int8, so that all its components are brought to
the same range (as Nagel et al., arXiv 1906.04721, section 4.1, do through ReLU).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.graph.network import constant, standard
from converter.quantization.quantize import LINEAR, Ranges

LARGEST_SCALE = 1e3  # by which a component may become larger


def equalize(network: ir.Model, ranges: Ranges) -> tuple[ir.Model, Ranges]:
    """Bring the components between two linear steps to the same range; outputs stay as they are.

    Returns:
        A copy, and what values its tensors take.
    """
    copy, seen = network.clone(), dict(ranges)
    for node in list(copy.graph):
        follower = _follower(node)
        if follower is None:
            continue
        name = str(node.outputs[0].name)
        first, second = (constant(n.inputs[1]) for n in (node, follower))
        if first is None or second is None or name not in seen:
            continue
        low, high = seen[name]
        largest = np.maximum(-low, high)
        if not largest.max() > 0:
            continue
        scale = largest.max() / np.maximum(largest, largest.max() / LARGEST_SCALE)
        laid = _given(node, scale, first)
        if laid is None:
            continue
        seen[name] = low * scale, high * scale
        _set(node.inputs[1], first * laid)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _set(node.inputs[2], np.asarray(constant(node.inputs[2])) * scale)
        _set(follower.inputs[1], second / _taken(follower, scale, second))
    return copy, seen


def _follower(node: ir.Node) -> ir.Node | None:
    """Find the linear step that alone takes what a linear step gives; both own their weights."""
    output = node.outputs[0]
    uses = list(output.uses())
    if not _linear(node) or len(uses) != 1 or output.is_graph_output():
        return None
    follower, position = uses[0]
    if position != 0 or not _linear(follower):
        return None
    # Between other pairs the components lie along one axis and are summed along another.
    pair = {"Conv" if n.op_type == "ConvTranspose" else n.op_type for n in (node, follower)}
    return follower if pair in ({"Conv"}, {"Gemm"}, {"Gemm", "MatMul"}) else None


def _linear(node: ir.Node) -> bool:
    """Tell whether a node is a linear step whose weights are its own."""
    if not standard(node) or node.op_type not in LINEAR:
        return False
    usual = all(
        attribute.value == 1.0
        for name, attribute in node.attributes.items()
        if name in ("alpha", "beta")
    )
    own = [value for value in node.inputs[1:] if value is not None]
    if not usual or not all(v.is_initializer() and len(v.uses()) == 1 for v in own):
        return False
    weight = constant(node.inputs[1])
    flat = weight is not None and weight.ndim == 2 and not node.attributes.get_int("transA", False)
    return node.op_type in ("Conv", "ConvTranspose") or flat


def _given(node: ir.Node, scale: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Lay the scales of a step's outputs along its weights; None where there are not as many."""
    if node.op_type == "ConvTranspose":  # (I, O / groups, ...)
        groups = node.attributes.get_int("group", 1)
        if len(scale) != groups * weight.shape[1]:
            return None
        each = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return each.reshape(*each.shape, *(1,) * (weight.ndim - 2))
    axis = 0 if node.op_type == "Conv" or node.attributes.get_int("transB", False) else 1
    return _along(scale, axis, weight.ndim) if len(scale) == weight.shape[axis] else None


def _along(scale: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Lay a vector along an axis."""
    return scale.reshape([-1 if n == axis else 1 for n in range(ndim)])


def _taken(node: ir.Node, scale: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Lay the scales of a step's inputs along its weights, which may have groups."""
    if node.op_type == "ConvTranspose":
        return _along(scale, 0, weight.ndim)
    if node.op_type != "Conv":
        transposed = node.attributes.get_int("transB", False)
        return _along(scale, 1 if transposed else 0, weight.ndim)
    groups = node.attributes.get_int("group", 1)
    each = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return each.reshape(*each.shape, *(1,) * (weight.ndim - 2))  # (O, I / groups, 1, ...)


def _set(value: ir.Value | None, array: np.ndarray) -> None:
    """Put other numbers into an initializer."""
    assert value is not None and value.const_value is not None
    dtype = value.const_value.dtype.numpy()
    value.const_value = ir.tensor(array.astype(dtype), name=value.name)
