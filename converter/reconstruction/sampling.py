"""Layers sampled one after another, in the original and in the converted network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.cache import digest
from converter.data.data import Arrays, Data
from converter.decomposition.conv import Chain
from converter.graph.consumers import find_consumers
from converter.graph.external import modification_times
from converter.graph.network import MAX_BATCH, compute_shapes, inputs
from converter.graph.segments import SegmentedModel, run_segment, segment
from converter.graph.survey import Layer
from converter.processes import ProcessGroup, Resources
from converter.reconstruction.layer_sample import (
    LayerSample,
    OriginalSample,
    original_bytes,
    sample_layer,
    sample_original,
)

MIN_IMAGES = 16  # used even with little memory
MIN_DRAFT_IMAGES = 512  # used with little effort, too, if there are as many
FLOAT32_BYTES = 4
KEPT_SHARE = 1 / 8  # of the memory, for samples of the original network
Originals = Mapping[str, list[OriginalSample]]


@dataclass(frozen=True)
class _Batches:
    """The sample inputs of this process.

    Attributes:
        count: Number of sample inputs in all processes.
        indices: Indices of the sample inputs of each batch.
        inputs: Network inputs of each batch.
    """

    count: int
    indices: list[np.ndarray]
    inputs: list[Arrays]


@dataclass(frozen=True)
class _Activations:
    """The tensors at one boundary.

    Attributes:
        tensors: By name, for each batch.
        segments: How many segments have been run.
    """

    tensors: list[Arrays]
    segments: int = 0


class LayerSampler:
    """Samples layers in graph order, in the original and in the converted network.

    The original network runs only as far as samples of it are missing.

    Attributes:
        key: Digest of everything that samples and solutions depend on; the same in all processes.
        originals: Samples of the original network by layer name, one for each batch; as far as
            the memory allows, from the last layer on.
    """

    def __init__(
        self,
        network: ir.Model,
        layers: Sequence[Layer],
        todo: Sequence[Layer],
        data: Data,
        resources: Resources,
        known: Mapping[str, Originals],
    ) -> None:
        """Start in front of the first layer.

        Args:
            network: The original network.
            layers: All of its layers.
            todo: The layers to sample, in graph order.
            data: Sample inputs; with little memory or effort, fewer are used.
            resources: Memory, seed, effort, threads and the processes that share the work.
            known: Samples of the original network by ``key``.
        """
        self._model = segment(network, [layer.output for layer in todo])
        self._batches = _choose_batches(network, self._model, data, resources)
        batch_size = inputs(network)[0].shape[0] or 2  # see find_consumers
        feeds = data.read(np.arange(batch_size) % data.count)
        self._consumers = find_consumers(network, todo, feeds)
        self._todo, self._resources = todo, resources
        self._numbers = {layer.name: number for number, layer in enumerate(layers)}
        self._kept = _names_to_keep(todo, resources)
        self._original = self._converted = _Activations(self._batches.inputs)
        self.key = _digest(self._model.model, self._batches, resources)
        self.originals: dict[str, list[OriginalSample]] = dict(known.get(self.key, {}))

    def sample(self, number: int, chains: Mapping[str, Chain]) -> LayerSample | None:
        """Sample a layer on the batches of all processes; None except in the first process.

        Args:
            number: Its index in ``todo``; it never falls.
            chains: The layers before it in the converted network, by name.
        """
        layer = self._todo[number]
        parts = self.originals.get(layer.name)
        if parts is None:
            self._original = self._run_up_to(number, self._original, {})
            parts = self._sample_original(layer)
            if layer.name in self._kept:
                self.originals[layer.name] = parts
        if self._converted.segments == 0 and self._original.segments == 1:
            self._converted = self._original  # nothing differs in front of the first layer
        self._converted = self._run_up_to(number, self._converted, chains)
        consumers = self._consumers[layer.output]
        return _gathered(
            self._resources.group,
            [
                sample_layer(layer, consumers, part, tensors)
                for part, tensors in zip(parts, self._converted.tensors)
            ],
        )

    def _sample_original(self, layer: Layer) -> list[OriginalSample]:
        """Sample a layer in the original network."""
        seed, number = self._resources.seed, self._numbers[layer.name]
        return [
            sample_original(
                layer,
                self._consumers[layer.output],
                tensors,
                len(indices) / self._batches.count,
                self._resources,
                np.random.default_rng((seed, number, int(indices[0]))),
            )
            for indices, tensors in zip(self._batches.indices, self._original.tensors)
        ]

    def _run_up_to(
        self, number: int, state: _Activations, chains: Mapping[str, Chain]
    ) -> _Activations:
        """Run a network up to the boundary in front of a layer, with chains for layers."""
        while state.segments <= number:
            last = self._todo[state.segments - 1] if state.segments else None
            replaced = {last.output: (last.name, chains[last.name])} if last and chains else {}
            tensors = run_segment(
                self._model, state.segments, state.tensors, self._resources.threads, replaced
            )
            state = _Activations(tensors, state.segments + 1)
        return state


def _choose_batches(
    network: ir.Model, model: SegmentedModel, data: Data, resources: Resources
) -> _Batches:
    """Choose as many sample inputs as the memory allows at the widest boundary, and split them.

    Half of the memory is for activations. At a boundary, four copies of them may be alive.
    """
    batch_size = inputs(network)[0].shape[0]
    fitting = int(resources.memory_bytes / 2 / (4 * widest_bytes(network, model, data)))
    wanted = max(resources.effort * data.count, min(data.count, MIN_DRAFT_IMAGES))
    wanted = math.ceil(wanted / (batch_size or 1))
    count = max(min(fitting, wanted), MIN_IMAGES) * (batch_size or 1)
    images = data.sample(count, resources.seed).whole_batches(batch_size)
    indices = list(resources.group.shard(images.batch_indices(batch_size or MAX_BATCH)))
    return _Batches(images.count, indices, [images.read(part) for part in indices])


def widest_bytes(network: ir.Model, model: SegmentedModel, data: Data) -> int:
    """Return the bytes of the tensors that are alive at the widest boundary.

    For one example, or for one batch of a network that insists on its size.
    """
    batch_size = inputs(network)[0].shape[0]
    feeds = data.read(np.arange(batch_size or 1) % data.count)
    shapes = compute_shapes(network, model.boundary_values, feeds)
    widest = max(
        sum(FLOAT32_BYTES * math.prod(shapes[name]) for name in part.outputs if name in shapes)
        for part in model.segments
    )
    return max(widest, 1)


def _digest(network: ir.Model, batches: _Batches, resources: Resources) -> str:
    key = digest(
        ir.to_proto(network).SerializeToString(),
        *modification_times(network),
        resources.group.gather([digest(list(feeds.items())) for feeds in batches.inputs]),
        resources.seed,
        resources.device,
        resources.solver,
        resources.memory_bytes,
        resources.threads,
        resources.effort,
    )
    return resources.group.broadcast(lambda: key)


def _names_to_keep(todo: Sequence[Layer], resources: Resources) -> set[str]:
    """Choose the layers whose samples of the original network are kept.

    They are the last ones that fit: the original network then runs only in front of them again.
    """
    names, free_bytes = set(), KEPT_SHARE * resources.memory_bytes
    for layer in reversed(todo):
        if layer.conv is not None:
            free_bytes -= original_bytes(layer.conv, resources)
            if free_bytes < 0:
                break
        names.add(layer.name)
    return names


def _gathered(group: ProcessGroup, parts: list[LayerSample]) -> LayerSample | None:
    """Concatenate the samples of all processes; a function, so that its parts are freed."""
    all_parts = group.gather(parts)
    return LayerSample.concatenated(all_parts) if all_parts else None
