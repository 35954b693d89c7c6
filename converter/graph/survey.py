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
from converter.graph.external import release_mapped
from converter.graph.network import (
    attributes,
    compute_shapes,
    constant,
    in_onnx_domain,
)
from converter.graph.nodes import CONVOLUTIONS, PRODUCTS, read_conv, read_linear
from converter.graph.other_layers import QUANTIZED, list_other_layers, other_macs
from converter.graph.outputs import data_dependent_shapes

NO_CONSTANT = "its weight is not a constant of the graph"
NO_CONSTANT_BIAS = "its bias is not a constant of the graph"


@dataclass(frozen=True)
class Layer:
    """One convolution, or linear layer, of a network.

    Attributes:
        name: The weight's name without ``.weight``, else the node's.
        output: Name of the node's output; it identifies the node in the graph.
        source: Name of the node's input.
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

    def skip(self, reason: str) -> Layer:
        """Return the layer with ``reason`` not to convert it, unless it has one already."""
        return self if self.reason else replace(self, reason=reason)


@dataclass(frozen=True)
class _Tensors:
    """Shapes of the tensors of a network, as measured in a run and as declared in the graph.

    Attributes:
        shapes: Shape of the inputs and outputs of all layers, by name, batch included.
        batch: Examples in that run.
        free_sizes: Whether a size of the network's inputs, other than the batch, is free.
        data_dependent: Names of the tensors whose shape depends on the data.
    """

    shapes: Mapping[str, tuple[int, ...]]
    batch: int
    free_sizes: bool
    data_dependent: set[str]


def survey(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> tuple[Layer, ...]:
    """List the convolutions and linear layers of ``model`` in graph order.

    Args:
        model: The network.
        feeds: Inputs to run it on once, for the shapes.

    Raises:
        ConverterError: When the network cannot run, or a weight is NaN or infinite.
    """
    nodes = [node for node in model.graph if _is_layer(node)]
    others = list_other_layers(model, _is_layer)
    names = [str(v.name) for node in nodes for v in (node.inputs[0], node.outputs[0]) if v]
    names += [str(node.outputs[0].name) for node, _ in others if node.graph is model.graph]
    tensors = _Tensors(
        shapes=compute_shapes(model, list(dict.fromkeys(names)), feeds),
        batch=next((len(array) for array in feeds.values() if array.ndim), 1),
        free_sizes=any(
            not isinstance(size, int) or size < 0
            for value in model.graph.inputs
            for size in list(value.shape or ())[1:]
        ),
        data_dependent=data_dependent_shapes(model),
    )
    layers = [_read_layer(node, name, tensors) for node, name in zip(nodes, _names(nodes))]
    layers += [_other_layer(node, reason, tensors) for node, reason in others]
    return _number_duplicates(layers)


def _read_layer(node: ir.Node, name: str, tensors: _Tensors) -> Layer:
    """Read a node as a layer, or say why it cannot be converted."""
    source, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    assert source is not None and weight is not None
    in_shape, out_shape = tensors.shapes[str(source.name)], tensors.shapes[str(output.name)]
    names = (str(output.name), str(source.name), str(weight.name))
    layer = Layer(name, *names, conv=None, size=in_shape[2:], params=0, macs=0)
    if str(source.name) in tensors.data_dependent:
        return layer.skip("the shape of its input depends on the data")
    kernel = constant(weight)
    if kernel is None:
        quantized = all(_producer_is(value, "DequantizeLinear") for value in (source, weight))
        macs = _quantized_macs(node, in_shape, out_shape, tensors.batch)
        return replace(layer, macs=macs).skip(QUANTIZED if quantized else NO_CONSTANT)
    _check_finite(kernel, "weight", name)
    release_mapped([weight])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        _check_finite(bias, "bias", name)
    macs = _macs(node, kernel.shape, in_shape, out_shape, tensors.batch)
    layer = replace(layer, params=kernel.size + (0 if bias is None else bias.size), macs=macs)
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return layer.skip(NO_CONSTANT_BIAS)
    if node.op_type in PRODUCTS:
        return _read_linear(node, layer, kernel, bias)
    if tensors.free_sizes and _pads_by_size(node):
        return layer.skip(
            "its padding (auto_pad or output_shape) depends on an input size that is free"
        )
    return _read_convolution(node, layer, kernel, bias, out_shape[2:])


def _read_linear(node: ir.Node, layer: Layer, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
    try:
        conv = read_linear(attributes(node), weight, bias)
    except ConverterError as error:
        return layer.skip(str(error))
    return replace(layer, conv=conv, size=(layer.macs // conv.kernel.size,))


def _read_convolution(
    node: ir.Node,
    layer: Layer,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    out_size: tuple[int, ...],
) -> Layer:
    if not 3 <= kernel.ndim <= 5:
        return layer.skip(f"convolutions over {kernel.ndim - 2} axes cannot be converted")
    conv = read_conv(node.op_type, attributes(node), kernel, bias, layer.size)
    if conv.output_size(layer.size) != out_size:
        return layer.skip("its output_shape is larger than what it computes")
    refusals = [refusal(form, conv) for form in FORMS.values()]
    return replace(layer, conv=conv, reason=refusals[-1] if all(refusals) else None)


def _check_finite(array: np.ndarray, role: str, layer: str) -> None:
    if not np.isfinite(array.astype(np.float32)).all():
        raise ConverterError(
            f"The {role} of layer {layer} holds NaN or infinite values; use a sound checkpoint."
        )


def _number_duplicates(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Make names unique: the second layer of a name gets ``#2`` after it, and so on."""
    counts: Counter[str] = Counter()
    numbered = []
    for layer in layers:
        name = layer.name
        while name in counts:
            counts[layer.name] += 1
            name = f"{layer.name}#{counts[layer.name]}"
        counts[name] += 1
        numbered.append(replace(layer, name=name))
    return tuple(numbered)


def _other_layer(node: ir.Node, reason: str, tensors: _Tensors) -> Layer:
    """Describe a layer that cannot be read; what is inside of other graphs is not counted."""
    output = node.outputs[0]
    shape = tensors.shapes.get(str(output.name))
    macs = 0 if shape is None else other_macs(node, shape, tensors.batch)
    return Layer(str(node.name or output.name), "", "", "", None, (), 0, macs, reason)


def count_macs(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> int:
    """Count multiply-accumulates for one example: of convolutions and products with weights.

    Args:
        model: The network.
        feeds: Inputs to run it on once, of any batch size.
    """
    return sum(layer.macs for layer in survey(model, feeds))


def _macs(
    node: ir.Node,
    kernel: Sequence[int],
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    batch: int,
) -> int:
    """Count multiply-accumulates for one example; ``kernel`` is the stored shape."""
    if node.op_type in PRODUCTS:
        inner = kernel[1 if node.attributes.get_int("transB", 0) else -2]
        return math.prod(out_shape) * int(inner) // batch
    positions = in_shape if node.op_type == "ConvTranspose" else out_shape
    return math.prod(kernel) * math.prod(positions[2:])


def _quantized_macs(
    node: ir.Node, in_shape: Sequence[int], out_shape: Sequence[int], batch: int
) -> int:
    """Count multiply-accumulates of a layer with quantized constant weights; else 0."""
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    kernel = constant(producer.inputs[0]) if producer is not None and producer.inputs else None
    if kernel is None or kernel.ndim < 2:
        return 0
    return _macs(node, kernel.shape, in_shape, out_shape, batch)


def _is_layer(node: ir.Node) -> bool:
    """Whether a node is a convolution, or a product with constant weights."""
    if not in_onnx_domain(node) or node.op_type not in PRODUCTS:
        return in_onnx_domain(node) and node.op_type in CONVOLUTIONS
    left, weight = (constant(value) for value in node.inputs[:2])
    if left is not None or weight is None:
        return left is None and _producer_is(node.inputs[1], "DequantizeLinear")
    return weight.ndim > 1 and not np.issubdtype(weight.dtype, np.integer)


def _pads_by_size(node: ir.Node) -> bool:
    """Whether the padding of a convolution depends on the size of its input."""
    if node.op_type == "ConvTranspose":
        return "output_shape" in node.attributes
    strided = max(node.attributes.get_ints("strides", [1])) > 1
    return strided and node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")


def _producer_is(value: ir.Value | None, op_type: str) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == op_type


def _names(nodes: Sequence[ir.Node]) -> list[str]:
    """Name each layer by its weight; by its node or output where layers share the weight."""
    names = [_name(node) for node in nodes]
    shared, node_names = Counter(names), Counter(str(node.name) for node in nodes if node.name)
    return [
        name
        if shared[name] == 1
        else str(node.name if node_names[str(node.name)] == 1 else node.outputs[0].name)
        for node, name in zip(nodes, names)
    ]


def _name(node: ir.Node) -> str:
    """Name a layer by its weight, unless an exporter numbered the weight (``onnx::Conv_12``)."""
    weight = node.inputs[1]
    name = str(weight.name) if weight is not None else ""
    if not name or "::" in name:
        return str(node.name or node.outputs[0].name)
    return name.removesuffix(".weight")
