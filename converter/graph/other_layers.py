"""Convolutions and products of a network that cannot be read as plain layers, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from converter.graph.network import constant, in_onnx_domain
from converter.graph.nodes import PRODUCTS

QUANTIZED = "it is quantized; convert the network before it is quantized"
OPTIMIZED = "onnxruntime optimized it; give the file from before that"
# Number of the input that is the weight.
QUANTIZED_LAYERS = {
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "QGemm": 3,
    "ConvInteger": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
}
FUSED_PRODUCTS = ("FusedGemm", "FusedMatMul")


def list_other_layers(
    model: ir.Model, is_layer: Callable[[ir.Node], bool]
) -> list[tuple[ir.Node, str]]:
    """List the layers that cannot be read as nodes of the main graph, with the reason.

    Args:
        model: The network.
        is_layer: Whether a node would be read in the main graph.
    """
    reasons = [
        (node, "it is inside a subgraph")
        for node in model.graph.all_nodes()
        if is_layer(node) and node.graph is not model.graph
    ]
    reasons += [
        (node, f"it is inside the function {function.name}")
        for function in model.functions.values()
        for node in function.all_nodes()
        if is_layer(node)
    ]
    reasons += [
        (node, "its weight is the left factor of the product")
        for node in model.graph
        if in_onnx_domain(node) and node.op_type in PRODUCTS and _weight_is_left(node)
    ]
    reasons += [(node, reason) for node in model.graph.all_nodes() if (reason := _other_kind(node))]
    return reasons


def _other_kind(node: ir.Node) -> str | None:
    """Say why a node of another kind is a layer that cannot be converted; None if it is none."""
    if node.op_type in QUANTIZED_LAYERS:
        return QUANTIZED
    layer = _is_convolution(node) or node.op_type in FUSED_PRODUCTS
    if not in_onnx_domain(node) and layer:
        optimized = node.domain.startswith("com.microsoft")
        return OPTIMIZED if optimized else f"it is a {node.op_type}"
    return "it is a DeformConv" if node.op_type == "DeformConv" else None


def other_macs(node: ir.Node, out_shape: Sequence[int], batch: int) -> int:
    """Count multiply-accumulates for one example of a layer of another kind.

    Args:
        node: A quantized or fused layer; 0 if its weights are no constants.
        out_shape: Shape of its output.
        batch: Examples in it.
    """
    number = QUANTIZED_LAYERS.get(node.op_type, 1)
    kernel = constant(node.inputs[number]) if number < len(node.inputs) else None
    if kernel is None or kernel.ndim < 2:
        return 0
    if not _is_convolution(node):
        inner = kernel.shape[1 if node.attributes.get_int("transB", 0) else -2]
        return math.prod(out_shape) * int(inner) // batch
    last = node.op_type.startswith("Nhwc")
    return math.prod(kernel.shape) * math.prod(out_shape[1:-1] if last else out_shape[2:])


def _is_convolution(node: ir.Node) -> bool:
    return "Conv" in node.op_type


def _weight_is_left(node: ir.Node) -> bool:
    left, right = (constant(value) for value in node.inputs[:2])
    return left is not None and left.ndim > 1 and right is None
