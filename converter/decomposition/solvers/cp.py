"""CP decompositions: a tensor as a sum of R rank-1 terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tensorly.cp_tensor import CPTensor

from converter.decomposition.problem import Problem, SolverSettings
from converter.decomposition.solvers.khatri_rao import Factors, equalize_norms
from converter.decomposition.solvers.levenberg_marquardt import Fit, minimise
from converter.decomposition.solvers.svd import exact_rank
from converter.decomposition.solvers.varpro import FrobeniusLoss, MetricLoss

# Steps without a metric, before those under a full metric, under it, and there from a start.
FROBENIUS_STEPS, FIRST_STEPS, METRIC_STEPS, WARM_STEPS = 19, 10, 30, 8
MIN_CG_STEPS, MAX_CG_STEPS = 4, 10
# Operations that a decomposition may take: under a full metric, whose products are the work, and
# without, where a conjugate gradient takes so many products of (R, R).
METRIC_WORK, FROBENIUS_WORK, FROBENIUS_PRODUCTS = 1e11, 5e11, 24
# A fit with an error below this share of the power is near an exact one, which a ridge prevents.
NEARLY_EXACT = 1e-3
RIDGE, FINE_RIDGE = 1e-4, 1e-6
# Without a metric, small decompositions may take many more steps.
MAX_SMALL_STEPS, SMALL_WORK = 200, 1.2e10
ZERO_POWER = 1e-12  # of the power of the strongest direction of the channels
MAX_DOUBLE_SIZE = 100_000  # entries of a tensor up to which double precision costs nothing


def cp(problem: Problem, R: int, settings: SolverSettings = SolverSettings()) -> CPTensor:
    """Decompose a tensor, close in the Frobenius norm or under a metric.

    CP commutes with a linear map of each mode, so under a metric the modes are whitened with its
    Kronecker form, decomposed, improved under the full metric in the same coordinates, and mapped
    back. At R >= size / largest mode the decomposition is written down exactly instead.

    Args:
        problem: Target (O, n_2, ..., n_d): mode 2 is the channels, the others the window. Start:
            a ``CPTensor`` of rank r <= R, of which all factors but the first are used; the error
            of the result is not above that of the start, but for the ridge.
        R: Number of rank-1 terms.
        settings: Of the solver.

    Returns:
        d factors (n_j, R) with weights 1, each term's norm spread evenly over its factors.
    """
    tensor, roots = problem.target, problem.roots
    if not tensor.any():
        return cp_tensor([np.zeros((n, R)) for n in tensor.shape])
    if exact_rank(tensor.shape) <= R:
        return cp_tensor(_exact(tensor, R))
    fit = _search_factors(problem, _start(problem, R, settings.seed), settings)
    factors = [np.linalg.solve(root.T, f.cpu().numpy()) for root, f in zip(roots, fit.factors)]
    return cp_tensor([fit.outer.cpu().numpy(), *factors])


def cp_tensor(factors: Sequence[np.ndarray]) -> CPTensor:
    """Make a ``CPTensor`` with weights 1 of factors (n_j, R), each term's norm spread evenly."""
    even = equalize_norms([torch.from_numpy(np.ascontiguousarray(f)) for f in factors])
    return CPTensor((np.ones(factors[0].shape[1]), [factor.numpy() for factor in even]))


def _search_factors(problem: Problem, factors: Factors, settings: SolverSettings) -> Fit:
    """Search in whitened coordinates, first without the full metric, then under it if there is one.

    Args:
        problem: As given to ``cp``.
        factors: (n_j, R) to start from, of all modes but the first, in whitened coordinates.
        settings: Of the solver.
    """
    tensor, metric, effort = problem.whitened, problem.metric, settings.effort
    cg_dtype = torch.float64 if tensor.size <= MAX_DOUBLE_SIZE else torch.float32
    target = torch.from_numpy(tensor).reshape(len(tensor), -1)
    target = target.to(settings.device)
    factors = [factor.to(settings.device) for factor in factors]
    R = factors[0].shape[1]
    if metric is None or metric.full is None:
        product = FROBENIUS_PRODUCTS * R**3
        small, _ = _affordable(MAX_SMALL_STEPS, product, effort * SMALL_WORK)
        steps, cg_steps = _affordable(FROBENIUS_STEPS, product, effort * FROBENIUS_WORK)
        loss = FrobeniusLoss(target, cg_dtype, RIDGE)
        return _search(loss, factors, max(steps, small), cg_steps)
    if problem.start is None:
        product = FROBENIUS_PRODUCTS * R**3
        steps, cg_steps = _affordable(FIRST_STEPS, product, effort * METRIC_WORK)
        factors = _search(FrobeniusLoss(target, cg_dtype, RIDGE), factors, steps, cg_steps).factors
    moments = torch.from_numpy(metric.whitened(tensor.shape[2:])).to(settings.device)
    product = 2 * len(moments) * R * (len(moments) + 3 * R)
    max_steps = round(effort * (METRIC_STEPS if problem.start is None else WARM_STEPS))
    steps, cg_steps = _affordable(max_steps, product, METRIC_WORK)
    return _search(MetricLoss.of(target, moments, cg_dtype, RIDGE), factors, steps, cg_steps)


def _search(loss: FrobeniusLoss | MetricLoss, start: Factors, steps: int, cg_steps: int) -> Fit:
    """Search with bounded terms, and without where that leads to an exact decomposition."""
    fit = minimise(loss, start, steps, cg_steps)
    if fit.error > NEARLY_EXACT:
        return fit
    return minimise(replace(loss, ridge=FINE_RIDGE), fit.factors, steps, cg_steps)


def _affordable(max_steps: int, product: float, work: float) -> tuple[int, int]:
    """Return the number of steps, and of conjugate gradients a step, that ``work`` pays for.

    Args:
        max_steps: At most so many steps.
        product: Operations of one conjugate gradient.
        work: Operations in all.
    """
    cg_steps = int(min(max(work / product, MIN_CG_STEPS), MAX_CG_STEPS))
    return int(min(max_steps, max(work / product / cg_steps, 1))), cg_steps


def _start(problem: Problem, R: int, seed: int) -> Factors:
    """Return whitened factors to start from: those given, or a guess; random where there are none.

    A guess has the leading directions of the channels and a random window.
    """
    rng = np.random.default_rng(seed)
    if problem.start is not None:
        given = [root.T @ f for root, f in zip(problem.roots, problem.start.factors[1:])]
        factors = [np.hstack([f, _noise(rng, f, R - f.shape[1])]) for f in given]
        return [torch.from_numpy(f) for f in factors]
    tensor = problem.whitened
    channels = np.moveaxis(tensor, 1, 0).reshape(tensor.shape[1], -1)
    power, vectors = np.linalg.eigh(channels @ channels.T)
    nonzero = power > ZERO_POWER * power[-1]  # a term in a direction without power stays zero
    leading = (vectors[:, nonzero] * power[nonzero] ** 0.25)[:, ::-1][:, :R]
    first = np.hstack([leading, _noise(rng, leading, R - leading.shape[1])])
    factors = [first, *(rng.standard_normal((n, R)) for n in tensor.shape[2:])]
    return [torch.from_numpy(f) for f in factors]


def _noise(rng: np.random.Generator, like: np.ndarray, count: int) -> np.ndarray:
    """Random columns (n, count) of the mean power of ``like`` (n, r)."""
    return rng.standard_normal((len(like), count)) * math.sqrt(float(np.mean(like**2)))


def _exact(tensor: np.ndarray, R: int) -> list[np.ndarray]:
    """Write a tensor as one term per fibre of its largest mode, zero terms up to R."""
    largest = int(np.argmax(tensor.shape))
    rest = [n for mode, n in enumerate(tensor.shape) if mode != largest]
    fibres = np.moveaxis(tensor, largest, 0).reshape(tensor.shape[largest], -1)
    columns = np.indices(rest).reshape(len(rest), -1)  # which entry of each other mode
    factors = [np.eye(n)[:, column] for n, column in zip(rest, columns)]
    factors.insert(largest, fibres)
    return [np.pad(factor, ((0, 0), (0, R - factor.shape[1]))) for factor in factors]
