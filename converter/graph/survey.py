"""Every convolution and linear layer, with geometry and cost, or why it cannot be converted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from converter.decomposition.conv import Conv
from converter.decomposition.form import refusal
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError
from converter.graph.network import (
    attributes,
    constant,
    observe_shapes,
    release,
    standard,
)
from converter.graph.nodes import CONVOLUTIONS, PRODUCTS, read_conv, read_linear
from converter.graph.outputs import varying

NO_CONSTANT = "its weight is not a constant of the graph"
QUANTIZED = "it is quantized; convert the network before it is quantized"
QUANTIZED_LAYERS = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm")
OTHER_LAYERS = ("DeformConv", "FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv")


@dataclass(frozen=True)
class Layer:
    """One convolution, or linear layer, of a network.

    Attributes:
        name: The weight's name without ``.weight``, else the node's.
        output: Name of the tensor that the node gives; it identifies the node in the graph.
        source: Name of the tensor that the node takes.
        weight: Name of its weight.
        conv: The convolution; None where ``reason`` says that it cannot be read.
        size: Spatial size of its input for the surveyed input shape; for a linear layer, how
            many vectors it multiplies for one example.
        params: Weights and bias.
        macs: Multiply-accumulates for one example.
        reason: Why the layer cannot be converted; None if it can.
    """

    name: str
    output: str
    source: str
    weight: str
    conv: Conv | None
    size: tuple[int, ...]
    params: int
    macs: int
    reason: str | None = None

    def kept(self, reason: str) -> Layer:
        """Return the layer with ``reason`` not to convert it, unless it has one already."""
        return self if self.reason else replace(self, reason=reason)


def survey(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> tuple[Layer, ...]:
    """List the convolutions and linear layers of ``model`` in graph order.

    Args:
        model: The network.
        feeds: Inputs to run it on once, for the shapes.

    Raises:
        ConverterError: When the network cannot run, or a weight is NaN or infinite.
    """
    nodes = [n for n in model.graph if _is_layer(n)]
    ends = [
        str(value.name) for node in nodes for value in (node.inputs[0], node.outputs[0]) if value
    ]
    shapes = observe_shapes(model, list(dict.fromkeys(ends)), feeds)
    names = Counter(_name(node) for node in nodes)
    named = Counter(str(node.name) for node in nodes if node.name)
    free_sizes = any(
        not isinstance(size, int)
        for value in model.graph.inputs
        for size in list(value.shape or ())[1:]
    )
    batch = next((len(array) for array in feeds.values() if array.ndim), 1)
    unstable = varying(model)
    layers = []
    for node in nodes:
        source, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
        assert source is not None and weight is not None
        name = _name(node)
        if names[name] > 1:
            name = str(node.name if named[str(node.name)] == 1 else output.name)
        in_shape, out_shape = shapes[str(source.name)], shapes[str(output.name)]
        kernel = constant(weight)
        ends_of = (str(output.name), str(source.name), str(weight.name))
        layer = Layer(name, *ends_of, None, in_shape[2:], 0, 0)
        if str(source.name) in unstable:
            layers.append(layer.kept("the shape of its input depends on the data"))
            continue
        if kernel is None:
            quantized = all(_made_by(value, "DequantizeLinear") for value in (source, weight))
            counted = replace(layer, macs=_quantized_macs(node, in_shape, out_shape) // batch)
            layers.append(counted.kept(QUANTIZED if quantized else NO_CONSTANT))
            continue
        if not np.isfinite(kernel.astype(np.float32)).all():
            raise ConverterError(
                f"The weight of layer {name} holds NaN or infinite values; use a sound checkpoint."
            )
        release([weight])
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and not np.isfinite(bias.astype(np.float32)).all():
            raise ConverterError(
                f"The bias of layer {name} holds NaN or infinite values; use a sound checkpoint."
            )
        layer = replace(layer, params=kernel.size + (0 if bias is None else bias.size))
        if node.op_type in PRODUCTS:
            inner = kernel.shape[1 if node.attributes.get_int("transB", 0) else -2]
            macs = math.prod(out_shape) * inner // batch
            layers.append(_linear(node, replace(layer, macs=macs), kernel, bias))
            continue
        positions = in_shape if node.op_type == "ConvTranspose" else out_shape
        layer = replace(layer, macs=kernel.size * math.prod(positions[2:]))
        if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
            layer = layer.kept("its bias is not a constant of the graph")
        elif free_sizes and _pads_by_size(node):
            layer = layer.kept(
                "its padding (auto_pad or output_shape) depends on an input size that is free"
            )
        elif not 3 <= kernel.ndim <= 5:
            layer = layer.kept(f"convolutions over {kernel.ndim - 2} axes cannot be converted")
        else:
            conv = read_conv(node.op_type, attributes(node), kernel, bias, in_shape[2:])
            refusals = [refusal(form, conv) for form in FORMS.values()]
            layer = replace(layer, conv=conv, reason=refusals[-1] if all(refusals) else None)
            if conv.output_size(in_shape[2:]) != out_shape[2:]:
                layer = replace(layer, conv=None).kept(
                    "its output_shape is larger than what it computes"
                )
        layers.append(layer)
    return _deduplicated([*layers, *_out_of_reach(model)])


def _deduplicated(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Number the layers of one name, from the second on."""
    seen: Counter[str] = Counter()
    found = []
    for layer in layers:
        name = layer.name
        while name in seen:
            seen[layer.name] += 1
            name = f"{layer.name}#{seen[layer.name]}"
        seen[name] += 1
        found.append(replace(layer, name=name))
    return tuple(found)


def _out_of_reach(model: ir.Model) -> list[Layer]:
    """List what computes like a layer, but not as a node of the main graph that can be read."""
    found = [
        (node, "it is inside a subgraph")
        for node in model.graph.all_nodes()
        if _is_layer(node) and node.graph is not model.graph
    ]
    found += [
        (node, f"it is inside the function {function.name}")
        for function in model.functions.values()
        for node in function.all_nodes()
        if _is_layer(node)
    ]
    found += [
        (node, "its weight is the left factor of the product")
        for node in model.graph
        if standard(node) and node.op_type in PRODUCTS and _from_the_left(node)
    ]
    found += [
        (node, QUANTIZED if node.op_type in QUANTIZED_LAYERS else f"it is a {node.op_type}")
        for node in model.graph.all_nodes()
        if node.op_type in (*QUANTIZED_LAYERS, *OTHER_LAYERS)
    ]
    return [
        Layer(str(node.name or node.outputs[0].name), "", "", "", None, (), 0, 0, reason)
        for node, reason in found
    ]


def count_params(model: ir.Model) -> int:
    """Count the weights of the network, in floating point or quantized."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    values += [n.outputs[0] for n in model.graph.all_nodes() if n.op_type == "Constant"]
    kinds = ("QuantizeLinear", "DequantizeLinear")
    ways = [node for node in model.graph.all_nodes() if node.op_type in kinds]
    scales = {value for node in ways for value in node.inputs[1:]}
    small = {node.inputs[0] for node in ways if node.op_type == "DequantizeLinear"}
    tensors = [
        (value in small, ir.convenience.get_const_tensor(value))
        for value in values
        if value not in scales
    ]
    return sum(t.size for q, t in tensors if t is not None and (q or t.dtype.is_floating_point()))


def count_macs(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> int:
    """Count multiply-accumulates of convolutions and constant-weight matrix products.

    For one example, whatever the batch size of ``feeds``.
    """
    return sum(layer.macs for layer in survey(model, feeds))


def _quantized_macs(node: ir.Node, in_shape: Sequence[int], out_shape: Sequence[int]) -> int:
    """Multiply-accumulates of a layer whose weights are quantized constants; else 0."""
    maker = node.inputs[1].producer() if node.inputs[1] is not None else None
    kernel = None if maker is None or not maker.inputs else constant(maker.inputs[0])
    if kernel is None or kernel.ndim < 2:
        return 0
    if node.op_type in PRODUCTS:
        inner = kernel.shape[1 if node.attributes.get_int("transB", 0) else -2]
        return math.prod(out_shape) * int(inner)
    positions = in_shape if node.op_type == "ConvTranspose" else out_shape
    return kernel.size * math.prod(positions[2:]) * positions[0]


def _is_layer(node: ir.Node) -> bool:
    """Tell a convolution, or a product with constant weights, from anything else."""
    if not standard(node) or node.op_type not in PRODUCTS:
        return standard(node) and node.op_type in CONVOLUTIONS
    taken, weight = (constant(value) for value in node.inputs[:2])
    if taken is not None or weight is None:
        return taken is None and _made_by(node.inputs[1], "DequantizeLinear")
    return weight.ndim > 1 and not np.issubdtype(weight.dtype, np.integer)


def _from_the_left(node: ir.Node) -> bool:
    left, right = (constant(value) for value in node.inputs[:2])
    return left is not None and left.ndim > 1 and right is None


def _linear(node: ir.Node, layer: Layer, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
    """Finish a linear layer: read its weight, or say why it is kept."""
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return layer.kept("its bias is not a constant of the graph")
    try:
        conv = read_linear(attributes(node), weight, bias)
    except ConverterError as error:
        return layer.kept(str(error))
    return replace(layer, conv=conv, size=(layer.macs // conv.kernel.size,))


def _pads_by_size(node: ir.Node) -> bool:
    if node.op_type == "ConvTranspose":
        return "output_shape" in node.attributes
    strided = max(node.attributes.get_ints("strides", [1])) > 1
    return strided and node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")


def _made_by(value: ir.Value | None, kind: str) -> bool:
    maker = None if value is None else value.producer()
    return maker is not None and maker.op_type == kind


def _name(node: ir.Node) -> str:
    """Name a layer by its weight; exporters' counters (``onnx::Conv_12``) say nothing."""
    weight = node.inputs[1]
    name = str(weight.name) if weight is not None else ""
    if not name or "::" in name:
        return str(node.name or node.outputs[0].name)
    return name.removesuffix(".weight")
