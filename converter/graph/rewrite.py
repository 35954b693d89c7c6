"""Surgery on a copy of an ONNX graph: chains, or other kernels, in the place of convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.taps import swap_in_out
from converter.errors import ConverterError
from converter.graph.nodes import CONVOLUTIONS, PRODUCTS, GraphFragment, chain_nodes, product_nodes

REWRITTEN = (*CONVOLUTIONS, *PRODUCTS)


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
        matrix = source.shape is not None and len(source.shape) == 2
        piece = chain_nodes(chain, str(source.name), prefix, matrix)
        _replace(copy.graph, node, _nodes(copy.graph, source, piece))
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
        source = node.inputs[0]
        if node.op_type == "MatMul" and convs[key].bias is not None:
            assert source is not None
            piece = product_nodes(convs[key], str(source.name), f"{key}.new")
            _replace(copy.graph, node, _nodes(copy.graph, source, piece))
            continue
        for number, (name, array) in enumerate(new_weights(node, convs[key]).items(), 1):
            node.resize_inputs(max(number + 1, len(node.inputs)))
            node.replace_input_with(number, _initializer(copy.graph, name, array))
    return copy


def new_weights(node: ir.Node, conv: Conv) -> dict[str, np.ndarray]:
    """Give the tensors, by name, that ``replace_weights`` puts in the place of a node's."""
    key = str(node.outputs[0].name)
    if node.op_type == "MatMul" and conv.bias is not None:
        return dict(product_nodes(conv, "", f"{key}.new").weights)
    found = {f"{key}.new_kernel": _stored(node, conv.kernel)}
    return found if conv.bias is None else found | {f"{key}.new_bias": conv.bias}


def with_weight_inputs(model: ir.Model, convs: Mapping[str, Conv]) -> ir.Model:
    """Return a copy whose inputs are also the ``new_weights`` of some nodes.

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
    """Put ``nodes`` in the place of ``node``; its value keeps its name."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])
    new.name = old.name


def _stored(node: ir.Node, kernel: np.ndarray) -> np.ndarray:
    """Arrange a kernel (O, I/groups, *k) as the node stores it."""
    if node.op_type == "ConvTranspose":
        return swap_in_out(kernel, node.attributes.get_int("group", 1) or 1)
    if node.op_type in ("Gemm", "MatMul") and not node.attributes.get_int("transB", 0):
        found: np.ndarray = kernel.T
        return found
    return kernel


def _nodes(graph: ir.Graph, source: ir.Value, piece: GraphFragment) -> list[ir.Node]:
    """Turn a piece into nodes of ``graph``, its weights into initializers."""
    values = {str(source.name): source}
    values |= {name: _initializer(graph, name, array) for name, array in piece.weights.items()}
    nodes = []
    for item in piece.nodes:
        taken = [values[name] for name in item.inputs]
        nodes.append(ir.node(item.op, taken, dict(item.attributes), name=item.name))
        nodes[-1].outputs[0].name = item.name
        values[item.name] = nodes[-1].outputs[0]
    return nodes


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a new initializer to ``graph``."""
    if name in graph.initializers:
        raise ConverterError(f"The network already has a tensor named {name!r}; rename it.")
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value
