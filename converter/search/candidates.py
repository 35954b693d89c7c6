"""What could stand in for each layer: form and rank, with error, cost and time, as data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from converter.cache import cached_text, digest
from converter.decomposition.approximation import MIN_ERROR, error_curve, whitened
from converter.decomposition.conv import Conv
from converter.decomposition.form import Rank, rank_step, skeleton
from converter.decomposition.forms import find_form
from converter.decomposition.metric import Metric
from converter.decomposition.problem import SolverSettings
from converter.graph.survey import Layer
from converter.reconstruction.parallel import spread
from converter.timing.latency import LatencyTable, LayerTimes

FINE = 12  # ranks between those timed


@dataclass(frozen=True)
class Option:
    """One thing to do with a layer: another form, or (form None) nothing.

    Attributes:
        form: Its name.
        rank: Its rank.
        rel_error: Relative error of the layer's responses, estimated.
        macs: Multiply-accumulates for one example.
        ms: Time in the network.
    """

    form: str | None
    rank: Rank | None
    rel_error: float
    macs: int
    ms: float


def list_options(
    layers: Sequence[Layer],
    table: LatencyTable,
    metrics: Mapping[str, Sequence[Metric]],
    *,
    seed: int = 0,
    cache: Path | None = None,
    cluster: str | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, list[Option]]:
    """List what could be done with each layer; to do nothing comes first.

    Args:
        layers: Those that may be converted.
        table: Their times; it says which forms and ranks there are.
        metrics: What each layer sees; the Frobenius norm where left out.
        seed: Of the solvers.
        cache: Folder of earlier results, or None.
        cluster: Where to solve them, as ``spread``.
        progress: Called with the share done.
    """
    times = {layer.output: layer for layer in table.layers}
    todo = [
        (layer, layer.conv, times[layer.output])
        for layer in layers
        if layer.conv is not None and layer.output in times
    ]
    jobs = (
        partial(_errors, whitened(conv, metrics.get(layer.name)), _ladders(timed), seed, cache)
        for layer, conv, timed in todo
    )
    found = {}
    solved = zip(spread(jobs, cluster), todo)
    for number, (curves, (layer, conv, timed)) in enumerate(solved):
        found[layer.name] = [
            Option(None, None, 0.0, layer.macs, timed.ms),
            *(
                Option(form, rank, error, macs, ms)
                for form, curve in curves.items()
                for rank, error in _between(conv, form, curve, table.block)
                if (ms := timed.ms_of(form, rank)) is not None
                and (macs := skeleton(conv, find_form(form), rank).macs(layer.size))
            ),
        ]
        progress((number + 1) / len(todo))
    return found


def _ladders(timed: LayerTimes) -> dict[str, list[Rank]]:
    ladders: dict[str, list[Rank]] = {}
    for option in timed.options:
        ladders.setdefault(option.form, []).append(option.rank)
    return ladders


def _errors(
    white: Conv, ladders: Mapping[str, list[Rank]], seed: int, cache: Path | None
) -> dict[str, dict[Rank, float]]:
    """Estimate the relative error of each form at each rank timed."""

    def compute() -> str:
        return json.dumps(
            {
                name: error_curve(white, find_form(name), ranks, SolverSettings(seed=seed))
                for name, ranks in ladders.items()
            }
        )

    asked = sorted((name, *ranks) for name, ranks in ladders.items())
    key = digest(white.kernel, white.groups, white.transposed, asked, seed) if cache else ""
    errors = json.loads(cached_text(cache, key, compute))
    return {form: dict(zip(ranks, errors[form])) for form, ranks in ladders.items()}


def _between(
    conv: Conv, form: str, curve: Mapping[Rank, float], block: int
) -> list[tuple[Rank, float]]:
    """Add ranks between those of a curve, on the runtime's grid."""
    ranks = sorted(curve)
    if len(ranks) < 2 or len(ranks[0]) > 1 or find_form(form).per_channel:
        return list(curve.items())
    knots = [rank for (rank,) in ranks]
    step = rank_step(conv, block)
    stride = max((knots[-1] - knots[0]) // (step * FINE), 1) * step
    wanted = sorted({*knots, *range(knots[0], knots[-1], stride)})
    logs = np.log([max(curve[(rank,)], MIN_ERROR) for rank in knots])
    return [((rank,), float(np.exp(np.interp(rank, knots, logs)))) for rank in wanted]
