"""CP decompositions: a tensor as a sum of R rank-1 terms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from tensorly.cp_tensor import CPTensor

from converter.decomposition.problem import KernelProblem, SolverSettings
from converter.decomposition.solvers.khatri_rao import Factors, cp_tensor, equalize_arrays
from converter.decomposition.solvers.levenberg_marquardt import Fit, minimise
from converter.decomposition.solvers.svd import exact_rank
from converter.decomposition.solvers.threads import threads_for
from converter.decomposition.solvers.varpro import FrobeniusLoss, MetricLoss

# Most steps of the search: without a full metric; in the same norm, before a full metric is used;
# under the full metric; and under it when a start is given.
FROBENIUS_STEPS, FIRST_STEPS, METRIC_STEPS, WARM_STEPS = 19, 10, 30, 8
MIN_CG_STEPS, MAX_CG_STEPS = 4, 10
# Operations that a decomposition may take with and without a full metric. Without, one step of
# conjugate gradients takes ``FROBENIUS_PRODUCTS`` products of (R, R) matrices.
METRIC_WORK, FROBENIUS_WORK, FROBENIUS_PRODUCTS = 1e11, 5e11, 24
# Below this share of the power, an error may vanish but for the ridge, which is then lowered.
NEARLY_EXACT = 1e-3
RIDGE, FINE_RIDGE = 1e-4, 1e-6
# Without a full metric, small decompositions may take many more steps.
MAX_SMALL_STEPS, SMALL_WORK = 200, 1.2e10
ZERO_POWER = 1e-12  # of the power of the strongest direction of the channels
MAX_DOUBLE_SIZE = 100_000  # entries of a tensor up to which double precision costs nothing


def cp(problem: KernelProblem, R: int, settings: SolverSettings = SolverSettings()) -> CPTensor:
    """Decompose a tensor with a small error in the Frobenius norm or under a metric.

    CP commutes with a linear map of each mode. Under a metric, the modes are therefore whitened
    with its Kronecker form, decomposed, improved under the full metric in the same coordinates, and
    mapped back. At R >= size / largest mode the decomposition is written down exactly instead.

    Args:
        problem: Target (O, n_2, ..., n_d): mode 2 is the channels, the others the window. Start:
            a ``CPTensor``, of which all factors but the first are used. Of more than R terms, the
            R largest start; else the error of the result is not above that of the start, but for
            the ridge.
        R: Number of rank-1 terms.
        settings: Settings of the solver.

    Returns:
        d factors (n_j, R) with weights 1, each term's norm spread evenly over its factors.
    """
    tensor, roots = problem.target, problem.roots
    if not tensor.any():
        return cp_tensor([np.zeros((n, R)) for n in tensor.shape])
    if exact_rank(tensor.shape) <= R:
        return cp_tensor(equalize_arrays(_exact(tensor, R)))
    fit = _search_factors(problem, _start(problem, R, settings.seed), settings)
    factors = [np.linalg.solve(root.T, f.cpu().numpy()) for root, f in zip(roots, fit.factors)]
    return cp_tensor(equalize_arrays([fit.outer.cpu().numpy(), *factors]))


def _search_factors(problem: KernelProblem, factors: Factors, settings: SolverSettings) -> Fit:
    """Search in whitened coordinates, first without the full metric, then under it if there is one.

    Args:
        problem: The problem of ``cp``.
        factors: (n_j, R) to start from, of all modes but the first, in whitened coordinates.
        settings: Settings of the solver.
    """
    tensor, metric, effort = problem.whitened, problem.metric, settings.effort
    cg_dtype = torch.float64 if tensor.size <= MAX_DOUBLE_SIZE else torch.float32
    target = torch.from_numpy(tensor).reshape(len(tensor), -1)
    target = target.to(settings.device)
    factors = [factor.to(settings.device) for factor in factors]
    R = factors[0].shape[1]
    if metric is None or metric.full is None:
        product = FROBENIUS_PRODUCTS * R**3
        small, _ = _affordable(round(effort * MAX_SMALL_STEPS), product, effort * SMALL_WORK)
        steps, cg_steps = _affordable(FROBENIUS_STEPS, product, effort * FROBENIUS_WORK)
        loss = FrobeniusLoss(target, cg_dtype, RIDGE)
        with threads_for(product):
            return _search(loss, factors, max(steps, small), cg_steps)
    if problem.start is None:
        product = FROBENIUS_PRODUCTS * R**3
        steps, cg_steps = _affordable(FIRST_STEPS, product, effort * METRIC_WORK)
        with threads_for(product):
            loss = FrobeniusLoss(target, cg_dtype, RIDGE)
            factors = _search(loss, factors, steps, cg_steps).factors
    moments = torch.from_numpy(metric.whitened(tensor.shape[2:])).to(settings.device)
    product = 2 * len(moments) * R * (len(moments) + 3 * R)
    max_steps = round(effort * (METRIC_STEPS if problem.start is None else WARM_STEPS))
    steps, cg_steps = _affordable(max_steps, product, min(effort, 1.0) * METRIC_WORK)
    with threads_for(product):
        return _search(MetricLoss.of(target, moments, cg_dtype, RIDGE), factors, steps, cg_steps)


def _search(loss: FrobeniusLoss | MetricLoss, start: Factors, steps: int, cg_steps: int) -> Fit:
    """Search with a ridge that bounds the terms; lower it where the fit is nearly exact."""
    fit = minimise(loss, start, steps, cg_steps)
    if fit.error > NEARLY_EXACT:
        return fit
    return minimise(replace(loss, ridge=FINE_RIDGE), fit.factors, steps, cg_steps)


def _affordable(max_steps: int, product: float, work: float) -> tuple[int, int]:
    """Return how many steps, and conjugate gradient steps in each, ``work`` allows.

    Args:
        max_steps: Upper bound on the steps.
        product: Operations of one conjugate gradient step.
        work: Operations in all.
    """
    cg_steps = int(min(max(work / product, MIN_CG_STEPS), MAX_CG_STEPS))
    return int(min(max_steps, max(work / product / cg_steps, 1))), cg_steps


def _start(problem: KernelProblem, R: int, seed: int) -> Factors:
    """Return whitened factors (n_j, R) to start from, of all modes but the first.

    They are the factors of ``problem.start``, or the leading directions of the channels and random
    windows. Missing columns are random.
    """
    rng = np.random.default_rng(seed)
    if problem.start is not None:
        outer, *others = problem.start.factors
        factors = [root.T @ f for root, f in zip(problem.roots, others)]
        sizes = np.prod([np.linalg.norm(f, axis=0) for f in (outer, *factors)], axis=0)
        largest = np.sort(np.argsort(-sizes, kind="stable")[:R])
        factors = [f[:, largest] for f in factors]
        factors = [np.hstack([f, _noise(rng, f, R - f.shape[1])]) for f in factors]
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
    """Return random columns (n, count) of the same mean power as ``like`` (n, r)."""
    return rng.standard_normal((len(like), count)) * math.sqrt(float(np.mean(like**2)))


def _exact(tensor: np.ndarray, R: int) -> list[np.ndarray]:
    """Write a tensor as one term for each fibre of its largest mode; pad with zeros to R terms."""
    largest = int(np.argmax(tensor.shape))
    rest = [n for mode, n in enumerate(tensor.shape) if mode != largest]
    fibres = np.moveaxis(tensor, largest, 0).reshape(tensor.shape[largest], -1)
    columns = np.indices(rest).reshape(len(rest), -1)  # which entry of each other mode
    factors = [np.eye(n)[:, column] for n, column in zip(rest, columns)]
    factors.insert(largest, fibres)
    return [np.pad(factor, ((0, 0), (0, R - factor.shape[1]))) for factor in factors]
