"""What could stand in for each layer: form and rank, with error, cost and time, as data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from converter.cache import cached_text, digest
from converter.decomposition.conv import Conv
from converter.decomposition.form import Rank, estimate_errors, path, relative_error, skeleton
from converter.decomposition.forms import find_form
from converter.decomposition.metric import Metric, mapped
from converter.decomposition.ranks import unit
from converter.graph.survey import Layer
from converter.reconstruction.parallel import parallel_map
from converter.timing.latency import LatencyTable, LayerTimes

# Where on the ladder of a form without closed errors ranks are solved, and how well.
ANCHORS, EFFORT = (0.0, 0.4, 0.7), 0.4
FINE = 12  # ranks between those timed
LEAST_ERROR = 1e-3


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
        cluster: Where to solve them, as ``parallel_map``.
        progress: Called with the share done.
    """
    times = {layer.output: layer for layer in table.layers}
    todo = [
        (layer, layer.conv, times[layer.output])
        for layer in layers
        if layer.conv is not None and layer.output in times
    ]
    jobs = (
        partial(_errors, _whitened(conv, metrics.get(layer.name)), _ladders(timed), seed, cache)
        for layer, conv, timed in todo
    )
    found = {}
    solved = zip(parallel_map(jobs, cluster), todo)
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
            {name: _curve(white, name, ranks, seed) for name, ranks in ladders.items()}
        )

    asked = sorted((name, *ranks) for name, ranks in ladders.items())
    key = digest(white.kernel, white.groups, white.transposed, asked, seed) if cache else ""
    errors = json.loads(cached_text(cache, key, compute))
    return {form: dict(zip(ranks, errors[form])) for form, ranks in ladders.items()}


def _curve(conv: Conv, name: str, ranks: list[Rank], seed: int) -> list[float]:
    form = find_form(name)
    error_at = estimate_errors(conv, form)
    if error_at is not None:
        return [float(error_at(rank)) for rank in ranks]
    chosen = sorted({round(share * (len(ranks) - 1)) for share in ANCHORS})
    chains = path(conv, form, [ranks[n] for n in chosen], seed, effort=EFFORT)
    errors = [max(relative_error(conv, chains[ranks[n]]), LEAST_ERROR) for n in chosen]
    errors = list(np.minimum.accumulate(errors))
    # The error falls about exponentially with the rank, also behind the last one solved.
    anchors, logs = [ranks[n][0] for n in chosen], list(np.log(errors))
    if chosen[-1] < len(ranks) - 1:
        slope = (logs[-1] - logs[-2]) / (anchors[-1] - anchors[-2]) if len(chosen) > 1 else 0.0
        anchors.append(ranks[-1][0])
        logs.append(logs[-1] + slope * (anchors[-1] - anchors[-2]))
    return [max(float(np.exp(np.interp(r, anchors, logs))), LEAST_ERROR) for (r,) in ranks]


def _whitened(conv: Conv, metrics: Sequence[Metric] | None) -> Conv:
    """Give the kernel whose Frobenius error is that of the responses, in the Kronecker form."""
    kernel = conv.kernel.astype(np.float64)
    if metrics is not None:
        window = tuple(size for size in conv.k if size > 1)
        parts = [
            mapped(part.reshape(len(part), part.shape[1], *window), metric.roots(window))
            for part, metric in zip(np.split(kernel, conv.groups), metrics)
        ]
        kernel = np.concatenate(parts).reshape(conv.kernel.shape)
    return replace(conv, kernel=kernel, bias=None)


def _between(
    conv: Conv, form: str, curve: Mapping[Rank, float], block: int
) -> list[tuple[Rank, float]]:
    """Add ranks between those of a curve, on the runtime's grid."""
    ranks = sorted(curve)
    if len(ranks) < 2 or len(ranks[0]) > 1 or find_form(form).per_channel:
        return list(curve.items())
    knots = [rank for (rank,) in ranks]
    step = unit(conv, block)
    stride = max((knots[-1] - knots[0]) // (step * FINE), 1) * step
    wanted = sorted({*knots, *range(knots[0], knots[-1], stride)})
    logs = np.log([max(curve[(rank,)], LEAST_ERROR) for rank in knots])
    return [((rank,), float(np.exp(np.interp(rank, knots, logs)))) for rank in wanted]
