"""``Candidate``: form and rank for a layer, with error, cost and time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from converter.cache import cached_text, digest
from converter.decomposition.approximation import (
    MIN_ERROR,
    error_curve,
    estimate_errors,
    whitened,
)
from converter.decomposition.conv import Conv
from converter.decomposition.form import Form, Rank, full_rank, rank_step, refusal, skeleton
from converter.decomposition.forms import FORMS, find_form
from converter.decomposition.metric import Metric
from converter.decomposition.problem import SolverSettings
from converter.decomposition.ranks import all_ranks
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.moments import patch_size
from converter.reconstruction.parallel import parallel_map
from converter.timing.latency import LatencyTable, LayerTimes

# Up to so many layers are estimated before other processes would have started; wide ones use all
# cores by themselves.
MAX_SERIAL_LAYERS, MAX_PARALLEL_WIDTH = 24, 1200
MAX_INTERPOLATED = 12  # ranks at which errors and times are interpolated, for each form
NODE_BYTES = 256  # of a step of a chain in an ONNX file, besides the weights
NODE_BYTES_INT8 = 1200  # of each step more than one, with the nodes that quantize it
BLOCK = 16  # channels that onnxruntime computes together on x86 with AVX-512


@dataclass(frozen=True)
class Candidate:
    """A form and rank for a layer, or the unchanged layer.

    Attributes:
        form: Name of the form; None keeps the layer.
        rank: The rank; None keeps the layer.
        rel_error: Estimated relative error of the layer's responses.
        macs: Multiply-accumulates for one example.
        bytes: Bytes in an ONNX file.
        ms: Milliseconds in the network.
    """

    form: str | None
    rank: Rank | None
    rel_error: float
    macs: int
    bytes: int
    ms: float


def list_candidates(
    layers: Sequence[Layer],
    table: LatencyTable,
    metrics: Mapping[str, Sequence[Metric]],
    resources: Resources,
    int8: bool = False,
) -> dict[str, list[Candidate]]:
    """List the candidates of each layer; the first keeps the layer.

    Args:
        layers: The layers that may be converted.
        table: Times of the layers; the forms and ranks in it become candidates.
        metrics: Metrics of each layer's inputs, by layer name; the Frobenius norm if left out.
        resources: Seed, cache and cluster.
        int8: Whether the network is quantized, which makes the file smaller.

    Returns:
        Candidates by layer name.
    """
    progress = resources.stage("options")
    times = {layer.output: layer for layer in table.layers}
    todo = [
        (layer, layer.conv, times[layer.output])
        for layer in layers
        if layer.conv is not None and layer.output in times
    ]
    settings = SolverSettings(resources.solver, resources.seed)
    jobs = (
        partial(
            _errors,
            whitened(conv, metrics.get(layer.name)),
            _timed_ranks(timed),
            settings,
            resources.cache,
        )
        for layer, conv, timed in todo
    )
    candidates = {}
    width = max((patch_size(conv) for _, conv, _ in todo), default=0)
    serial = len(todo) <= MAX_SERIAL_LAYERS or width > MAX_PARALLEL_WIDTH
    solved = zip(parallel_map(jobs, resources.cluster, serial), todo)
    for number, (curves, (layer, conv, timed)) in enumerate(solved):
        size = layer.params * (1 if int8 else conv.kernel.itemsize)
        unchanged = Candidate(None, None, 0.0, layer.macs, size, timed.ms)
        others = [
            _candidate(layer, conv, form, rank, error, ms, int8)
            for form, curve in curves.items()
            for rank, error in _interpolate(conv, form, curve, table.block)
            if (ms := timed.ms_of(form, rank)) is not None
        ]
        candidates[layer.name] = [unchanged, *others]
        progress((number + 1) / len(todo))
    return candidates


def cheapest(layer: Layer, max_error: float) -> tuple[str, Rank, int] | None:
    """Return form, rank and MACs of the cheapest chain within a weight error, or None.

    Only forms whose error has a closed formula are tried, at ranks that fill the runtime's blocks.

    Args:
        layer: A layer that can be converted.
        max_error: Largest relative error of the weights (of its upper bound for tucker).
    """
    assert layer.conv is not None
    fitting: list[tuple[int, int, str, Rank]] = []
    for order, form in enumerate(FORMS.values()):
        error_at = None if refusal(form, layer.conv) else estimate_errors(layer.conv, form)
        for rank in all_ranks(form, layer.conv, BLOCK) if error_at else ():
            if rank != full_rank(form, layer.conv) and error_at and error_at(rank) <= max_error:
                macs = skeleton(layer.conv, form, rank).macs(layer.size)
                fitting.append((macs, order, form.name, rank))
    if not fitting:
        return None
    macs, _, name, rank = min(fitting)
    return name, rank, macs


def _candidate(
    layer: Layer, conv: Conv, form: str, rank: Rank, error: float, ms: float, int8: bool
) -> Candidate:
    chain = skeleton(conv, find_form(form), rank)
    size = chain.params * conv.kernel.itemsize + NODE_BYTES * len(chain.steps)
    if int8:
        size = chain.params + NODE_BYTES_INT8 * (len(chain.steps) - 1)
    return Candidate(form, rank, error, chain.macs(layer.size), size, ms)


def _timed_ranks(timed: LayerTimes) -> list[tuple[Form, list[Rank]]]:
    ranks: dict[str, list[Rank]] = {}
    for option in timed.options:
        ranks.setdefault(option.form, []).append(option.rank)
    return [(find_form(form), form_ranks) for form, form_ranks in ranks.items()]


def _errors(
    conv: Conv,
    ranks: Sequence[tuple[Form, list[Rank]]],
    settings: SolverSettings,
    cache: Path | None,
) -> dict[str, dict[Rank, float]]:
    """Estimate the relative errors of a whitened kernel, by form and rank.

    This runs in other processes, where the user's own forms are not registered.
    """

    def compute() -> str:
        curves = {
            form.name: error_curve(conv, form, form_ranks, settings) for form, form_ranks in ranks
        }
        return json.dumps(curves)

    ordered = sorted((form.name, *form_ranks) for form, form_ranks in ranks)
    parts = conv.kernel, conv.groups, conv.transposed, ordered, settings.seed, settings.solver
    errors = json.loads(cached_text(cache, digest(*parts) if cache else "", compute))
    return {form.name: dict(zip(form_ranks, errors[form.name])) for form, form_ranks in ranks}


def _interpolate(
    conv: Conv, form: str, curve: Mapping[Rank, float], block: int
) -> list[tuple[Rank, float]]:
    """Add ranks between those of an error curve, in blocks of the runtime's channels."""
    ranks = sorted(curve)
    if len(ranks) < 2 or len(ranks[0]) > 1 or find_form(form).per_channel:
        return list(curve.items())
    knots = [rank for (rank,) in ranks]
    step = rank_step(conv, block)
    stride = max((knots[-1] - knots[0]) // (step * MAX_INTERPOLATED), 1) * step
    grid = sorted({*knots, *range(knots[0], knots[-1], stride)})
    logs = np.log([max(curve[(rank,)], MIN_ERROR) for rank in knots])
    return [((rank,), float(np.exp(np.interp(rank, knots, logs)))) for rank in grid]
