"""How far a chain is from the convolution it stands in for: measured, and estimated by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import path
from converter.decomposition.form import ErrorAt, Form, Rank, group_rank
from converter.decomposition.metric import Metric, whiten
from converter.decomposition.problem import SolverSettings

# Where in the list of ranks of a form without closed errors ranks are solved, and how well.
ANCHORS, EFFORT = (0.0, 0.4, 0.7), 0.4
MIN_ERROR = 1e-3


def relative_error(conv: Conv, chain: Chain, metrics: Sequence[Metric] | None = None) -> float:
    """Relative error of the chain's dense kernel: Frobenius, or of the responses under metrics.

    Args:
        conv: What the chain stands in for.
        chain: Of any form.
        metrics: One for each group, or None.
    """
    kernel = conv.kernel.astype(np.float64)
    rest = chain.dense().kernel.reshape(kernel.shape) - kernel
    error, norm = (_norm(array, conv.groups, metrics) for array in (rest, kernel))
    return error / norm if norm else error


def _norm(kernel: np.ndarray, groups: int, metrics: Sequence[Metric] | None) -> float:
    if metrics is None:
        return float(np.linalg.norm(kernel))
    parts = np.split(kernel, groups)
    return math.sqrt(sum(metric.square(part) for metric, part in zip(metrics, parts, strict=True)))


def cancellation(chain: Chain) -> float:
    """Return the ratio of the norm of a chain's terms to the norm of their sum.

    About 1 where terms are independent; many times more where they are degenerate, that is,
    large and nearly opposite (de Silva and Lim 2008).
    """
    squares = Chain(tuple(replace(s, kernel=np.square(s.kernel), bias=None) for s in chain.steps))
    whole = float(np.square(chain.dense().kernel).sum())
    return math.sqrt(float(squares.dense().kernel.sum()) / (whole or 1.0))


def estimate_errors(conv: Conv, form: Form) -> ErrorAt | None:
    """Return the relative Frobenius error as a function of the rank, where it has a closed form."""
    if form.errors is None:
        return None
    parts = np.split(conv.kernel.astype(np.float64), conv.groups)
    curves = [form.errors(part) for part in parts]
    power = np.array([np.sum(part**2) for part in parts])
    weights = power / max(power.sum(), np.finfo(np.float64).tiny)

    def error_at(rank: Rank) -> float:
        rank = group_rank(form, conv, rank)
        return math.sqrt(sum(w * curve(rank) ** 2 for w, curve in zip(weights, curves)))

    return error_at


def error_curve(
    conv: Conv, form: Form, ranks: Sequence[Rank], settings: SolverSettings = SolverSettings()
) -> list[float]:
    """Estimate the relative Frobenius error of ``conv`` at each of ``ranks``.

    Where the error has no closed form, a few of the ranks are solved, with less effort. Between
    and behind them the error is taken to fall exponentially with the sum of a rank's entries.

    Args:
        conv: What the chains stand in for.
        form: Of the chains.
        ranks: At least one, from low to high.
        settings: Of the solver.
    """
    error_at = estimate_errors(conv, form)
    if error_at is not None:
        return [float(error_at(rank)) for rank in ranks]
    chosen = sorted({round(share * (len(ranks) - 1)) for share in ANCHORS})
    settings = replace(settings, effort=EFFORT * settings.effort)
    chains = path(conv, form, [ranks[n] for n in chosen], settings)
    errors = [max(relative_error(conv, chains[ranks[n]]), MIN_ERROR) for n in chosen]
    logs = list(np.log(np.minimum.accumulate(errors)))
    knots = [sum(ranks[n]) for n in chosen]
    if chosen[-1] < len(ranks) - 1:
        slope = (logs[-1] - logs[-2]) / max(knots[-1] - knots[-2], 1) if len(chosen) > 1 else 0.0
        logs.append(logs[-1] + slope * (sum(ranks[-1]) - knots[-1]))
        knots.append(sum(ranks[-1]))
    return [max(float(np.exp(np.interp(sum(rank), knots, logs))), MIN_ERROR) for rank in ranks]


def whitened(conv: Conv, metrics: Sequence[Metric] | None) -> Conv:
    """Return the kernel whose Frobenius error is that of the responses.

    The moments of the inputs are taken in their Kronecker form.

    Args:
        conv: The convolution.
        metrics: One for each group; the Frobenius norm if None.
    """
    kernel = conv.kernel.astype(np.float64)
    if metrics is not None:
        window = tuple(size for size in conv.k if size > 1)
        parts = [
            whiten(part.reshape(len(part), part.shape[1], *window), metric.roots(window))
            for part, metric in zip(np.split(kernel, conv.groups), metrics)
        ]
        kernel = np.concatenate(parts).reshape(conv.kernel.shape)
    return replace(conv, kernel=kernel, bias=None)
