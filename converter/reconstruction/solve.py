"""The chosen layers as chains: solved on all cores, or taken from the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from converter.cache import cached_chain, digest
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import Form, Rank
from converter.decomposition.forms import find_form
from converter.decomposition.metric import Metric
from converter.decomposition.problem import SolverSettings
from converter.errors import ConverterError
from converter.graph.survey import Layer
from converter.reconstruction.parallel import spread

# Processes pay off for many narrow layers; few layers do not outweigh their start, and wide ones
# keep all cores busy by themselves, with one copy of their moments in memory.
FEW, WIDE = 4, 1200


def solve_layer(
    conv: Conv,
    form: Form,
    rank: Rank,
    metrics: Sequence[Metric] | None = None,
    start: Chain | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    cache: Path | None = None,
) -> Chain:
    """Solve one layer as ``decompose``, or take the same result from the cache."""
    settings = SolverSettings(seed=seed, device=device)
    solve = partial(decompose, conv, form, rank, settings, metrics=metrics, start=start)
    if cache is None:
        return solve()
    key = digest(
        conv.kernel,
        conv.groups,
        conv.transposed,
        form.name,
        rank,
        seed,
        device,
        torch.get_num_threads(),
        [[metric.channels, metric.window, metric.full] for metric in metrics or ()],
        [step.kernel for step in start.steps] if start else None,
    )
    return cached_chain(cache, key, conv, solve)


def solve_layers(
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[Form, Rank]],
    metrics: Mapping[str, Sequence[Metric]],
    *,
    seed: int = 0,
    device: str = "cpu",
    cache: Path | None = None,
    cluster: str | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Chain]:
    """Solve layers independently of one another, one a core.

    Args:
        layers: Of the network.
        chosen: Form and rank by layer name.
        metrics: By layer name; layers left out are solved in the Frobenius norm.
        seed: Of the solvers.
        device: torch device of the iterative solvers.
        cache: Folder of earlier results, or None.
        cluster: Where to solve them, as ``spread``.
        progress: Called with the share done.

    Raises:
        ConverterError: When a form does not fit a layer; it names the layer.
    """
    todo = [layer for layer in layers if layer.name in chosen]
    jobs = (
        partial(
            _solve_named,
            layer,
            chosen[layer.name][0].name,
            chosen[layer.name][1],
            metrics.get(layer.name),
            seed,
            device,
            cache,
        )
        for layer in todo
    )
    widest = max((math.prod(l.conv.kernel.shape[1:]) for l in todo if l.conv), default=0)
    alone = cluster is None and (len(todo) <= FEW or widest > WIDE or device != "cpu")
    chains = {}
    for chain, layer in zip(spread(jobs, cluster, alone), todo):
        chains[layer.name] = chain
        progress(len(chains) / len(todo))
    return chains


def _solve_named(
    layer: Layer,
    form: str,
    rank: Rank,
    metrics: Sequence[Metric] | None,
    seed: int,
    device: str,
    cache: Path | None,
) -> Chain:
    """Solve one layer in a process of its own, where forms go by name."""
    if layer.conv is None:
        raise ConverterError(f"Layer {layer.name} cannot be converted.")
    try:
        return solve_layer(
            layer.conv, find_form(form), rank, metrics, seed=seed, device=device, cache=cache
        )
    except ConverterError as error:
        raise ConverterError(f"Layer {layer.name}: {error}") from None
