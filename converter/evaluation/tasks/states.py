"""Outputs that are no answer: recurrent states, masks and lengths."""

from __future__ import annotations

import re

import onnx_ir as ir

from converter.data.data import Arrays
from converter.evaluation.tasks.endings import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    LOOKED_THROUGH,
    Shapes,
    words,
)
from converter.graph.network import in_onnx_domain, inputs, subgraph_nodes, values_by_name

RECURRENT = {"GRU", "LSTM", "RNN"}
WITH_WEIGHTS = RECURRENT | CHANNELS_FIRST | CHANNELS_LAST | {"Einsum"}
STATES = {"c", "cache", "carry", "cell", "h", "hidden", "memory", "past", "state", "states"}
LENGTHS = {"len", "length", "lengths", "lens"}
DIRECTION = r"(in|input|out|output|new|next|prev|previous|present|past|i|o|n|t)"


def find_states(network: ir.Model, outputs: Arrays, shapes: Shapes) -> tuple[str, ...]:
    """Name the outputs that are states, masks and lengths, and so are not judged.

    They are those that no layer computes; the states of recurrent operators; those with the shape
    and, but for a word such as ``out`` or ``new``, the name of an input that is a state or not the
    first array; and whole numbers that are called lengths.

    Args:
        network: The original network.
        outputs: Its values for sample inputs.
        shapes: Shapes of its inputs and outputs for some number of examples, by name.

    Returns:
        Their names; none if that would be all outputs.
    """
    values = values_by_name(network)
    names = tuple(
        name
        for name, array in outputs.items()
        if not _is_computed(values.get(name))
        or _is_state(values.get(name))
        or _returns_input(network, name, shapes)
        or (array.dtype.kind in "iu" and array.ndim < 3 and words(name) & LENGTHS)
    )
    return () if len(names) == len(outputs) else names


def _is_computed(value: ir.Value | None) -> bool:
    """Whether a layer with weights, or an operator that is not ONNX's, leads to a value."""
    seen: set[ir.Node] = set()
    todo = [] if value is None else [value.producer()]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in WITH_WEIGHTS or not in_onnx_domain(node) or subgraph_nodes(node):
            return True
        todo += [item.producer() for item in node.inputs if item is not None]
    return value is None


def _is_state(value: ir.Value | None) -> bool:
    """Whether a value is the last state of a recurrent operator, or several that are joined."""
    node = None if value is None else value.producer()
    if value is None or node is None:
        return False
    if node.op_type in RECURRENT:
        return value.index() != 0
    if node.op_type == "Concat":
        return all(_is_state(item) for item in node.inputs)
    return node.op_type in LOOKED_THROUGH and _is_state(node.inputs[0])


def _returns_input(network: ir.Model, name: str, shapes: Shapes) -> bool:
    """Whether an output is an input's next value."""
    names = [item.name for item in inputs(network)]
    first = next((item.name for item in inputs(network) if len(item.shape) > 1), None)
    return name in shapes and any(
        _stem(name) == _stem(other)
        and shapes.get(other) == shapes[name]
        and (other != first or bool(words(name) & STATES))
        for other in names
    )


def _stem(name: str) -> str:
    """Return a name without what tells an old value from a new one, or "" plus its state word."""
    stem = re.sub(rf"(^{DIRECTION}[\W_]+)|([\W_]+{DIRECTION}$)", "", name.lower())
    stem = re.sub(r"(?<=[a-z0-9])(_?(n|i|o|0|1|out|in))$", "", stem)
    return re.sub(r"[\W_]+", "", stem)
