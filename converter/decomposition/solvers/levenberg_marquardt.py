"""Levenberg and Marquardt's method for the losses of a CP decomposition.

Each step is solved with preconditioned conjugate gradients (the block preconditioner and the gain
rule are those of Sorber, Van Barel and De Lathauwer 2013). Alternating least squares needs many
times the sweeps to come as far. Factors are kept in double precision; conjugate gradients, where
the work is, may run in single.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from converter.decomposition.solvers.khatri_rao import Factors, equalize_norms, hadamard
from converter.decomposition.solvers.varpro import FrobeniusLoss, Iterate, MetricLoss, cholesky

MIN_GAIN = 1e-5  # the search stops when a step lowers the error by less than this share of it
MIN_DAMPING, MAX_DAMPING = 1e-10, 1e6
CG_TOLERANCE = 1e-4  # of the squared preconditioned residual


@dataclass(frozen=True)
class Fit:
    """Factors that fit a matrix.

    Attributes:
        outer: A (O, R).
        factors: f, one (n_j, R) for each mode.
        error: |W - A Z^T|^2 / |W|^2 under the metric, ridge not counted.
    """

    outer: torch.Tensor
    factors: Factors
    error: float


def minimise(
    loss: FrobeniusLoss | MetricLoss, start: Factors, max_steps: int, max_cg_steps: int
) -> Fit:
    """Search the factors from ``start``; the error never rises.

    Args:
        loss: The loss to minimise.
        start: One (n_j, R) for each mode, double.
        max_steps: Upper bound on the steps of Levenberg and Marquardt.
        max_cg_steps: Upper bound on the steps of conjugate gradients in each.
    """
    power = loss.power
    point = loss.evaluate(equalize_norms(start))
    damping, growth = 1e-3, 2.0
    for _ in range(max_steps):
        cg_point = point.to(loss.cg_dtype)
        gradient = loss.gradient(cg_point)
        blocks = _preconditioner_blocks(point)
        scales = [float(block.diagonal().mean()) for block in blocks]
        accepted = None
        while accepted is None and damping < MAX_DAMPING:
            damps = [max(damping * scale, torch.finfo(loss.cg_dtype).tiny) for scale in scales]
            change, drop = _newton_step(loss, cg_point, gradient, blocks, damps, max_cg_steps)
            trial = loss.evaluate(equalize_norms([f + x for f, x in zip(point.factors, change)]))
            gain = min((point.loss - trial.loss) / max(drop, torch.finfo(torch.float64).tiny), 1.0)
            if trial.loss < point.loss:
                accepted = trial
                damping = max(damping * max(0.2, 1 - (2 * gain - 1) ** 3), MIN_DAMPING)
                growth = 2.0
            else:
                damping, growth = damping * growth, 2 * growth
        if accepted is None:
            break
        converged = point.loss - accepted.loss <= MIN_GAIN * point.loss
        point = accepted
        if converged:
            break
    return Fit(point.outer, point.factors, max(point.error, 0.0) / (power or 1.0))


def _newton_step(
    loss: FrobeniusLoss | MetricLoss,
    point: Iterate,
    gradient: Factors,
    blocks: Sequence[torch.Tensor],
    damps: Sequence[float],
    max_cg_steps: int,
) -> tuple[Factors, float]:
    """Solve the damped Gauss-Newton system; return the step and its predicted drop of the loss.

    Products with an inverse are faster than triangular solves.
    """
    inverses = [
        torch.cholesky_inverse(cholesky(block, damp * torch.ones_like(block[0]))).to(loss.cg_dtype)
        for block, damp in zip(blocks, damps)
    ]

    def precondition(v: Factors) -> Factors:
        return [x @ inverse for x, inverse in zip(v, inverses)]

    x = [torch.zeros_like(s) for s in gradient]
    residual = [-s for s in gradient]
    direction = precondition(residual)
    power = first = _dot(residual, direction)
    if not first > 0:
        return x, 0.0
    product = loss.curvature(point)
    for _ in range(max_cg_steps):
        image = [y + d * v for y, d, v in zip(product(direction), damps, direction)]
        curvature = _dot(direction, image)
        if not curvature > 0:
            break
        step_size = power / curvature
        x = [u + step_size * v for u, v in zip(x, direction)]
        residual = [u - step_size * v for u, v in zip(residual, image)]
        preconditioned = precondition(residual)
        power, before = _dot(residual, preconditioned), power
        if not power > CG_TOLERANCE * first:
            break
        direction = [u + (power / before) * v for u, v in zip(preconditioned, direction)]
    # For iterates of CG, -g.x = x.H x + residual.x (g the gradient), so the model drops by this.
    return x, -_dot(gradient, x) + _dot(residual, x)


def _preconditioner_blocks(point: Iterate) -> list[torch.Tensor]:
    """Return diagonal blocks of the Gauss-Newton matrix, with A taken as fixed and S as identity.

    Returns:
        For each factor one (R, R), the same for every row of the factor.
    """
    grams = [f.T @ f for f in point.factors]
    return [point.inner * hadamard(grams[:j] + grams[j + 1 :]) for j in range(len(grams))]


def _dot(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Return the inner product of two sets of factors."""
    return sum(float((x * y).sum()) for x, y in zip(a, b))
