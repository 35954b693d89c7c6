"""What happens to the output of a layer: shortcuts, activations, pooling, and who reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.networks.survey import Layer

# Operators through which channels keep their place.
PASSING = {
    "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSwish", "HardSigmoid", "Elu", "Selu",
    "Softplus", "Gelu", "Mish", "Tanh", "Dropout", "Identity", "Add", "Mul", "MaxPool",
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Flatten", "Reshape",
    "Squeeze", "Pad", "Resize", "BatchNormalization",
}  # fmt: skip


@dataclass(frozen=True)
class Surroundings:
    """What happens to the output of a layer.

    Attributes:
        added: Name of the tensor that it alone is added to, or None.
        rectified: Whether a ReLU comes next (after that addition).
        pool: Window of the max pooling, without overlap, that comes next; (1, ...) if none does.
        weight: (O, O), the Gram matrix of the kernels that read the output, and as much of the
            identity; None where nothing that can be read does.
    """

    added: str | None
    rectified: bool
    pool: tuple[int, ...]
    weight: np.ndarray | None


def surroundings(network: ir.Model, layer: Layer, layers: Sequence[Layer]) -> Surroundings:
    """Look at what happens to the output of a layer.

    Args:
        network: The network.
        layer: One of its layers.
        layers: All that can be read; those that read the output say what its channels weigh.
    """
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
    return Surroundings(added, rectified, pool, _weight(value, layer, layers))


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


def _weight(value: ir.Value, layer: Layer, layers: Sequence[Layer]) -> np.ndarray | None:
    assert layer.conv is not None
    O = layer.conv.O
    readers = {reader.output: reader.conv for reader in layers}
    total = np.zeros((O, O))
    for node in _readers(value):
        conv = readers.get(str(node.outputs[0].name))
        if conv is None or conv.groups > 1 or conv.I % O:
            continue
        # A linear layer behind a Flatten reads each channel at several places.
        rows = conv.kernel.astype(np.float64).reshape(conv.O, O, -1)
        total += np.einsum("oik,ojk->ij", rows, rows, optimize=True)
    mean = np.trace(total) / O
    return total / mean + np.eye(O) if mean > 0 else None


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """Give the nodes that read a value's channels in their places, through what passes them on."""
    waiting, seen = [value], {value}
    while waiting:
        for use in waiting.pop().uses():
            after = use.node.outputs[0]
            if use.node.op_type not in PASSING:
                if use.idx == 0:
                    yield use.node
            elif after not in seen:
                seen.add(after)
                waiting.append(after)
