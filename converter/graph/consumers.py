"""Shortcuts, activations and pooling that follow a layer in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.graph.network import compute_shapes, constant, values_by_name
from converter.graph.survey import Layer


@dataclass(frozen=True)
class Consumers:
    """The operations after a layer.

    Attributes:
        added: Name of the computed tensor of the same shape that is added to the output, if the
            output is used for nothing else; or None.
        rectified: Whether a ReLU comes next (after that addition).
        pool: Window of the max pooling, without overlap, that comes next; (1, ...) if none does.
    """

    added: str | None
    rectified: bool
    pool: tuple[int, ...]


def find_consumers(
    network: ir.Model, layers: Sequence[Layer], feeds: Mapping[str, np.ndarray]
) -> dict[str, Consumers]:
    """Find the consumers of each layer, by the name of its output.

    Args:
        network: The network.
        layers: Some of its layers.
        feeds: Inputs to run it on once, for the shapes. Give two examples or more: only then does
            a tensor without a batch axis differ in shape from one with it.
    """
    values = values_by_name(network)
    additions = {layer.output: _addition(values[layer.output]) for layer in layers}
    names = {name for output, other in additions.items() if other for name in (output, other)}
    shapes = compute_shapes(network, sorted(names), feeds)
    return {
        layer.output: _consumers(
            values[layer.output],
            other if other and shapes[other] == shapes[layer.output] else None,
            len(layer.conv.k) if layer.conv else 0,
        )
        for layer in layers
        for other in [additions[layer.output]]
    }


def _consumers(value: ir.Value, added: str | None, axes: int) -> Consumers:
    rectified, pool = False, (1,) * axes
    node = _only_user(value)
    if added is not None and node is not None:
        node = _only_user(node.outputs[0])
    while node is not None and node.op_type in ("Relu", "MaxPool"):
        window = _window(node, axes)
        if window is None:
            break
        pool = tuple(a * b for a, b in zip(pool, window))
        rectified = rectified or node.op_type == "Relu"
        node = _only_user(node.outputs[0])
    return Consumers(added, rectified, pool)


def _addition(value: ir.Value) -> str | None:
    """Name the computed tensor that is added to a value, if the value has no other use."""
    node = _only_user(value)
    if node is None or node.op_type != "Add":
        return None
    others = [other for other in node.inputs if other is not None and other is not value]
    if len(others) != 1 or others[0].producer() is None or constant(others[0]) is not None:
        return None
    return str(others[0].name)


def _only_user(value: ir.Value) -> ir.Node | None:
    """Return the only node that uses a value, or the first if all that use it are Relu."""
    users = [use.node for use in value.uses()]
    alike = len(users) == 1 or all(user.op_type == "Relu" for user in users)
    return users[0] if users and alike and not value.is_graph_output() else None


def _window(node: ir.Node, axes: int) -> tuple[int, ...] | None:
    """Return the window of a pooling whose windows tile its input; of size 1 for a Relu."""
    if node.op_type == "Relu":
        return (1,) * axes
    attributes = node.attributes
    window = tuple(attributes.get_ints("kernel_shape", []))
    tiles = (
        tuple(attributes.get_ints("strides", [1] * axes)) == window
        and not any(attributes.get_ints("pads", [0]))
        and max(attributes.get_ints("dilations", [1])) == 1
        and not attributes.get_int("ceil_mode", 0)
        and attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
    return window if tiles and len(window) == axes else None
