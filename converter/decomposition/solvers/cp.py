"""CP decompositions: a tensor as a sum of R rank-1 terms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from converter.decomposition.metric import Metric, mapped
from converter.decomposition.solvers.svd import exact_rank
from converter.decomposition.solvers.varpro import (
    Factors,
    Fit,
    Plain,
    Weighted,
    balanced,
    minimise,
)

PLAIN_STEPS, FIRST_STEPS, STEPS, WARM_STEPS, CG_STEPS = 19, 10, 30, 8, 10
# Operations that a decomposition may take: under a full metric, whose products are the work, and
# without, where a conjugate gradient takes so many products of (R, R).
WORK, PLAIN_WORK, PLAIN_PRODUCTS = 1e11, 5e11, 24
LEAST_CG_STEPS = 4
# A fit this close (a share of the power) is near an exact one, which a ridge would keep it from.
CLOSE = 1e-3
RIDGE, FINE_RIDGE = 1e-4, 1e-6
# Without a metric, small decompositions go the whole way.
MOST_PLAIN_STEPS, SMALL_WORK = 200, 1.2e10
DEAD = 1e-12  # of the power of the strongest direction of the channels
DOUBLE = 100_000  # entries of a tensor up to which double precision costs nothing


def cp(
    tensor: np.ndarray,
    R: int,
    seed: int,
    metric: Metric | None = None,
    start: list[np.ndarray] | None = None,
    device: str = "cpu",
    effort: float = 1.0,
) -> list[np.ndarray]:
    """Decompose a tensor, close in the Frobenius norm or under a metric.

    CP commutes with a linear map of each mode, so under a metric the modes are whitened with its
    Kronecker form, decomposed, improved under the full metric in the same coordinates, and mapped
    back. At R >= size / largest mode the decomposition is written down exactly instead.

    Args:
        tensor: (O, n_2, ..., n_d), float64; mode 2 is the channels, the others the window.
        R: Number of rank-1 terms.
        seed: Of the random part of the start.
        metric: Of the modes 2 to d, or None.
        start: Factors (n_2, r), ..., (n_d, r) to start from, r <= R; the error of what comes is
            not above theirs, but for the ridge.
        device: torch device to compute on.
        effort: Share of the usual work that it may take.

    Returns:
        d factors (n_j, R), each term's norm spread evenly over its factors.
    """
    if not tensor.any():
        return [np.zeros((n, R)) for n in tensor.shape]
    if exact_rank(tensor.shape) <= R:
        return [f.numpy() for f in balanced([torch.from_numpy(f) for f in _exact(tensor, R)])]
    light = torch.float64 if tensor.size <= DOUBLE else torch.float32
    sizes = tensor.shape[1:]
    roots = [np.eye(n) for n in sizes] if metric is None else metric.roots(sizes[1:])
    white = mapped(tensor, roots)
    target = torch.from_numpy(np.ascontiguousarray(white)).reshape(len(tensor), -1)
    target = target.to(device)
    rng = np.random.default_rng(seed)
    if start is None:
        first = _guess(white, R, rng)
    else:
        first = [
            np.hstack([mapped, _noise(rng, mapped, R - mapped.shape[1])])
            for mapped in (root.T @ f for root, f in zip(roots, start))
        ]
    factors = [torch.from_numpy(f).to(device) for f in first]
    full = metric is not None and metric.full is not None
    if start is None or not full:
        product = PLAIN_PRODUCTS * R**3
        if not full:
            small, _ = _afford(MOST_PLAIN_STEPS, product, effort * SMALL_WORK)
            steps, cg_steps = _afford(PLAIN_STEPS, product, effort * PLAIN_WORK)
            steps = max(steps, small)
        else:
            steps, cg_steps = _afford(FIRST_STEPS, product, effort * WORK)
        fit = _search(Plain(target, light, RIDGE), factors, steps, cg_steps)
        factors = fit.factors
    if metric is not None and full:
        seen = torch.from_numpy(metric.whitened(sizes[1:])).to(device)
        weighing = 2.0 * len(seen) * R * (len(seen) + 3 * R)
        most = round(effort * (STEPS if start is None else WARM_STEPS))
        steps, cg_steps = _afford(most, weighing, WORK)
        fit = _search(Weighted.of(target, seen, light, RIDGE), factors, steps, cg_steps)
    found = [np.linalg.solve(root.T, f.cpu().numpy()) for root, f in zip(roots, fit.factors)]
    outer = fit.outer.cpu()
    return [f.numpy() for f in balanced([outer, *(torch.from_numpy(f) for f in found)])]


def _search(problem: Plain | Weighted, start: Factors, steps: int, cg_steps: int) -> Fit:
    """Search with bounded terms, and without where that leads to an exact decomposition."""
    fit = minimise(problem, start, steps, cg_steps)
    if fit.error > CLOSE:
        return fit
    return minimise(replace(problem, ridge=FINE_RIDGE), fit.factors, steps, cg_steps)


def _afford(most: int, product: float, work: float) -> tuple[int, int]:
    """Say how many steps of how many conjugate gradients, each of ``product``, ``work`` pays."""
    cg_steps = int(min(max(work / product, LEAST_CG_STEPS), CG_STEPS))
    return int(min(most, max(work / product / cg_steps, 1))), cg_steps


def _guess(tensor: np.ndarray, R: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Start from the leading directions of the channels, the rest at random."""
    channels = np.moveaxis(tensor, 1, 0).reshape(tensor.shape[1], -1)
    power, vectors = np.linalg.eigh(channels @ channels.T)
    alive = power > DEAD * power[-1]  # a term in a direction without power would stay zero
    leading = (vectors[:, alive] * power[alive] ** 0.25)[:, ::-1][:, :R]
    first = np.hstack([leading, _noise(rng, leading, R - leading.shape[1])])
    return [first, *(rng.standard_normal((n, R)) for n in tensor.shape[2:])]


def _noise(rng: np.random.Generator, like: np.ndarray, count: int) -> np.ndarray:
    """Random columns (n, count) of the mean power of ``like`` (n, r)."""
    return rng.standard_normal((len(like), count)) * math.sqrt(float(np.mean(like**2)))


def rank_one(tensors: np.ndarray, iterations: int = 100) -> list[np.ndarray]:
    """Give the best rank-1 term of each tensor of a stack (higher-order power method).

    Started from the leading singular vector of each mode's unfolding, in turn, of what the modes
    before it leave (Vannieuwenhoven, Vandebril and Meerbergen 2012), so that the start of a sparse
    tensor is never orthogonal to it; exact where a tensor has rank 1.

    Args:
        tensors: (N, n_1, ..., n_d), float64.
        iterations: Sweeps over the modes.

    Returns:
        d factors (N, n_j), norms spread evenly.
    """
    count, modes = len(tensors), tensors.ndim - 1
    letters = "abcdef"[:modes]
    factors, rest = [], tensors
    for size in tensors.shape[1:]:
        unfolding = rest.reshape(count, size, -1)
        _, vectors = np.linalg.eigh(unfolding @ unfolding.transpose(0, 2, 1))
        factors.append(vectors[:, :, -1])
        rest = np.einsum("znm,zn->zm", unfolding, factors[-1])
    for _ in range(iterations):
        for mode in range(modes):
            others = [j for j in range(modes) if j != mode]
            spec = ",".join([f"z{letters}", *(f"z{letters[j]}" for j in others)])
            found = np.einsum(
                f"{spec}->z{letters[mode]}", tensors, *(factors[j] for j in others), optimize=True
            )
            norm = np.linalg.norm(found, axis=1, keepdims=True)
            factors[mode] = found / np.maximum(norm, np.finfo(np.float64).tiny)
    factors[-1] = factors[-1] * norm
    columns = [torch.from_numpy(np.ascontiguousarray(factor.T)) for factor in factors]
    return [factor.T.numpy() for factor in balanced(columns)]


def _exact(tensor: np.ndarray, R: int) -> list[np.ndarray]:
    """Write a tensor as one term per fibre of its largest mode, zero terms up to R."""
    largest = int(np.argmax(tensor.shape))
    rest = [n for mode, n in enumerate(tensor.shape) if mode != largest]
    fibres = np.moveaxis(tensor, largest, 0).reshape(tensor.shape[largest], -1)
    columns = np.indices(rest).reshape(len(rest), -1)  # which entry of each other mode
    factors = [np.eye(n)[:, column] for n, column in zip(rest, columns)]
    factors.insert(largest, fibres)
    return [np.pad(factor, ((0, 0), (0, R - factor.shape[1]))) for factor in factors]
