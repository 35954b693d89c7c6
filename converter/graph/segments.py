"""A network in segments, so that two versions of it can run side by side, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from converter.data.data import Arrays
from converter.decomposition.conv import Chain
from converter.graph.network import open_session, subgraph_nodes, values_by_name
from converter.graph.rewrite import rewrite
from converter.runtime.ort import run


@dataclass(frozen=True)
class Segment:
    """The part of a network between two boundaries.

    Attributes:
        inputs: Names of the values that are alive at the boundary before it.
        outputs: Names of the values that are alive at the boundary after it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SegmentedModel:
    """A network with boundaries in front of some of its nodes.

    A value is alive at a boundary if a node before it computes the value, or the caller feeds it,
    and a node after it uses the value.

    Attributes:
        model: The network.
        segments: In graph order; the nodes after the last boundary are in none.
    """

    model: ir.Model = field(repr=False)
    segments: tuple[Segment, ...]

    @property
    def boundary_values(self) -> list[str]:
        """Names of the values that are alive at some boundary and are no inputs of the network."""
        network_inputs = set(self.segments[0].inputs)
        names = (name for segment in self.segments for name in segment.outputs)
        return list(dict.fromkeys(name for name in names if name not in network_inputs))


def segment(model: ir.Model, boundaries: Sequence[str]) -> SegmentedModel:
    """Divide a network into segments.

    Args:
        model: The network.
        boundaries: Names of node outputs, in graph order. Each segment ends in front of the node
            that computes one of them.
    """
    nodes = list(model.graph)
    positions = {str(value.name): n for n, node in enumerate(nodes) for value in node.outputs}
    last_use = {
        str(value.name): n
        for n, node in enumerate(nodes)
        for user in (node, *subgraph_nodes(node))
        for value in user.inputs
        if value is not None
    }
    inputs = (str(value.name) for value in model.graph.inputs if not value.is_initializer())
    segments: list[Segment] = []
    start, alive = 0, tuple(inputs)
    for boundary in boundaries:
        end = positions[boundary]
        computed = (str(value.name) for node in nodes[start:end] for value in node.outputs)
        after = tuple(name for name in (*alive, *computed) if last_use.get(name, -1) >= end)
        segments.append(Segment(alive, after))
        start, alive = end, after
    return SegmentedModel(model, tuple(segments))


def run_segment(
    segmented: SegmentedModel,
    number: int,
    batches: Sequence[Arrays],
    threads: int,
    chains: Mapping[str, tuple[str, Chain]] | None = None,
) -> list[Arrays]:
    """Run one segment.

    Args:
        segmented: The network.
        number: Index of the segment.
        batches: Values at the boundary before it, batch by batch; the network's inputs for the
            first segment.
        threads: Threads of onnxruntime.
        chains: Convolutions of the segment to replace, as for ``rewrite``.

    Returns:
        Values at the boundary after it, batch by batch.
    """
    boundary = segmented.segments[number]
    computed = [name for name in boundary.outputs if name not in boundary.inputs]
    passed = [name for name in boundary.outputs if name in boundary.inputs]
    if not computed or not batches:
        return [{name: arrays[name] for name in passed} for arrays in batches]
    network = _extract(segmented.model, boundary.inputs, computed, batches[0])
    session = open_session(rewrite(network, chains or {}), threads)
    names = [value.name for value in session.get_inputs()]
    return [
        {name: arrays[name] for name in passed}
        | run(session, {name: arrays[name] for name in names})
        for arrays in batches
    ]


def after_boundary(
    segmented: SegmentedModel, number: int, names: Sequence[str], sample: Arrays
) -> ir.Model:
    """Return the part of a network after the boundary at the end of a segment.

    Args:
        segmented: The network.
        number: Index of the segment.
        names: Names of the outputs of the part; nodes after the boundary compute them.
        sample: Values at the boundary, which give the inputs their types.
    """
    return _extract(segmented.model, segmented.segments[number].outputs, names, sample)


def computed_after(segmented: SegmentedModel, boundary: str, names: Sequence[str]) -> list[str]:
    """Return those of ``names`` that the node of ``boundary``, or a node after it, computes."""
    nodes = list(segmented.model.graph)
    first = next(n for n, node in enumerate(nodes) if boundary in [v.name for v in node.outputs])
    after = {str(value.name) for node in nodes[first:] for value in node.outputs}
    return [name for name in names if name in after]


def _extract(
    model: ir.Model, input_names: Sequence[str], output_names: Sequence[str], sample: Arrays
) -> ir.Model:
    """Return the part of a network between some values, its inputs typed as ``sample``."""
    values = values_by_name(model)
    graph = ir.convenience.extract(
        model.graph,
        [values[name] for name in input_names],
        [values[name] for name in output_names],
    )
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
            continue
        array = sample[str(value.name)]
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape([None] * array.ndim)
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version or 0, functions=functions)
