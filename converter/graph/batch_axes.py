"""Networks whose examples are not along the first axis of every input and output.

A recurrent state (2, N, 64) has its batch along the second axis, and all examples share a sample
rate or a table. Everything else expects the batch in front. So such a network gets a Transpose, or
a Gather of the first example, behind these inputs, and a Transpose before such outputs. They are
taken out again before the network is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

KEY = "flatconv.shape"  # metadata of a changed input or output: its own shape and batch axis
SHARED = "shared"  # in place of the axis: the same for all examples
# What ends the names of the values and nodes that are put in.
INNER, FIRST = "::own_layout", "::first"
Dim: TypeAlias = "int | str | None"


def examples_first(model: ir.Model) -> ir.Model:
    """Return the network with the examples along the first axis of all inputs and outputs.

    Args:
        model: Left as it is; it is returned if its batch is in front everywhere.
    """
    axes = _input_axes([_dims(value) for value in _fed(model)])
    batch = _batch(model, axes)
    last = [_output_axis(_dims(value), batch) for value in model.graph.outputs]
    if all(axis == 0 for axis in (*axes, *last)):
        return model
    copy = model.clone()
    for value, axis in zip(_fed(copy), axes):
        if axis != 0:
            _change_input(copy.graph, value, axis, batch)
    for number, (value, axis) in enumerate(zip(list(copy.graph.outputs), last)):
        if axis != 0 and value.producer() is not None:
            copy.graph.outputs[number] = _change_output(copy.graph, value, axis)
    return copy


def as_given(model: ir.Model) -> ir.Model:
    """Return the network with the inputs and outputs that it had before ``examples_first``."""
    if not any(KEY in value.metadata_props for value in (*_fed(model), *model.graph.outputs)):
        return model
    copy = model.clone()
    nodes = {str(node.name): node for node in copy.graph}
    for value in [*_fed(copy), *copy.graph.outputs]:
        if KEY not in value.metadata_props:
            continue
        value.shape, node = _own_shape(value), nodes.get(f"{value.name}{INNER}")
        if node is not None:  # else nothing used the input
            _remove(copy.graph, node)
            copy.graph.initializers.pop(f"{value.name}{FIRST}", None)
    return copy


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    """Take out a node that was put in; quantization may have put others beside it."""
    inner, changed = node.inputs[0], node.outputs[0]
    assert inner is not None
    name, shape, is_output = changed.name, changed.shape, changed.is_graph_output()
    changed.replace_all_uses_with(inner, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        inner.name, inner.shape = name, shape


def batch_axis(value: ir.Value) -> int | None:
    """Return the axis along which a caller gives the examples; None if all share the value."""
    if KEY not in value.metadata_props:
        return 0
    axis = value.metadata_props[KEY].partition(";")[0]
    return None if axis == SHARED else int(axis)


def _fed(model: ir.Model) -> list[ir.Value]:
    """List the inputs that a caller feeds and whose shape is known."""
    return [
        value
        for value in model.graph.inputs
        if value.name not in model.graph.initializers and value.shape is not None
    ]


def _dims(value: ir.Value) -> list[Dim]:
    """List the sizes of a value: a number, the name of a free size, or None for one without."""
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape or ()]


def _input_axes(shapes: Sequence[Sequence[Dim]]) -> list[int | None]:
    """Find the batch axis of each input, of their shapes alone; None where there is none.

    The batch is a free size in front of an input. If there is none, it is the first size in front
    that all inputs of two axes and more have, or else that of the first input.
    """
    fronts = [shape[0] for shape in shapes if shape]
    free: set[Dim] = {size for size in fronts if not isinstance(size, int)}
    common = [size for size in fronts if all(size in s for s in shapes if len(s) > 1)]
    sizes = free or set((common or fronts)[:1])
    return [_axis(shape, sizes) for shape in shapes]


def _axis(shape: Sequence[Dim], sizes: set[Dim]) -> int | None:
    """Return the first axis if it may be the batch, else the only one that may be."""
    if not shape:
        return None
    if shape[0] in sizes or not isinstance(shape[0], int):
        return 0
    fitting = [axis for axis, size in enumerate(shape) if size in sizes]
    return fitting[0] if len(fitting) == 1 else None


def _batch(model: ir.Model, axes: Sequence[int | None]) -> Dim:
    """Return the batch size of a network, or its name."""
    for value, axis in zip(_fed(model), axes):
        if axis is not None:
            return _dims(value)[axis]
    return None


def _output_axis(shape: Sequence[Dim], batch: Dim) -> int:
    """Return the only axis of the batch if it is not the first one, else 0."""
    fitting = [axis for axis, size in enumerate(shape) if size == batch]
    return fitting[0] if batch is not None and len(fitting) == 1 else 0


def _change_input(graph: ir.Graph, value: ir.Value, axis: int | None, batch: Dim) -> None:
    """Put the node behind an input that gives its own layout."""
    dims = _dims(value)
    _keep_shape(value, SHARED if axis is None else str(axis), dims)
    if axis is None:
        first = ir.Value(name=f"{value.name}{FIRST}", const_value=ir.tensor(np.array(0)))
        graph.register_initializer(first)
        node = ir.node("Gather", [value, first], {"axis": 0}, name=f"{value.name}{INNER}")
        value.shape = ir.Shape([batch, *dims])
    else:
        back = [*range(1, axis + 1), 0, *range(axis + 1, len(dims))]
        node = ir.node("Transpose", [value], {"perm": back}, name=f"{value.name}{INNER}")
        value.shape = ir.Shape([dims[axis], *dims[:axis], *dims[axis + 1 :]])
    inner = node.outputs[0]
    inner.name, inner.type, inner.shape = f"{value.name}{INNER}", value.type, ir.Shape(dims)
    uses = [use for use in value.uses() if use.node is not node]
    for user, index in uses:
        user.replace_input_with(index, inner)
    graph.insert_before(graph[0], node)


def _change_output(graph: ir.Graph, value: ir.Value, axis: int) -> ir.Value:
    """Put the node before an output that brings the examples to the front; return the new one."""
    dims, name = _dims(value), str(value.name)
    value.name = f"{name}{INNER}"
    front = [axis, *(n for n in range(len(dims)) if n != axis)]
    node = ir.node("Transpose", [value], {"perm": front}, name=f"{name}{INNER}")
    output = node.outputs[0]
    output.name, output.type = name, value.type
    output.shape = ir.Shape([dims[n] for n in front])
    _keep_shape(output, str(axis), dims)
    graph.append(node)
    return output


def _keep_shape(value: ir.Value, axis: str, dims: Sequence[Dim]) -> None:
    value.metadata_props[KEY] = ";".join([axis, *("" if d is None else str(d) for d in dims)])


def _own_shape(value: ir.Value) -> ir.Shape:
    """Read back, and forget, the shape of a changed input or output."""
    sizes = value.metadata_props.pop(KEY).split(";")[1:]
    return ir.Shape([int(n) if n.isdecimal() else n or None for n in sizes])
