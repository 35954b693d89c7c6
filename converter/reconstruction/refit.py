"""Layers refit in graph order: each for the inputs that the converted layers before it produce."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from converter.cache import digest, load_arrays, packed, store_arrays, unpacked
from converter.data.data import Arrays, Data
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.form import Form, Rank
from converter.graph.consumers import Consumers, find_consumers
from converter.graph.external import modification_times
from converter.graph.network import MAX_BATCH, compute_shapes, inputs
from converter.graph.segments import SegmentedModel, run_segment, segment
from converter.graph.survey import Layer
from converter.processes import ProcessGroup, Resources
from converter.reconstruction.layer_sample import LayerSample, sample_layer
from converter.reconstruction.regression import solve_for_sample

MIN_IMAGES = 16  # used even with little memory
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Refit:
    """Layers that were refit in graph order.

    Attributes:
        key: Digest of the network, the sample inputs and the settings.
        chosen: Names of form and rank by layer name, in graph order.
        chains: By layer name.
        errors: Relative errors of the responses, by layer name.
    """

    key: str
    chosen: dict[str, tuple[str, Rank]]
    chains: dict[str, Chain]
    errors: dict[str, float]

    def start_of(self, layer: str, form: Form) -> Chain | None:
        """Return the chain of a layer, if it is of a form that can start from it."""
        known = layer in self.chosen and self.chosen[layer][0] == form.name
        return self.chains[layer] if known and form.warm_start else None


def refit_layers(
    network: ir.Model,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[Form, Rank]],
    data: Data,
    resources: Resources = Resources(),
    before: Refit | None = None,
) -> Refit:
    """Decompose the chosen layers in graph order, each for its inputs in the converted network.

    For inputs x of the converted network and outputs y of the original, the best kernel without
    a restriction is W* = (E[y x^T] + l W) (E[x x^T] + l I)^-1, with a ridge l toward the trained
    kernel W; its chain is solved under the metric E[x x^T]. The last convolution before an
    addition also corrects the error of the other branch. Before a ReLU, outputs that the original
    has below zero count only as far as they are above zero (a one-sided form of arXiv 1505.06798,
    section 3.2); before max pooling, as far as they are above the maximum of their window. It is
    least squares throughout: no labels, no gradient descent.

    All processes of ``resources.group`` call this with the same arguments. They share the sample
    inputs, and the first solves.

    Args:
        network: The original network.
        layers: Its convolutions, in graph order.
        chosen: Form and rank by layer name.
        data: Sample inputs.
        resources: With little memory, fewer images are used. From the cache come the results of
            all layers up to the first that differs from an earlier call.
        before: The same network at other forms or ranks. Layers before the first that differs are
            taken from it; the CP forms start from its chains.
    """
    todo = [layer for layer in layers if layer.name in chosen]
    model = segment(network, [layer.output for layer in todo])
    batches = _choose_batches(network, model, data, resources)
    batch_size = inputs(network)[0].shape[0] or 2  # see find_consumers
    state = _Activations(batches.inputs, batches.inputs)
    consumers = find_consumers(network, todo, data.read(np.arange(batch_size) % data.count))
    refit = Refit(_first_key(network, model, batches, resources), {}, {}, {})
    equal = 0 if before is None else _count_equal(before, refit.key, todo, chosen)
    key = refit.key
    for number, layer in enumerate(todo):
        form, rank = chosen[layer.name]
        start = before.start_of(layer.name, form) if before else None
        key = digest(key, layer.name, form.name, rank, start and list(_arrays(start).values()))
        if before is not None and number < equal:
            result: tuple[Chain, float] | None
            result = before.chains[layer.name], before.errors[layer.name]
        else:
            result = _load(layer.conv, key, resources)
        if result is None:
            while state.segments <= number:
                last = todo[state.segments - 1] if state.segments else None
                replaced = {last.output: (last.name, refit.chains[last.name])} if last else {}
                state = state.after_next_segment(model, replaced, resources.threads)
            sample = _sample(layer, consumers, number, state, batches, resources)
            solve = partial(_solve, layer, form, rank, sample, resources, start)
            result = resources.group.broadcast(solve)
            if resources.cache is not None and resources.group.rank == 0:
                _store(resources.cache, key, *result)
        chain, error = result
        refit.chosen[layer.name] = form.name, rank
        refit.chains[layer.name], refit.errors[layer.name] = chain, error
        key = digest(key, list(_arrays(chain).values()))
        resources.stage("solving")((number + 1) / len(todo))
    return refit


def _count_equal(
    before: Refit, key: str, todo: Sequence[Layer], chosen: Mapping[str, tuple[Form, Rank]]
) -> int:
    """Count the first layers that were solved before, in the same way for the same inputs."""
    if key != before.key:
        return 0
    wanted = [(layer.name, (chosen[layer.name][0].name, chosen[layer.name][1])) for layer in todo]
    pairs = zip(wanted, before.chosen.items())
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


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
    """The tensors at a boundary of the network, batch by batch.

    Attributes:
        original: Tensors of the original network.
        converted: Tensors of the converted network; the same object as long as nothing differs.
        segments: How many segments have been run.
    """

    original: list[Arrays]
    converted: list[Arrays]
    segments: int = 0

    def after_next_segment(
        self, model: SegmentedModel, replaced: Mapping[str, tuple[str, Chain]], threads: int
    ) -> _Activations:
        """Run the next segment, in the converted network with chains in place of layers."""
        number = self.segments
        original = run_segment(model, number, self.original, threads)
        if self.converted is self.original and not replaced:
            return _Activations(original, original, number + 1)
        converted = run_segment(model, number, self.converted, threads, replaced)
        return _Activations(original, converted, number + 1)


def _choose_batches(
    network: ir.Model, model: SegmentedModel, data: Data, resources: Resources
) -> _Batches:
    """Choose as many sample inputs as the memory allows at the widest boundary, and split them.

    Half of the memory is for activations. At a boundary, four copies of them may be alive.
    """
    batch_size = inputs(network)[0].shape[0]
    feeds = data.read(np.arange(batch_size or 1) % data.count)
    shapes = compute_shapes(network, model.boundary_values, feeds)
    widest = max(
        sum(FLOAT32_BYTES * math.prod(shapes[name]) for name in part.outputs if name in shapes)
        for part in model.segments
    )
    fitting = int(resources.memory_bytes / 2 / (4 * max(widest, 1)))
    count = max(fitting, MIN_IMAGES) * (batch_size or 1)
    images = data.sample(count, resources.seed).whole_batches(batch_size)
    indices = list(resources.group.shard(images.batch_indices(batch_size or MAX_BATCH)))
    return _Batches(images.count, indices, [images.read(part) for part in indices])


def _sample(
    layer: Layer,
    consumers: Mapping[str, Consumers],
    number: int,
    state: _Activations,
    batches: _Batches,
    resources: Resources,
) -> LayerSample | None:
    """Sample a layer on the batches of all processes; None except in the first process."""
    return _gathered(
        resources.group,
        [
            sample_layer(
                layer,
                consumers[layer.output],
                original,
                converted,
                len(indices) / batches.count,
                resources.memory_bytes / 2,
                np.random.default_rng((resources.seed, number, int(indices[0]))),
            )
            for indices, original, converted in zip(
                batches.indices, state.original, state.converted
            )
        ],
    )


def _gathered(group: ProcessGroup, parts: list[LayerSample]) -> LayerSample | None:
    """Concatenate the samples of all processes; a function, so that its parts are freed."""
    all_parts = group.gather(parts)
    return LayerSample.concatenated(all_parts) if all_parts else None


def _solve(
    layer: Layer,
    form: Form,
    rank: Rank,
    sample: LayerSample | None,
    resources: Resources,
    start: Chain | None,
) -> tuple[Chain, float]:
    assert sample is not None  # only the first process solves
    half = replace(resources, memory_bytes=resources.memory_bytes / 2)
    return solve_for_sample(layer, form, rank, sample, half, start)


def _first_key(
    network: ir.Model, model: SegmentedModel, batches: _Batches, resources: Resources
) -> str:
    """Digest everything that all results depend on; the same in all processes."""
    key = digest(
        ir.to_proto(model.model).SerializeToString(),
        *modification_times(network),
        resources.group.gather([digest(list(feeds.items())) for feeds in batches.inputs]),
        resources.seed,
        resources.device,
        resources.solver,
        resources.memory_bytes,
        resources.threads,
    )
    return resources.group.broadcast(lambda: key)


def _load(conv: Conv | None, key: str, resources: Resources) -> tuple[Chain, float] | None:
    """Read a result from the cache; the first process reads it for all."""
    if resources.cache is None:
        return None
    arrays = resources.group.broadcast(partial(load_arrays, resources.cache, key))
    if arrays is None:
        return None
    assert conv is not None
    return unpacked(conv, arrays).with_bias(arrays["bias"]), float(arrays["rel_error"])


def _store(cache: Path, key: str, chain: Chain, rel_error: float) -> None:
    store_arrays(cache, key, _arrays(chain) | {"rel_error": np.array(rel_error)})


def _arrays(chain: Chain) -> dict[str, np.ndarray]:
    return packed(chain) | {"bias": np.asarray(chain.steps[-1].bias)}
