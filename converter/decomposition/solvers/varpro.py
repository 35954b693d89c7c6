"""The two losses of a CP decomposition, with the outputs' factor eliminated.

The model is W ~ A Z(f)^T with W (O, n), A (O, R), and Z(f) (n, R) the Khatri-Rao product of the
factors f of the other modes, whose sizes multiply to n. A has a closed form for given f, so only f
is searched (variable projection; Kaufman's approximation of the Jacobian).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from converter.decomposition.solvers.khatri_rao import Factors, contract, hadamard, khatri_rao

RIDGE = 1e-6
MAX_RAISES = 10  # times that a ridge may grow tenfold


@dataclass(frozen=True)
class Iterate:
    """One set of factors, with A and the matrices that products with the Jacobian need."""

    factors: Factors
    outer: torch.Tensor  # A (O, R)
    inner: torch.Tensor  # A^T A (R, R)
    lower: torch.Tensor  # L (R, R): Z^T S Z and the ridge are L L^T
    inverse: torch.Tensor  # of L L^T
    basis: torch.Tensor | None  # Z L^-T (n, R)
    weighted: torch.Tensor | None  # S Z L^-T (n, R)
    loss: float  # the squared error with the ridge, which is what the steps lower
    error: float  # the squared error

    def to(self, dtype: torch.dtype) -> Iterate:
        """Return the same iterate in another precision."""
        tensors: dict[str, Any] = {
            name: value.to(dtype)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, factors=[f.to(dtype) for f in self.factors], **tensors)


@dataclass(frozen=True)
class FrobeniusLoss:
    """The squared Frobenius error, where Z is never formed: its products are small Gram matrices.

    Attributes:
        target: (O, n), double.
        cg_dtype: The precision of conjugate gradients.
        ridge: How much of the power of each term is added to the squared error; it keeps terms
            from growing against one another (arXiv 2008.05441).
    """

    target: torch.Tensor
    cg_dtype: torch.dtype = torch.float64
    ridge: float = RIDGE

    @property
    def power(self) -> float:
        """|W|^2."""
        return float(self.target.double().square().sum())

    def evaluate(self, factors: Factors) -> Iterate:
        """Solve for A."""
        gram = hadamard([f.T @ f for f in factors])
        return _iterate(self, factors, self.target @ khatri_rao(factors), gram)

    def gradient(self, at: Iterate) -> Factors:
        """Half the gradient of the squared error in the factors."""
        projected = self.target.T @ at.outer  # (n, R)
        grams = [f.T @ f for f in at.factors]
        return [
            f @ (at.inner * hadamard(grams[:j] + grams[j + 1 :]))
            - contract(projected, at.factors, j)
            for j, f in enumerate(at.factors)
        ]

    def curvature(self, at: Iterate, v: Factors) -> Factors:
        """Multiply ``v`` by half the Gauss-Newton matrix."""
        modes = range(len(v))
        grams = [f.T @ f for f in at.factors]
        mixed = [x.T @ f for x, f in zip(v, at.factors)]  # (R of v, R of f)
        change = sum(hadamard([*grams[:j], mixed[j], *grams[j + 1 :]]) for j in modes)  # dZ^T Z
        assert isinstance(change, torch.Tensor)
        back = at.inverse @ change.T @ at.inner  # (R, R)
        result = []
        for i in modes:
            total = v[i] @ (at.inner * hadamard(grams[:i] + grams[i + 1 :]))
            weights = -back * hadamard(grams[:i] + grams[i + 1 :])
            for j in modes:
                if j != i:
                    others = [mixed[l] if l == j else grams[l] for l in modes if l != i]
                    weights = weights + at.inner * hadamard(others)
            result.append(total + at.factors[i] @ weights)
        return result


@dataclass(frozen=True)
class MetricLoss:
    """The squared error under full moments S (n, n) of a layer's input patches."""

    target: torch.Tensor  # W (O, n)
    metric: torch.Tensor  # S (n, n)
    weighted_target: torch.Tensor  # S W^T (n, O)
    cg_metric: torch.Tensor  # S in the precision of conjugate gradients
    ridge: float = RIDGE

    @classmethod
    def of(
        cls,
        target: torch.Tensor,
        metric: torch.Tensor,
        cg_dtype: torch.dtype = torch.float64,
        ridge: float = RIDGE,
    ) -> MetricLoss:
        """Prepare the products with the target."""
        return cls(target, metric, metric @ target.T, metric.to(cg_dtype), ridge)

    @property
    def cg_dtype(self) -> torch.dtype:
        """The precision of conjugate gradients."""
        return self.cg_metric.dtype

    @property
    def power(self) -> float:
        """tr(W S W^T)."""
        return float((self.weighted_target.T * self.target).double().sum())

    def evaluate(self, factors: Factors) -> Iterate:
        """Solve for A."""
        Z = khatri_rao(factors)
        SZ = self.metric @ Z
        at = _iterate(self, factors, self.weighted_target.T @ Z, Z.T @ SZ)
        basis, weighted = (
            torch.linalg.solve_triangular(at.lower.T, x, upper=True, left=False) for x in (Z, SZ)
        )
        return replace(at, basis=basis, weighted=weighted)

    def gradient(self, at: Iterate) -> Factors:
        """Half the gradient of the squared error in the factors."""
        assert at.weighted is not None
        slope = at.weighted @ (at.lower.T @ at.inner) - self.weighted_target @ at.outer
        return [contract(slope, at.factors, j) for j in range(len(at.factors))]

    def curvature(self, at: Iterate, v: Factors) -> Factors:
        """Multiply ``v`` by half the Gauss-Newton matrix."""
        assert at.basis is not None and at.weighted is not None
        f = at.factors
        change = khatri_rao([v[0], *f[1:]])
        for j in range(1, len(f)):
            change = change + khatri_rao([*f[:j], v[j], *f[j + 1 :]])
        weighted = self.cg_metric.to(change.dtype) @ change
        # A makes up for the part of the change in the span of Z, which therefore does not count.
        weighted -= at.weighted @ (at.basis.T @ weighted)
        slope = weighted @ at.inner
        return [contract(slope, f, j) for j in range(len(f))]


def cholesky(matrix: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """L L^T = matrix + diag(ridge); with more ridge where rounding left the matrix indefinite."""
    for _ in range(MAX_RAISES):
        lower, failed = torch.linalg.cholesky_ex(matrix + torch.diag(ridge))
        if not failed:
            break
        ridge = 10 * ridge
    result: torch.Tensor = lower
    return result


def _iterate(
    loss: FrobeniusLoss | MetricLoss,
    factors: Factors,
    cross: torch.Tensor,
    gram: torch.Tensor,
) -> Iterate:
    """Solve A (Z^T S Z) = W S Z, ``cross``, with a ridge on each term's own power."""
    ridge = loss.ridge * gram.diagonal()
    ridge = ridge + torch.finfo(cross.dtype).eps * ridge.mean() + torch.finfo(torch.float32).tiny
    lower = cholesky(gram, ridge)
    inverse = torch.cholesky_inverse(lower)
    outer = cross @ inverse
    inner, power = outer.T @ outer, loss.power
    common = float((outer * cross).sum())
    error = power - 2 * common + float((inner * gram).sum())
    return Iterate(factors, outer, inner, lower, inverse, None, None, power - common, error)
