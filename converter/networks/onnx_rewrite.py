"""Surgery on a copy of an ONNX graph: chains, or other kernels, in the place of convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from converter.errors import ConverterError
from converter.kernels.conv import PADDING_MODES, Chain, Conv
from converter.kernels.taps import turned

REWRITTEN = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ONNX_PAD_MODES = dict(zip(PADDING_MODES, ("constant", "reflect", "edge", "wrap")))


def rewrite(model: ir.Model, chains: Mapping[str, tuple[str, Chain]]) -> ir.Model:
    """Return a copy of ``model`` with nodes of convolutions replaced by chains.

    The value that a replaced node gave keeps its name.

    Args:
        model: Left as it is.
        chains: By the name of the replaced node's output: (prefix of the new names, chain).
    """
    copy = model.clone()
    taken = {str(value.name) for node in copy.graph for value in node.outputs}
    for node in list(copy.graph):
        key = node.outputs[0].name
        if node.op_type not in REWRITTEN or key not in chains:
            continue
        prefix, chain = chains[str(key)]
        while any(re.match(rf"{re.escape(prefix)}\.\d", name) for name in taken):
            prefix += "_chain"
        weights = [value for value in node.inputs[1:] if value is not None]
        source = node.inputs[0]
        assert source is not None
        build = BUILDERS.get(len(chain.steps[0].k), _chain_nodes)
        nodes = build(copy.graph, source, chain, prefix)
        _replace(copy.graph, node, nodes)
        for value in weights:
            if not value.uses() and not value.is_graph_output():
                copy.graph.initializers.pop(str(value.name), None)
                maker = value.producer()
                if maker is not None and maker.op_type == "Constant":
                    copy.graph.remove(maker, safe=True)
                if value in copy.graph.inputs:  # old files list weights as inputs, too
                    copy.graph.inputs.remove(value)
    return copy


def replace_weights(model: ir.Model, convs: Mapping[str, Conv]) -> ir.Model:
    """Return a copy with other kernels (of the same shapes) and biases.

    Args:
        model: Left as it is.
        convs: By the name of the node's output; kernels as ``Conv`` has them.
    """
    copy = model.clone()
    for node in list(copy.graph):
        key = str(node.outputs[0].name)
        if node.op_type not in REWRITTEN or key not in convs:
            continue
        source, bias = node.inputs[0], convs[key].bias
        if node.op_type == "MatMul" and bias is not None:
            assert source is not None
            _replace(copy.graph, node, _product_nodes(copy.graph, source, convs[key], f"{key}.new"))
            continue
        kernel = _stored(node, convs[key].kernel)
        node.replace_input_with(1, _initializer(copy.graph, f"{key}.kernel", kernel))
        if bias is not None:
            node.resize_inputs(3)
            node.replace_input_with(2, _initializer(copy.graph, f"{key}.bias", bias))
    return copy


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put ``nodes`` in the place of ``node``; its value keeps its name."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])
    new.name = old.name


def _stored(node: ir.Node, kernel: np.ndarray) -> np.ndarray:
    """Arrange a kernel (O, I/groups, *k) as the node stores it."""
    if node.op_type == "ConvTranspose":
        return turned(kernel, node.attributes.get_int("group", 1) or 1)
    if node.op_type in ("Gemm", "MatMul") and not node.attributes.get_int("transB", 0):
        return kernel.T
    return kernel


def _linear_nodes(graph: ir.Graph, source: ir.Value, chain: Chain, prefix: str) -> list[ir.Node]:
    """Build a chain over no axes as products; one with a bias is a Gemm if it takes a matrix."""
    matrix = source.shape is not None and len(source.shape) == 2
    nodes: list[ir.Node] = []
    for number, step in enumerate(chain.steps):
        value = nodes[-1].outputs[0] if nodes else source
        nodes += _product_nodes(graph, value, step, f"{prefix}.{number}", matrix)
    return nodes


def _product_nodes(
    graph: ir.Graph, source: ir.Value, step: Conv, name: str, matrix: bool = False
) -> list[ir.Node]:
    """Build a linear layer, whose input is a ``matrix`` for certain or has any axes."""
    values = [source, _initializer(graph, f"{name}.weight", step.kernel.T)]
    bias = [] if step.bias is None else [_initializer(graph, f"{name}.bias", step.bias)]
    if matrix and bias:
        nodes = [ir.node("Gemm", [*values, *bias], name=name)]
    else:
        nodes = [ir.node("MatMul", values, name=name)]
        nodes[0].outputs[0].name = f"{name}.product" if bias else name
        if bias:
            nodes.append(ir.node("Add", [nodes[0].outputs[0], *bias], name=f"{name}.add"))
    nodes[-1].outputs[0].name = name
    return nodes


def _flat_nodes(graph: ir.Graph, source: ir.Value, chain: Chain, prefix: str) -> list[ir.Node]:
    """Build a chain over one axis as images of height 1: onnxruntime's fast layout is 2-D only."""
    raised = _reshape_node(graph, source, [0, 0, 1, -1], f"{prefix}.raised")
    steps = tuple(
        replace(
            step,
            kernel=step.kernel[:, :, None],
            stride=(1, *step.stride),
            padding=((0, 0), *step.padding),
            dilation=(1, *step.dilation),
            output_padding=(0, *step.output_padding) if step.output_padding else (),
        )
        for step in chain.steps
    )
    nodes = _chain_nodes(graph, raised.outputs[0], Chain(steps), prefix)
    lowered = _reshape_node(graph, nodes[-1].outputs[0], [0, 0, -1], f"{prefix}.lowered")
    return [raised, *nodes, lowered]


def _chain_nodes(graph: ir.Graph, source: ir.Value, chain: Chain, prefix: str) -> list[ir.Node]:
    """Build the nodes of a chain; a depthwise step that widens becomes several and a Concat."""
    nodes: list[ir.Node] = []
    value = source
    interleaved = 1  # how many copies of the channels the Concat before this step laid in a row
    for number, step in enumerate(chain.steps):
        name = f"{prefix}.{number}"
        if step.padding_mode != "zeros" and any(map(sum, step.padding)):
            nodes.append(_pad_node(graph, value, step, name))
            value = nodes[-1].outputs[0]
        kernel = step.kernel
        if interleaved > 1:
            kernel = _by_copy(kernel.swapaxes(0, 1), interleaved).swapaxes(0, 1)
        wider = step.O // step.I if step.groups == step.I > 1 else 1
        following = chain.steps[number + 1].groups if number + 1 < len(chain.steps) else 0
        if wider > 1 and following == 1:
            parts = np.split(_by_copy(kernel, wider), wider)
            copies = [
                _conv_node(graph, value, step, part, f"{name}.{n}") for n, part in enumerate(parts)
            ]
            nodes += copies
            nodes.append(
                ir.node(
                    "Concat", [c.outputs[0] for c in copies], {"axis": 1}, name=f"{name}.concat"
                )
            )
            nodes[-1].outputs[0].name = f"{name}.concat"
        else:
            nodes.append(_conv_node(graph, value, step, kernel, name))
        interleaved = wider if wider > 1 and following == 1 else 1
        value = nodes[-1].outputs[0]
    return nodes


BUILDERS = {0: _linear_nodes, 1: _flat_nodes}  # by the number of axes


def _by_copy(kernel: np.ndarray, copies: int) -> np.ndarray:
    """Reorder channels on axis 0 from (channel, copy) to (copy, channel)."""
    split = kernel.reshape(-1, copies, *kernel.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(kernel.shape)


def _conv_node(
    graph: ir.Graph, source: ir.Value, step: Conv, kernel: np.ndarray, name: str
) -> ir.Node:
    if step.transposed:
        kernel = turned(kernel, step.groups)
    values = [source, _initializer(graph, f"{name}.weight", kernel)]
    if step.bias is not None:
        values.append(_initializer(graph, f"{name}.bias", step.bias))
    padding = step.padding if step.padding_mode == "zeros" else ((0, 0),) * len(step.k)
    attributes: dict[str, int | list[int]] = {
        "kernel_shape": list(step.k),
        "strides": list(step.stride),
        "pads": [p[0] for p in padding] + [p[1] for p in padding],
        "dilations": list(step.dilation),
        "group": step.groups,
    }
    if any(step.output_padding):
        attributes["output_padding"] = list(step.output_padding)
    kind = "ConvTranspose" if step.transposed else "Conv"
    node = ir.node(kind, values, attributes, name=name)
    node.outputs[0].name = name
    return node


def _pad_node(graph: ir.Graph, source: ir.Value, step: Conv, name: str) -> ir.Node:
    pads = np.array(
        [0, 0, *(p[0] for p in step.padding), 0, 0, *(p[1] for p in step.padding)], np.int64
    )
    node = ir.node(
        "Pad",
        [source, _initializer(graph, f"{name}.pads", pads)],
        {"mode": ONNX_PAD_MODES[step.padding_mode]},
        name=f"{name}.pad",
    )
    node.outputs[0].name = f"{name}.pad"
    return node


def _reshape_node(graph: ir.Graph, source: ir.Value, shape: list[int], name: str) -> ir.Node:
    node = ir.node(
        "Reshape",
        [source, _initializer(graph, f"{name}.shape", np.array(shape, np.int64))],
        name=name,
    )
    node.outputs[0].name = name
    return node


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a new initializer to ``graph``."""
    if name in graph.initializers:
        raise ConverterError(f"The network already has a tensor named {name!r}; rename it.")
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value
