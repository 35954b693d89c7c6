"""A network walked in segments, so that two versions of it run side by side, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from converter.data.data import Arrays
from converter.decomposition.conv import Chain
from converter.graph.network import open_session, weights_folder
from converter.graph.rewrite import rewrite
from converter.runtime.ort import run


@dataclass(frozen=True)
class Segment:
    """The nodes between two cuts of a graph.

    Attributes:
        nodes: In graph order; all but the first segment begin with the node at the cut.
        inputs: Values that it takes: all that is alive at the cut before it.
        outputs: Values that are alive at the cut after it.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SegmentedModel:
    """A network cut in front of some of its nodes.

    Attributes:
        segments: In order; what follows the last cut is left out.
        model: The network, for its weights and operator sets.
        folder: Of the files that hold weights, or None where all are in ``model``.
    """

    segments: tuple[Segment, ...]
    model: onnx.ModelProto = dataclasses.field(repr=False)
    folder: Path | None = None

    @property
    def values(self) -> list[str]:
        """Names of all that is alive at some cut and not an input."""
        inputs = set(self.segments[0].inputs)
        names = (name for segment in self.segments for name in segment.outputs)
        return list(dict.fromkeys(name for name in names if name not in inputs))


def cut(model: ir.Model, marks: Sequence[str]) -> SegmentedModel:
    """Cut ``model`` in front of each node that gives one of ``marks``, which are in graph order."""
    proto = ir.to_proto(model)
    nodes = list(proto.graph.node)
    places = {name: n for n, node in enumerate(nodes) for name in node.output}
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value.name for value in proto.graph.input if value.name not in weights]
    last_use = {name: n for n, node in enumerate(nodes) for name in _taken(node)}
    segments = []
    start, alive = 0, tuple(inputs)
    for mark in marks:
        end = places[mark]
        known = [*alive, *(name for node in nodes[start:end] for name in node.output)]
        after = tuple(name for name in known if last_use.get(name, -1) >= end)
        segments.append(Segment(tuple(nodes[start:end]), alive, after))
        start, alive = end, after
    return SegmentedModel(tuple(segments), proto, weights_folder(model))


def advance(
    walk: SegmentedModel,
    number: int,
    state: Sequence[Arrays],
    threads: int,
    chains: Mapping[str, tuple[str, Chain]] | None = None,
) -> list[Arrays]:
    """Run one segment.

    Args:
        walk: The network.
        number: Which segment.
        state: What was alive at the cut before it, batch by batch; the network's inputs for the
            first segment.
        threads: Of onnxruntime.
        chains: Convolutions of the segment to replace, as ``rewrite`` takes them.

    Returns:
        What is alive at the cut after it, batch by batch.
    """
    segment = walk.segments[number]
    made = [name for name in segment.outputs if name not in segment.inputs]
    carried = [name for name in segment.outputs if name in segment.inputs]
    session = None
    if made and state:
        model = rewrite(_model(walk, segment, made, state[0]), chains or {})
        session = open_session(model, threads)
    after = []
    for arrays in state:
        kept = {name: arrays[name] for name in carried}
        if session is not None:
            kept |= run(session, {value.name: arrays[value.name] for value in session.get_inputs()})
        after.append(kept)
    return after


def _model(walk: SegmentedModel, segment: Segment, made: Sequence[str], sample: Arrays) -> ir.Model:
    """Make a network of a segment, whose inputs are typed as ``sample``."""
    used = {name for node in segment.nodes for name in _taken(node)}
    graph = onnx.helper.make_graph(
        list(segment.nodes),
        "segment",
        [
            onnx.helper.make_tensor_value_info(
                name,
                onnx.helper.np_dtype_to_tensor_dtype(sample[name].dtype),
                [None] * sample[name].ndim,
            )
            for name in segment.inputs
            if name in used
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in made],
        initializer=[t for t in walk.model.graph.initializer if t.name in used],
    )
    model = ir.from_proto(
        onnx.helper.make_model(
            graph,
            opset_imports=walk.model.opset_import,
            ir_version=walk.model.ir_version,
            functions=walk.model.functions,
        )
    )
    if walk.folder is not None:
        ir.external_data.set_base_dir(model.graph, walk.folder)
    return model


def _taken(node: onnx.NodeProto) -> Iterable[str]:
    """Names that a node takes, those that its subgraphs take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _taken(inner)
