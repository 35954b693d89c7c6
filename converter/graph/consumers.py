"""What happens to the output of a layer: shortcuts, activations, pooling."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from converter.graph.survey import Layer


@dataclass(frozen=True)
class Consumers:
    """What happens to the output of a layer.

    Attributes:
        added: Name of the tensor that it alone is added to, or None.
        rectified: Whether a ReLU comes next (after that addition).
        pool: Window of the max pooling, without overlap, that comes next; (1, ...) if none does.
    """

    added: str | None
    rectified: bool
    pool: tuple[int, ...]


def find_consumers(network: ir.Model, layer: Layer) -> Consumers:
    """Look at what happens to the output of a layer."""
    value = next(v for node in network.graph for v in node.outputs if v.name == layer.output)
    axes = len(layer.conv.k) if layer.conv else 0
    added, rectified, pool = None, False, (1,) * axes
    following = _follower(value)
    if following is not None and following.op_type == "Add":
        others = [v for v in following.inputs if v is not None and v is not value]
        if len(others) == 1 and others[0].producer() is not None:
            added = str(others[0].name)
            following = _follower(following.outputs[0])
    while following is not None and following.op_type in ("Relu", "MaxPool"):
        window = _window(following, axes)
        if window is None:
            break
        pool = tuple(a * b for a, b in zip(pool, window))
        rectified = rectified or following.op_type == "Relu"
        following = _follower(following.outputs[0])
    return Consumers(added, rectified, pool)


def _follower(value: ir.Value) -> ir.Node | None:
    """Give the node that alone uses a value, or one of several that are all Relu."""
    users = [use.node for use in value.uses()]
    alike = len(users) == 1 or all(user.op_type == "Relu" for user in users)
    return users[0] if users and alike and not value.is_graph_output() else None


def _window(node: ir.Node, axes: int) -> tuple[int, ...] | None:
    """Give the window of a pooling whose windows tile its input; of size 1 for a Relu."""
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
