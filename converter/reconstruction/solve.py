"""Layers solved independently of one another, or taken from the cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from converter.cache import cached_chain, digest
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import Form, Rank
from converter.decomposition.metric import Metric
from converter.decomposition.problem import SolverSettings
from converter.errors import ConverterError
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.parallel import parallel_map

# Several processes pay off for many narrow layers. Few layers do not outweigh the start of the
# processes, and wide layers use all cores by themselves, with one copy of the moments in memory.
MAX_SERIAL_LAYERS, MAX_PARALLEL_WIDTH = 4, 1200


def run_solver(
    conv: Conv,
    form: Form,
    rank: Rank,
    resources: Resources,
    metrics: Sequence[Metric] | None = None,
    start: Chain | None = None,
    effort: float = 1.0,
) -> Chain:
    """Call ``decompose`` with the solver, the seed and the device of ``resources``."""
    settings = SolverSettings(resources.solver, resources.seed, resources.device, effort)
    return decompose(conv, form, rank, settings, metrics=metrics, start=start)


def solve_layer(
    conv: Conv,
    form: Form,
    rank: Rank,
    metrics: Sequence[Metric] | None = None,
    resources: Resources = Resources(),
) -> Chain:
    """Solve one layer by ``run_solver``, or take the same result from the cache."""
    solve = partial(run_solver, conv, form, rank, resources, metrics)
    if resources.cache is None:
        return solve()
    key = digest(
        conv.kernel,
        conv.groups,
        conv.transposed,
        form.name,
        rank,
        resources.seed,
        resources.device,
        resources.solver,
        torch.get_num_threads(),
        [[metric.channels, metric.window, metric.full] for metric in metrics or ()],
    )
    return cached_chain(resources.cache, key, conv, solve)


def solve_layers(
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[Form, Rank]],
    metrics: Mapping[str, Sequence[Metric]],
    resources: Resources = Resources(),
) -> dict[str, Chain]:
    """Solve layers independently of one another, one on each core.

    Args:
        layers: Layers of the network.
        chosen: Form and rank by layer name.
        metrics: By layer name; layers left out are solved in the Frobenius norm.
        resources: Cluster, cache, seed and device.

    Raises:
        ConverterError: When a form does not fit a layer; it names the layer.
    """
    todo = [layer for layer in layers if layer.name in chosen]
    jobs = (
        partial(
            _solve_named,
            layer,
            *chosen[layer.name],
            metrics.get(layer.name),
            resources.alone(),
        )
        for layer in todo
    )
    width = max((math.prod(l.conv.kernel.shape[1:]) for l in todo if l.conv), default=0)
    serial = resources.cluster is None and (
        len(todo) <= MAX_SERIAL_LAYERS or width > MAX_PARALLEL_WIDTH or resources.device != "cpu"
    )
    chains, report = {}, resources.stage("solving")
    for chain, layer in zip(parallel_map(jobs, resources.cluster, serial), todo):
        chains[layer.name] = chain
        report(len(chains) / len(todo))
    return chains


def _solve_named(
    layer: Layer,
    form: Form,
    rank: Rank,
    metrics: Sequence[Metric] | None,
    resources: Resources,
) -> Chain:
    """Solve one layer, perhaps in another process, where the form need not be registered."""
    if layer.conv is None:
        raise ConverterError(f"Layer {layer.name} cannot be converted.")
    try:
        return solve_layer(layer.conv, form, rank, metrics, resources)
    except ConverterError as error:
        raise ConverterError(f"Layer {layer.name}: {error}") from None
