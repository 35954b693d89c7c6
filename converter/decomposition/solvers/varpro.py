"""Sums of rank-1 terms under a metric, by Gauss-Newton on what is not linear in them.

The model is W ~ A Z(f)^T with W (O, n), A (O, R), and Z(f) (n, R) the Khatri-Rao product of the
factors f of the other modes, whose sizes multiply to n. A has a closed form for given f, so only f
is searched (variable projection; Kaufman's approximation of the Jacobian), by Levenberg and
Marquardt's method with preconditioned conjugate gradients inside (the block preconditioner and the
gain rule are those of Sorber, Van Barel and De Lathauwer 2013). Alternating least squares needs
many times the sweeps to come as far. What is solved for is kept in double precision; conjugate
gradients, where the work is, may run in single.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

RIDGE = 1e-6
# It stops when a step lowers the error by less than this share of it.
LEAST_GAIN = 1e-5
LEAST_DAMPING, MOST_DAMPING = 1e-10, 1e6
RAISES = 10  # times that a ridge may grow tenfold
CG_TOLERANCE = 1e-4  # of the squared preconditioned residual

Factors = list[torch.Tensor]


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


@dataclass(frozen=True)
class _Point:
    """What is known at one set of factors: A, and what its products with Z need."""

    factors: Factors
    outer: torch.Tensor  # A (O, R)
    inner: torch.Tensor  # A^T A (R, R)
    lower: torch.Tensor  # L (R, R): Z^T S Z and the ridge are L L^T
    inverse: torch.Tensor  # of L L^T
    basis: torch.Tensor | None  # Z L^-T (n, R)
    weighted: torch.Tensor | None  # S Z L^-T (n, R)
    loss: float  # the squared error with the ridge, which is what the steps lower
    error: float  # the squared error

    def to(self, dtype: torch.dtype) -> _Point:
        """The same in another precision."""
        return replace(
            self,
            factors=[f.to(dtype) for f in self.factors],
            outer=self.outer.to(dtype),
            inner=self.inner.to(dtype),
            lower=self.lower.to(dtype),
            inverse=self.inverse.to(dtype),
            basis=None if self.basis is None else self.basis.to(dtype),
            weighted=None if self.weighted is None else self.weighted.to(dtype),
        )


@dataclass(frozen=True)
class Plain:
    """The Frobenius metric, where Z is never needed: its products are those of small Grams.

    Attributes:
        target: (O, n), double.
        light: The precision of conjugate gradients.
        ridge: How much of the power of each term is added to the squared error; it keeps terms
            from growing against one another (arXiv 2008.05441).
    """

    target: torch.Tensor
    light: torch.dtype = torch.float64
    ridge: float = RIDGE

    @property
    def power(self) -> float:
        """|W|^2."""
        return float(self.target.double().square().sum())

    def evaluate(self, factors: Factors) -> _Point:
        """Solve for A."""
        gram = _hadamard([f.T @ f for f in factors])
        return _point(self, factors, self.target @ khatri_rao(factors), gram)

    def gradient(self, at: _Point) -> Factors:
        """Half the gradient of the squared error in the factors."""
        seen = self.target.T @ at.outer  # (n, R)
        grams = [f.T @ f for f in at.factors]
        return [
            f @ (at.inner * _hadamard(grams[:j] + grams[j + 1 :])) - contract(seen, at.factors, j)
            for j, f in enumerate(at.factors)
        ]

    def curvature(self, at: _Point, v: Factors) -> Factors:
        """Multiply ``v`` by half the Gauss-Newton matrix."""
        modes = range(len(v))
        grams = [f.T @ f for f in at.factors]
        mixed = [x.T @ f for x, f in zip(v, at.factors)]  # (R of v, R of f)
        moved = sum(_hadamard([*grams[:j], mixed[j], *grams[j + 1 :]]) for j in modes)  # dZ^T Z
        assert isinstance(moved, torch.Tensor)
        back = at.inverse @ moved.T @ at.inner  # (R, R)
        result = []
        for i in modes:
            total = v[i] @ (at.inner * _hadamard(grams[:i] + grams[i + 1 :]))
            weights = -back * _hadamard(grams[:i] + grams[i + 1 :])
            for j in modes:
                if j != i:
                    others = [mixed[l] if l == j else grams[l] for l in modes if l != i]
                    weights = weights + at.inner * _hadamard(others)
            result.append(total + at.factors[i] @ weights)
        return result


@dataclass(frozen=True)
class Weighted:
    """A full metric S (n, n): the error of what a layer gives on patches of second moments S."""

    target: torch.Tensor  # W (O, n)
    metric: torch.Tensor  # S (n, n)
    seen: torch.Tensor  # S W^T (n, O)
    light_metric: torch.Tensor  # S in the precision of conjugate gradients
    ridge: float = RIDGE

    @classmethod
    def of(
        cls,
        target: torch.Tensor,
        metric: torch.Tensor,
        light: torch.dtype = torch.float64,
        ridge: float = RIDGE,
    ) -> Weighted:
        """Prepare the products with the target."""
        return cls(target, metric, metric @ target.T, metric.to(light), ridge)

    @property
    def light(self) -> torch.dtype:
        """The precision of conjugate gradients."""
        return self.light_metric.dtype

    @property
    def power(self) -> float:
        """tr(W S W^T)."""
        return float((self.seen.T * self.target).double().sum())

    def evaluate(self, factors: Factors) -> _Point:
        """Solve for A."""
        Z = khatri_rao(factors)
        SZ = self.metric @ Z
        at = _point(self, factors, self.seen.T @ Z, Z.T @ SZ)
        basis, weighted = (
            torch.linalg.solve_triangular(at.lower.T, x, upper=True, left=False) for x in (Z, SZ)
        )
        return replace(at, basis=basis, weighted=weighted)

    def gradient(self, at: _Point) -> Factors:
        """Half the gradient of the squared error in the factors."""
        assert at.weighted is not None
        slope = at.weighted @ (at.lower.T @ at.inner) - self.seen @ at.outer
        return [contract(slope, at.factors, j) for j in range(len(at.factors))]

    def curvature(self, at: _Point, v: Factors) -> Factors:
        """Multiply ``v`` by half the Gauss-Newton matrix."""
        assert at.basis is not None and at.weighted is not None
        f = at.factors
        moved = khatri_rao([v[0], *f[1:]])
        for j in range(1, len(f)):
            moved = moved + khatri_rao([*f[:j], v[j], *f[j + 1 :]])
        weighted = self.light_metric.to(moved.dtype) @ moved
        # What A can make up for does not count.
        weighted -= at.weighted @ (at.basis.T @ weighted)
        slope = weighted @ at.inner
        return [contract(slope, f, j) for j in range(len(f))]


def minimise(problem: Plain | Weighted, start: Factors, steps: int, cg_steps: int) -> Fit:
    """Search the factors from ``start``; the error never rises.

    Args:
        problem: What to fit.
        start: One (n_j, R) for each mode, double.
        steps: At most so many steps of Levenberg and Marquardt.
        cg_steps: At most so many conjugate gradients a step.
    """
    power = problem.power
    at = problem.evaluate(balanced(start))
    damping, growth = 1e-3, 2.0
    for _ in range(steps):
        slope = problem.gradient(at)
        light = at.to(problem.light)
        blocks = _blocks(at)
        scales = [float(block.diagonal().mean()) for block in blocks]
        found = None
        while found is None and damping < MOST_DAMPING:
            damps = [max(damping * scale, torch.finfo(problem.light).tiny) for scale in scales]
            change, drop = _newton(problem, light, slope, blocks, damps, cg_steps)
            trial = problem.evaluate(balanced([f + x for f, x in zip(at.factors, change)]))
            gain = min((at.loss - trial.loss) / max(drop, torch.finfo(torch.float64).tiny), 1.0)
            if trial.loss < at.loss:
                found = trial
                damping = max(damping * max(0.2, 1 - (2 * gain - 1) ** 3), LEAST_DAMPING)
                growth = 2.0
            else:
                damping, growth = damping * growth, 2 * growth
        if found is None:
            break
        small = at.loss - found.loss <= LEAST_GAIN * at.loss
        at = found
        if small:
            break
    return Fit(at.outer, at.factors, max(at.error, 0.0) / (power or 1.0))


def khatri_rao(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Column-wise Kronecker product: (n_1, R), (n_2, R), ... -> (n_1 n_2 ..., R)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None] * factor).reshape(-1, factor.shape[1])
    return product


def contract(matrix: torch.Tensor, factors: Sequence[torch.Tensor], mode: int) -> torch.Tensor:
    """Multiply (n_1 n_2 ..., R) column by column with all factors but one: (n_mode, R)."""
    R = matrix.shape[1]
    before, after = factors[:mode], factors[mode + 1 :]
    left = math.prod(f.shape[0] for f in before)
    rest = matrix.reshape(left, factors[mode].shape[0], -1, R)
    if after:
        rest = (rest * khatri_rao(after)).sum(2)
    if before:
        rest = (rest.reshape(left, -1, R) * khatri_rao(before)[:, None]).sum(0)
    return rest.reshape(-1, R)


def balanced(factors: Sequence[torch.Tensor]) -> Factors:
    """Rescale the factors (n_j, R) of each term to equal norms; their product stays."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors])  # (d, R)
    alive = (norms > 0).all(0)
    mean = norms.clamp_min(torch.finfo(norms.dtype).tiny).log().mean(0).exp()
    scale = torch.where(alive, mean / norms, torch.zeros_like(norms))
    return [factor * s for factor, s in zip(factors, scale)]


def _hadamard(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Entrywise product of at least one matrix."""
    product = matrices[0]
    for matrix in matrices[1:]:
        product = product * matrix
    return product


def _point(
    problem: Plain | Weighted,
    factors: Factors,
    seen: torch.Tensor,
    gram: torch.Tensor,
) -> _Point:
    """Solve A (Z^T S Z) = W S Z, ``seen``, with a ridge on each term's own power."""
    ridge = problem.ridge * gram.diagonal()
    ridge = ridge + torch.finfo(seen.dtype).eps * ridge.mean() + torch.finfo(torch.float32).tiny
    lower = _cholesky(gram, ridge)
    inverse = torch.cholesky_inverse(lower)
    outer = seen @ inverse
    inner, power = outer.T @ outer, problem.power
    common = float((outer * seen).sum())
    error = power - 2 * common + float((inner * gram).sum())
    return _Point(factors, outer, inner, lower, inverse, None, None, power - common, error)


def _cholesky(matrix: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """L L^T = matrix + diag(ridge); with more ridge where rounding left the matrix indefinite."""
    for _ in range(RAISES):
        lower, failed = torch.linalg.cholesky_ex(matrix + torch.diag(ridge))
        if not failed:
            break
        ridge = 10 * ridge
    found: torch.Tensor = lower
    return found


def _blocks(at: _Point) -> list[torch.Tensor]:
    """Diagonal blocks of the Gauss-Newton matrix, as if A were fixed and S the identity."""
    grams = [f.T @ f for f in at.factors]
    return [
        at.inner * _hadamard(grams[:j] + grams[j + 1 :]) for j in range(len(grams))
    ]  # each (R, R), the same for every row of the factor


def _newton(
    problem: Plain | Weighted,
    at: _Point,
    slope: Factors,
    blocks: Sequence[torch.Tensor],
    damps: Sequence[float],
    cg_steps: int,
) -> tuple[Factors, float]:
    """Solve the damped Gauss-Newton system; the step and the drop of the loss it predicts.

    Products with an inverse are faster than triangular solves.
    """
    inverses = [
        torch.cholesky_inverse(_cholesky(block, damp * torch.ones_like(block[0]))).to(problem.light)
        for block, damp in zip(blocks, damps)
    ]
    slope = [s.to(problem.light) for s in slope]

    def precondition(v: Factors) -> Factors:
        return [x @ inverse for x, inverse in zip(v, inverses)]

    x = [torch.zeros_like(s) for s in slope]
    residual = [-s for s in slope]
    direction = precondition(residual)
    power = first = _dot(residual, direction)
    if not first > 0:
        return x, 0.0
    for _ in range(cg_steps):
        image = problem.curvature(at, direction)
        image = [y + d * v for y, d, v in zip(image, damps, direction)]
        bend = _dot(direction, image)
        if not bend > 0:
            break
        length = power / bend
        x = [u + length * v for u, v in zip(x, direction)]
        residual = [u - length * v for u, v in zip(residual, image)]
        solved = precondition(residual)
        power, before = _dot(residual, solved), power
        if not power > CG_TOLERANCE * first:
            break
        direction = [u + (power / before) * v for u, v in zip(solved, direction)]
    # Of CG's iterates: -slope.x = x.H x + residual.x, so the model's drop is slope and residual's.
    return x, -_dot(slope, x) + _dot(residual, x)


def _dot(a: Factors, b: Factors) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b))
