"""What to compare of a network: its outputs, or what they are made of where their shape varies."""

from __future__ import annotations

import onnx_ir as ir

from converter.errors import ConverterError

# Their results have as many entries as the data has hits.
COUNTING = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}


def varying(model: ir.Model) -> set[str]:
    """Name the values of the main graph whose shape may depend on the data."""
    found: set[str] = set()
    for node in model.graph:
        kinds = {node.op_type, *_inside(node)}
        taken = {str(value.name) for value in node.inputs if value is not None}
        if COUNTING & kinds or taken & found:
            found |= {str(value.name) for value in node.outputs}
    return found


def comparison_outputs(model: ir.Model) -> list[str]:
    """Name the values to compare with those of another version of the network.

    Returns:
        The outputs; where the shape of some depends on the data, in their place the last values
        before that, of fixed shape, that they are made of.
    """
    unstable, made = varying(model), _made(model)
    names: list[str] = []
    todo = list(model.graph.outputs)
    while todo:
        value = todo.pop(0)
        if str(value.name) not in unstable:
            names.append(str(value.name))
            continue
        producer = value.producer()
        taken = [] if producer is None else [v for v in producer.inputs if v is not None]
        todo += [v for v in taken if str(v.name) in made]
    return list(dict.fromkeys(names))


def with_outputs(model: ir.Model, names: list[str]) -> ir.Model:
    """Return a copy whose outputs are the values ``names``.

    Raises:
        ConverterError: When it lacks one of them.
    """
    copy = model.clone()
    values = {str(value.name): value for value in copy.graph.inputs}
    values |= {str(value.name): value for node in copy.graph for value in node.outputs}
    missing = [name for name in names if name not in values]
    if missing:
        raise ConverterError(
            f"The shape of an output depends on the data, and one of the networks has no value "
            f"{missing[0]!r}, of fixed shape, to compare instead."
        )
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    return copy


def _inside(node: ir.Node) -> set[str]:
    """Kinds of the nodes in a node's subgraphs."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += attribute.as_graphs()
    return {inner.op_type for graph in graphs for inner in graph.all_nodes()}


def _made(model: ir.Model) -> set[str]:
    """Name the values that nodes make of the inputs."""
    inputs = {str(value.name) for value in model.graph.inputs} - set(model.graph.initializers)
    found = set(inputs)
    for node in model.graph:
        if {str(value.name) for value in node.inputs if value is not None} & found:
            found |= {str(value.name) for value in node.outputs}
    return found - inputs
