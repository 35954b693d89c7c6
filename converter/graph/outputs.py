"""Values to compare between networks: outputs, or earlier values if an output's shape varies."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from converter.errors import ConverterError
from converter.graph.network import constant, subgraph_nodes, values_by_name

# Operators whose output shape depends on the values of their input, not only on its shape.
DATA_DEPENDENT = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}
# Operators that draw random numbers; Dropout does so in training mode.
RANDOM = {"Bernoulli", "Multinomial"}
RANDOM |= {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def output_names(model: ir.Model) -> list[str]:
    """Name the outputs, in order."""
    return [str(value.name) for value in model.graph.outputs]


def data_dependent_shapes(model: ir.Model) -> set[str]:
    """Name the values of the main graph whose shape may depend on the data."""
    return _computed_by(model, lambda node: node.op_type in DATA_DEPENDENT)


def random_values(model: ir.Model) -> set[str]:
    """Name the values of the main graph that depend on random numbers."""
    return _computed_by(model, _draws)


def with_seeds(model: ir.Model) -> ir.Model:
    """Return the network with the same random numbers in every session; itself if it draws none."""
    if not any(map(_draws, model.graph.all_nodes())):
        return model
    copy = model.clone()
    for node in filter(_draws, copy.graph.all_nodes()):
        node.attributes["seed"] = (
            ir.AttrInt64("seed", 1) if node.op_type == "Dropout" else ir.AttrFloat32("seed", 1.0)
        )
    return copy


def _computed_by(model: ir.Model, chosen: Callable[[ir.Node], bool]) -> set[str]:
    """Name the values of the main graph that depend on nodes which ``chosen`` accepts."""
    names: set[str] = set()
    for node in model.graph:
        if any(map(chosen, [node, *subgraph_nodes(node)])) or _input_names(node) & names:
            names |= {str(value.name) for value in node.outputs}
    return names


def _draws(node: ir.Node) -> bool:
    """Whether a node draws random numbers."""
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return node.op_type in RANDOM
    training = constant(node.inputs[2])
    return training is None or bool(training)


def comparison_outputs(model: ir.Model) -> list[str]:
    """Name the values to compare with those of another version of the network.

    Returns:
        The outputs. An output whose shape depends on the data is replaced by the last values of
        fixed shape that it is computed from.
    """
    unstable, computed = data_dependent_shapes(model), _computed_from_inputs(model)
    names: list[str] = []
    todo = list(model.graph.outputs)
    while todo:
        value = todo.pop(0)
        if str(value.name) not in unstable:
            names.append(str(value.name))
            continue
        producer = value.producer()
        sources = [] if producer is None else [v for v in producer.inputs if v is not None]
        todo += [source for source in sources if str(source.name) in computed]
    return list(dict.fromkeys(names))


def with_outputs(model: ir.Model, names: list[str]) -> ir.Model:
    """Return a copy whose outputs are the values ``names``, with seeds of random numbers.

    Raises:
        ConverterError: When the network lacks one of them.
    """
    copy = with_seeds(model).clone()
    values = values_by_name(copy)
    missing = [name for name in names if name not in values]
    if missing:
        raise ConverterError(
            f"The shape of an output depends on the data, and one of the networks has no value "
            f"{missing[0]!r}, of fixed shape, to compare instead."
        )
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    return copy


def _computed_from_inputs(model: ir.Model) -> set[str]:
    """Name the node outputs that depend on the network's inputs."""
    inputs = {str(value.name) for value in model.graph.inputs} - set(model.graph.initializers)
    names = set(inputs)
    for node in model.graph:
        if _input_names(node) & names:
            names |= {str(value.name) for value in node.outputs}
    return names - inputs


def _input_names(node: ir.Node) -> set[str]:
    return {str(value.name) for value in node.inputs if value is not None}
