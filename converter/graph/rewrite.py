"""Chains, or other kernels, in place of convolutions, in a copy of an ONNX graph."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.taps import swap_in_out
from converter.errors import ConverterError
from converter.graph.network import weight_value
from converter.graph.nodes import LINEAR, PRODUCTS, GraphFragment, chain_nodes, product_nodes


def rewrite(model: ir.Model, chains: Mapping[str, tuple[str, Chain]]) -> ir.Model:
    """Return a copy of ``model`` with convolutions and linear layers replaced by chains.

    The output of a replaced node keeps its name.

    Args:
        model: Left as it is.
        chains: By the name of the replaced node's output: (prefix of the new names, chain).

    Raises:
        ConverterError: When a new name is taken by another tensor.
    """
    copy = model.clone()
    names = {str(value.name) for node in copy.graph for value in node.outputs}
    for node in list(copy.graph):
        key = node.outputs[0].name
        if node.op_type not in LINEAR or key not in chains:
            continue
        prefix, chain = chains[str(key)]
        while any(re.match(rf"{re.escape(prefix)}\.\d", name) for name in names):
            prefix += "_chain"
        weights = [value for value in node.inputs[1:] if value is not None]
        source = node.inputs[0]
        assert source is not None
        matrix = source.shape is not None and len(source.shape) == 2
        fragment = chain_nodes(chain, str(source.name), prefix, matrix)
        _replace(copy.graph, node, _nodes(copy.graph, source, fragment))
        for value in weights:
            if not value.uses() and not value.is_graph_output():
                copy.graph.initializers.pop(str(value.name), None)
                producer = value.producer()
                if producer is not None and producer.op_type == "Constant":
                    copy.graph.remove(producer, safe=True)
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
        if node.op_type not in LINEAR or key not in convs:
            continue
        source = node.inputs[0]
        if node.op_type == "MatMul" and convs[key].bias is not None:
            assert source is not None
            fragment = product_nodes(convs[key], str(source.name), f"{key}.new")
            _replace(copy.graph, node, _nodes(copy.graph, source, fragment))
            continue
        for number, (name, array) in enumerate(new_weights(node, convs[key]).items(), 1):
            node.resize_inputs(max(number + 1, len(node.inputs)))
            node.replace_input_with(number, _initializer(copy.graph, name, array))
    return copy


def new_weights(node: ir.Node, conv: Conv) -> dict[str, np.ndarray]:
    """Return the tensors, by name, with which ``replace_weights`` replaces those of a node."""
    key = str(node.outputs[0].name)
    if node.op_type == "MatMul" and conv.bias is not None:
        return dict(product_nodes(conv, "", f"{key}.new").weights)
    weights = {f"{key}.new_kernel": _stored(node, conv.kernel)}
    return weights if conv.bias is None else weights | {f"{key}.new_bias": conv.bias}


def with_weight_inputs(model: ir.Model, convs: Mapping[str, Conv]) -> ir.Model:
    """Return a copy that also takes the ``new_weights`` of some nodes as inputs.

    One session can then run many versions of the network.

    Args:
        model: Left as it is.
        convs: By the name of the node's output; only shapes and types matter.
    """
    copy = replace_weights(model, convs)
    for name in [name for name in copy.graph.initializers if name not in model.graph.initializers]:
        value = copy.graph.initializers.pop(name)
        value.const_value = None
        copy.graph.inputs.append(value)
    return copy


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Replace ``node`` by ``nodes``; its output keeps its name."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])
    new.name = old.name


def _stored(node: ir.Node, kernel: np.ndarray) -> np.ndarray:
    """Arrange a kernel (O, I/groups, *k) as the node stores it."""
    if node.op_type == "ConvTranspose":
        return swap_in_out(kernel, node.attributes.get_int("group", 1) or 1)
    if node.op_type in PRODUCTS and not node.attributes.get_int("transB", 0):
        return np.transpose(kernel)
    return kernel


def _nodes(graph: ir.Graph, source: ir.Value, fragment: GraphFragment) -> list[ir.Node]:
    """Turn a fragment into nodes for ``graph``; its weights become initializers."""
    values = {str(source.name): source}
    values |= {name: _initializer(graph, name, array) for name, array in fragment.weights.items()}
    nodes = []
    for item in fragment.nodes:
        inputs = [values[name] for name in item.inputs]
        nodes.append(ir.node(item.op, inputs, dict(item.attributes), name=item.name))
        nodes[-1].outputs[0].name = item.name
        values[item.name] = nodes[-1].outputs[0]
    return nodes


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a new initializer to ``graph``.

    Raises:
        ConverterError: When the graph has an initializer of that name.
    """
    if name in graph.initializers:
        raise ConverterError(f"The network already has a tensor named {name!r}; rename it.")
    value = weight_value(name, array)
    graph.register_initializer(value)
    return value
