"""Layers refit in graph order: each for the inputs that the converted layers before it produce."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.cache import digest, load_arrays, packed, store_arrays, unpacked
from converter.data.data import Data
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.form import Form, Rank
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.layer_sample import LayerSample
from converter.reconstruction.regression import solve_for_sample
from converter.reconstruction.sampling import LayerSampler, Originals


@dataclass(frozen=True)
class Refit:
    """Layers that were refit in graph order.

    Attributes:
        key: Digest of the network, the sample inputs and the settings.
        chosen: Names of form and rank by layer name, in graph order.
        chains: By layer name.
        errors: Relative errors of the responses, by layer name.
        originals: Samples of the original network by key and layer name.
    """

    key: str
    chosen: Mapping[str, tuple[str, Rank]]
    chains: Mapping[str, Chain]
    errors: Mapping[str, float]
    originals: Mapping[str, Originals] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the samples: those of another process are of other inputs."""
        return self.__dict__ | {"originals": {}}

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
    known = {} if before is None else before.originals
    sampler = LayerSampler(network, layers, todo, data, resources, known)
    key = sampler.key
    equal = 0 if before is None else _count_equal(before, key, todo, chosen)
    chains: dict[str, Chain] = {}
    errors: dict[str, float] = {}
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
            solve = partial(
                _solve, layer, form, rank, sampler.sample(number, chains), resources, start
            )
            result = resources.group.broadcast(solve)
            if resources.cache is not None and resources.group.rank == 0:
                _store(resources.cache, key, *result)
        chains[layer.name], errors[layer.name] = result
        key = digest(key, list(_arrays(chains[layer.name]).values()))
        resources.stage("solving")((number + 1) / len(todo))
    names = {layer.name: (chosen[layer.name][0].name, chosen[layer.name][1]) for layer in todo}
    return Refit(sampler.key, names, chains, errors, {**known, sampler.key: sampler.originals})


def _count_equal(
    before: Refit, key: str, todo: Sequence[Layer], chosen: Mapping[str, tuple[Form, Rank]]
) -> int:
    """Count the first layers that were solved before, in the same way for the same inputs."""
    if key != before.key:
        return 0
    wanted = [(layer.name, (chosen[layer.name][0].name, chosen[layer.name][1])) for layer in todo]
    pairs = zip(wanted, before.chosen.items())
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


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
