"""The error of a chain against the convolution that it replaces: measured, or estimated by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose_ranks
from converter.decomposition.form import ErrorAt, Form, Rank, group_rank
from converter.decomposition.metric import Metric, whiten
from converter.decomposition.problem import SolverSettings

# Without a closed form of the error, the ranks at these places in the list (0 to 1) are solved,
# with this share of a solver's work.
ANCHORS, EFFORT = (0.0, 0.4, 0.7), 0.4
MIN_ERROR = 1e-3  # of an estimate; the logarithm needs one above 0


def relative_error(conv: Conv, chain: Chain, metrics: Sequence[Metric] | None = None) -> float:
    """Return |W' - W| / |W| for the chain's dense kernel W' and the kernel W of ``conv``.

    Args:
        conv: The convolution that the chain replaces.
        chain: A chain of any form.
        metrics: One for each group; the Frobenius norm if None.
    """
    kernel = conv.kernel.astype(np.float64)
    difference = chain.dense().kernel.reshape(kernel.shape) - kernel
    error, norm = (_norm(array, conv.groups, metrics) for array in (difference, kernel))
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
    """Estimate the relative Frobenius error of ``form`` at each of ``ranks``.

    Where the error has no closed form, a few of the ranks are solved, with less effort. Between
    and beyond them the error is taken to fall exponentially with the sum of a rank's entries.

    Args:
        conv: The convolution to replace.
        form: Form of the chains.
        ranks: At least one, from low to high.
        settings: Settings of the solver.
    """
    error_at = estimate_errors(conv, form)
    if error_at is not None:
        return [float(error_at(rank)) for rank in ranks]
    chosen = sorted({round(place * (len(ranks) - 1)) for place in ANCHORS})
    settings = replace(settings, effort=EFFORT * settings.effort)
    chains = decompose_ranks(conv, form, [ranks[n] for n in chosen], settings)
    errors = [max(relative_error(conv, chains[ranks[n]]), MIN_ERROR) for n in chosen]
    logs = list(np.log(np.minimum.accumulate(errors)))
    knots = [sum(ranks[n]) for n in chosen]
    if chosen[-1] < len(ranks) - 1:
        slope = (logs[-1] - logs[-2]) / max(knots[-1] - knots[-2], 1) if len(chosen) > 1 else 0.0
        logs.append(logs[-1] + slope * (sum(ranks[-1]) - knots[-1]))
        knots.append(sum(ranks[-1]))
    return [max(float(np.exp(np.interp(sum(rank), knots, logs))), MIN_ERROR) for rank in ranks]


def whitened(conv: Conv, metrics: Sequence[Metric] | None) -> Conv:
    """Return ``conv`` with a kernel whose Frobenius error is the error of the responses.

    Args:
        conv: The convolution.
        metrics: One for each group, used in their Kronecker form; the kernel stays if None.
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
