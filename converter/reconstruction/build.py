"""A plan carried out: moments of what the layers see, chains, the rewritten network.

What works on the sample inputs is shared by all processes of ``accelerate launch``: the first asks
the others for the same call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch

from converter.data.data import Data, random_data
from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain
from converter.decomposition.metric import Metric
from converter.evaluation.compare import Progress
from converter.graph.rewrite import rewrite
from converter.graph.survey import Layer
from converter.models.source import Source
from converter.options import Options
from converter.reconstruction.moments import second_moments
from converter.reconstruction.refit import correct
from converter.reconstruction.solve import solve_layers
from converter.search.plan import Plan

HELD_SHARE, RANDOM_EXAMPLES = 0.4, 16
# Multiply-accumulates of one look at what a network loses (some 20 s), and the least and most
# examples that it takes.
JUDGE_MACS, JUDGED = 1e12, (64, 8192)
Metrics = dict[str, tuple[Metric, ...]]


@dataclass(frozen=True)
class Realization:
    """A plan carried out.

    Attributes:
        plan: What was done.
        chains: By layer name.
        errors: Relative errors of the responses, by layer name.
        network: The rewritten network.
    """

    plan: Plan
    chains: dict[str, Chain]
    errors: dict[str, float]
    network: ir.Model


def split(source: Source, layers: Sequence[Layer], options: Options) -> tuple[Data | None, Data]:
    """Part the sample inputs: to fit, and to judge; random ones to judge on without any."""
    if source.calib is None:
        dtypes = {item.name: item.dtype for item in source.inputs}
        return None, random_data(source.shapes, dtypes, RANDOM_EXAMPLES, options.resources.seed)
    macs = sum(layer.macs for layer in layers)
    most = int(np.clip(JUDGE_MACS / max(macs, 1), *JUDGED))
    count = source.calib.count
    held = min(max(int(count * HELD_SHARE), 1), most)
    if source.spare is not None and source.spare.count >= held:
        return source.calib, source.spare.take(np.arange(min(source.spare.count, most)))
    order = np.random.default_rng(options.resources.seed).permutation(count)
    judged = source.calib.take(np.sort(order[:held]))
    fit = source.calib.take(np.sort(order[held:])) if held < count else source.calib
    return fit, judged


def coarse_metrics(
    names: Collection[str],
    source: Source,
    layers: Sequence[Layer],
    options: Options,
    progress: Progress,
) -> Metrics:
    """Estimate what layers see of the inputs to fit; shared, and nothing without any.

    Args:
        names: Of the layers.
        source: The network and its sample inputs.
        layers: All of the network.
        options: The options.
        progress: Called with a stage and the share of it that is done.

    Returns:
        As ``second_moments`` with ``coarse``.

    Raises:
        ConverterError: When another process is gone.
    """
    fit, _ = split(source, layers, options)
    if fit is None:
        return {}
    source.place.broadcast_task(partial(coarse_metrics, names))
    return _moments(
        names, source, layers, fit, options.resources.seed, options, progress, coarse=True
    )


def _moments(
    names: Collection[str],
    source: Source,
    layers: Sequence[Layer],
    data: Data,
    seed: int,
    options: Options,
    progress: Progress,
    coarse: bool = False,
) -> Metrics:
    """Collect the second moments of what layers see of ``data``."""
    return second_moments(
        source.network,
        [layer for layer in layers if layer.name in names],
        data,
        seed=seed,
        batch_size=source.inputs[0].shape[0],
        memory=options.resources.memory * 2**30,
        threads=torch.get_num_threads(),
        coarse=coarse,
        place=source.place,
        progress=lambda done: progress("calibrating", done),
    )


def build(
    plan: Plan,
    source: Source,
    layers: Sequence[Layer],
    options: Options,
    progress: Progress,
    *,
    whole: bool = True,
) -> Realization:
    """Carry out a plan, fitted to sample inputs if there are any; shared.

    Args:
        plan: What to do.
        source: The network and its sample inputs.
        layers: All of the network.
        options: The options.
        progress: Called with a stage and the share of it that is done.
        whole: Fit to all sample inputs, not only to those that do not judge.

    Raises:
        ConverterError: As ``solve``.
    """
    source.place.broadcast_task(partial(build, plan, whole=whole))
    fit = source.calib if whole else split(source, layers, options)[0]
    chains, errors = solve(replace(source, calib=fit), plan, layers, options, progress)
    if options.training.trains:
        chains = {name: chain.balanced() for name, chain in chains.items()}
    return Realization(plan, chains, errors, rewritten(source, layers, chains))


def rewritten(source: Source, layers: Sequence[Layer], chains: Mapping[str, Chain]) -> ir.Model:
    """Put chains in the place of layers."""
    by_output = {l.output: (l.name, chains[l.name]) for l in layers if l.name in chains}
    return rewrite(source.network, by_output)


def solve(
    source: Source,
    plan: Plan,
    layers: Sequence[Layer],
    options: Options,
    progress: Progress,
) -> tuple[dict[str, Chain], dict[str, float]]:
    """Decompose every chosen layer, for what it sees of the sample inputs if there are any.

    Returns:
        Chains and relative errors by layer name; the errors are those of the layer's responses,
        or without sample inputs of its weights.

    Raises:
        ConverterError: When a form does not fit a layer, or a process is gone or killed.
    """
    chosen = plan.chosen()
    cache = options.resources.cache_folder()
    if source.calib is not None and options.search.correct and chosen:
        return correct(
            source.network,
            layers,
            chosen,
            source.calib,
            seed=plan.seed,
            device=options.resources.device,
            cache=cache,
            batch_size=source.inputs[0].shape[0],
            memory=options.resources.memory * 2**30,
            threads=torch.get_num_threads(),
            place=source.place,
            progress=lambda done: progress("solving", done),
        )
    metrics: Metrics = {}
    if source.calib is not None and chosen:
        metrics = _moments(chosen, source, layers, source.calib, plan.seed, options, progress)
    if source.place.rank:
        return {}, {}
    chains = solve_layers(
        layers,
        chosen,
        metrics,
        seed=plan.seed,
        device=options.resources.device,
        cache=cache,
        cluster=options.resources.cluster,
        progress=lambda done: progress("solving", done),
    )
    convs = {layer.name: layer.conv for layer in layers if layer.conv is not None}
    errors = {
        name: relative_error(convs[name], chain, metrics.get(name))
        for name, chain in chains.items()
    }
    return chains, errors
