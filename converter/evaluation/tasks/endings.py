"""What the operators at the end of a network say about its outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays
from converter.errors import ConverterError
from converter.evaluation.tasks.channels import Channels, channel_axis
from converter.graph.network import (
    attributes,
    compute_shapes_of_batches,
    constant,
    in_onnx_domain,
    inputs,
    values_by_name,
)

RESHAPES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
LOOKED_THROUGH = RESHAPES | {"Cast", "Dropout", "Identity", "Transpose"}
CHANNELS_FIRST = {"Conv", "ConvInteger", "ConvTranspose", "QLinearConv"}
CHANNELS_LAST = {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}
ENDS = CHANNELS_FIRST | CHANNELS_LAST | {"GRU", "LSTM", "RNN"}
BOUNDED = {"LogSoftmax", "Sigmoid", "Softmax"}  # their values have one unit
MAX_NODES = 200  # that are looked at behind an output

Shapes = Mapping[str, tuple[int, ...]]


def last_operator(value: ir.Value | None) -> str:
    """Return the operator that computes a value; those that move or cast are looked through.

    Returns:
        The operator's name, or "" for an input, a weight, or an operator that is not ONNX's.
    """
    node = None if value is None else value.producer()
    while node is not None and node.op_type in LOOKED_THROUGH and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return "" if node is None or not in_onnx_domain(node) else node.op_type


@dataclass(frozen=True)
class SmallRun:
    """Shapes of a network's values for two examples.

    Attributes:
        shapes: Of inputs, outputs and the values between them and the last layers, by name. There
            are none if the network does not run on zeros.
        batch_axes: The axis of the examples, by output name.
    """

    shapes: Shapes
    batch_axes: Mapping[str, int]

    @classmethod
    def of(
        cls, network: ir.Model, outputs: Sequence[str], feeds_shapes: Mapping[str, tuple[int, ...]]
    ) -> SmallRun:
        """Run a network on two examples of zeros, and on one to see which axes shrink.

        Args:
            network: The network.
            outputs: Names of its values that count as outputs.
            feeds_shapes: Shapes of its inputs by name, for any number of examples.
        """
        values = values_by_name(network)
        behind = {name for output in outputs for name in _names_behind(values.get(output))}
        names = sorted((behind | set(outputs)) & set(values))
        two, one = (_zeros(network, feeds_shapes, count) for count in (2, 1))
        fixed = next((array.shape[0] for array in two.values() if array.ndim > 1), 1)
        try:
            shapes, of_one = compute_shapes_of_batches(network, names, (two, one))
        except ConverterError:  # such as zeros where a length is expected
            return cls({}, dict.fromkeys(outputs, 0))
        shapes |= {name: array.shape for name, array in two.items()}
        axes = {n: _batch_axis(shapes[n], of_one[n], fixed) for n in outputs if n in of_one}
        return cls(shapes, dict.fromkeys(outputs, 0) | axes)


def find_channels(network: ir.Model, outputs: Arrays, run: SmallRun) -> dict[str, Channels]:
    """Find where outputs have their examples and channels, and which channels share a unit.

    The axis of the channels is that of the convolution, product or Concat that an output comes
    from; else it is guessed from the shape. Channels share a unit if they come from one input of
    the last Concat along their axis, or from one Softmax or Sigmoid.

    Args:
        network: The original network.
        outputs: Its values for sample inputs, by name.
        run: Shapes of its values.
    """
    values = values_by_name(network)
    return {
        name: _channels_of(values.get(name), array.shape, run) for name, array in outputs.items()
    }


def words(name: str) -> set[str]:
    """Return the words of a name in lower case: ``{"class", "logits"}`` of ``classLogits_1``."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return {word for word in re.split(r"[^a-z]+", spaced.lower()) if word}


def _zeros(network: ir.Model, shapes: Mapping[str, tuple[int, ...]], count: int) -> Arrays:
    """Return zeros for the inputs of a network, ``count`` examples where it takes any number."""
    declared = {str(value.name): value.shape for value in network.graph.inputs}
    free = {n: [_symbol(dim) for dim in shape or ()] for n, shape in declared.items()}
    batch = {symbols[0] for symbols in free.values() if symbols} - {None}
    feeds = {}
    for item in inputs(network):
        sizes = [
            count if (axis == 0 and item.shape[0] is None) or symbol in batch else size
            for axis, (symbol, size) in enumerate(zip(free[item.name], shapes[item.name]))
        ]
        feeds[item.name] = np.zeros(sizes, item.dtype)
    return feeds


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value


def _batch_axis(two: tuple[int, ...], one: tuple[int, ...], fixed: int) -> int:
    """Find the axis of the examples; ``fixed`` is how many there are if that cannot change."""
    shrinking = [axis for axis, (a, b) in enumerate(zip(two, one)) if a != b]
    if shrinking:
        return shrinking[0]
    return 1 if len(two) > 2 and two[0] != fixed == two[1] else 0


@dataclass(frozen=True)
class _Origin:
    """Where an axis of an output comes from.

    Attributes:
        channels: Whether it is the axis of the channels there.
        sizes: The sizes that a Concat joins along it.
        single: Whether it is not, and there is one channel.
    """

    channels: bool = False
    sizes: tuple[int, ...] = ()
    single: bool = False


def _channels_of(value: ir.Value | None, shape: tuple[int, ...], run: SmallRun) -> Channels:
    batch_axis = 0 if value is None else run.batch_axes.get(str(value.name), 0)
    guess = channel_axis(shape, batch_axis)
    if guess is None:
        return Channels(None, batch_axis)
    others = [axis for axis in range(len(shape)) if axis not in (guess, batch_axis)]
    origins = {axis: _origin(value, axis, run.shapes) for axis in (guess, *others)}
    known = [a for a, o in origins.items() if o.channels and sum(o.sizes) in (0, shape[a])]
    if not known and all(origin.single for origin in origins.values()):
        return Channels(None, batch_axis)
    axis = known[0] if known else guess
    sizes = origins[axis].sizes if known else ()
    if not sizes and last_operator(value) in BOUNDED:
        sizes = (shape[axis],)
    return Channels(axis, batch_axis, _consecutive(sizes))


def _origin(value: ir.Value | None, axis: int, shapes: Shapes) -> _Origin:
    """Follow an axis of a value back to the layer or Concat that it comes from."""
    while value is not None:
        node = value.producer()
        if node is None or not in_onnx_domain(node) or str(value.name) not in shapes:
            break
        shape = shapes[str(value.name)]
        if node.op_type in CHANNELS_FIRST | CHANNELS_LAST:
            own = 1 if node.op_type in CHANNELS_FIRST else len(shape) - 1
            return _Origin(axis == own, single=axis != own and shape[own] == 1)
        if node.op_type == "Concat" and attributes(node)["axis"] % len(shape) == axis:
            parts = [shapes.get(str(item.name)) for item in node.inputs if item is not None]
            sizes = tuple(0 if part is None else part[axis] for part in parts)
            return _Origin(len(sizes) > 1, sizes)
        value, axis = _step(node, axis, shape, shapes)
    return _Origin()


def _step(
    node: ir.Node, axis: int, shape: tuple[int, ...], shapes: Shapes
) -> tuple[ir.Value | None, int]:
    """Step from the output of a node, of ``shape``, to the input in which ``axis`` lives on."""
    sources = [
        item for item in node.inputs if item is not None and str(item.name) in shapes
    ]  # constants have no shapes here
    if not sources:
        return None, axis
    source = sources[0]
    before = shapes[str(source.name)]
    if node.op_type == "Transpose":
        order = attributes(node).get("perm", list(reversed(range(len(shape)))))
        return source, order[axis]
    if node.op_type in RESHAPES:
        for number, size in enumerate(before):
            if size == shape[axis] and prod(before[:number]) == prod(shape[:axis]):
                return source, number
        return None, axis
    same = [item for item in sources if shapes[str(item.name)] == shape]
    if same:
        return same[0], axis
    kept = len(before) == len(shape) and before[axis] == shape[axis]
    return (source, axis) if kept else (None, axis)


def _names_behind(value: ir.Value | None) -> set[str]:
    """Name the values behind an output up to its last layers, without constants."""
    names: set[str] = set()
    todo = [] if value is None else [value]
    while todo and len(names) < MAX_NODES:
        item = todo.pop(0)
        node = item.producer()
        if str(item.name) in names or node is None or constant(item) is not None:
            continue
        names.add(str(item.name))
        if node.op_type not in ENDS:
            todo += [source for source in node.inputs if source is not None]
    return names


def _consecutive(sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the indices of consecutive groups of ``sizes``."""
    ends = np.cumsum(sizes).tolist()
    return tuple(tuple(range(end - size, end)) for size, end in zip(sizes, ends))
