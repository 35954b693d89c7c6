"""The two losses of a CP decomposition, with the outputs' factor eliminated.

The model is W ~ A Z(f)^T with W (O, n), A (O, R), and Z(f) (n, R) the Khatri-Rao product of the
factors f of the other modes, whose sizes multiply to n. A has a closed form for given f, so only f
is searched (variable projection; Kaufman's approximation of the Jacobian).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from converter.decomposition.solvers.khatri_rao import Factors, contract, hadamard, khatri_rao

Product: TypeAlias = Callable[[Factors], Factors]  # multiplies changes of the factors
RIDGE = 1e-6
MAX_RAISES = 10  # times that a ridge may grow tenfold


@dataclass(frozen=True)
class Iterate:
    """One set of factors, with A and the matrices that products with the Jacobian need."""

    factors: Factors
    outer: torch.Tensor  # A (O, R)
    inner: torch.Tensor  # A^T A (R, R)
    lower: torch.Tensor  # L (R, R): Z^T S Z plus the ridge is L L^T
    inverse: torch.Tensor  # (L L^T)^-1
    basis: torch.Tensor | None  # Z L^-T (n, R)
    weighted: torch.Tensor | None  # S Z L^-T (n, R)
    loss: float  # squared error plus ridge, which the steps lower
    error: float  # squared error

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
    """The squared Frobenius error; its gradients need small Gram matrices only.

    Attributes:
        target: (O, n), double.
        cg_dtype: Precision of conjugate gradients.
        ridge: Share of the power of each term that is added to the squared error. It keeps terms
            from growing while they cancel each other (arXiv 2008.05441).
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

    def gradient(self, point: Iterate) -> Factors:
        """Half the gradient of the squared error in the factors."""
        projected = self.target.to(point.outer.dtype).T @ point.outer  # (n, R)
        grams = [f.T @ f for f in point.factors]
        return [
            f @ (point.inner * hadamard(grams[:j] + grams[j + 1 :]))
            - contract(projected, point.factors, j)
            for j, f in enumerate(point.factors)
        ]

    def curvature(self, point: Iterate) -> Product:
        """Return the product with half the Gauss-Newton matrix."""
        modes, factors = range(len(point.factors)), point.factors
        grams = [f.T @ f for f in factors]
        rest = [hadamard(grams[:j] + grams[j + 1 :]) for j in modes]  # of all other modes
        own = [point.inner * matrix for matrix in rest]
        pairs = {  # of all modes but two
            (i, j): hadamard([point.inner, *(grams[l] for l in modes if l not in (i, j))])
            for i, j in itertools.permutations(modes, 2)
        }

        def product(v: Factors) -> Factors:
            mixed = [x.T @ f for x, f in zip(v, factors)]  # (R of v, R of f)
            change = mixed[0] * rest[0]  # dZ^T Z
            for j in modes[1:]:
                change = torch.addcmul(change, mixed[j], rest[j])
            back = point.inverse @ change.T @ point.inner  # (R, R)
            result = []
            for i in modes:
                weights = -back * rest[i]
                for j in modes:
                    if j != i:
                        weights = torch.addcmul(weights, pairs[i, j], mixed[j])
                result.append(v[i] @ own[i] + factors[i] @ weights)
            return result

        return product


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
        point = _iterate(self, factors, self.weighted_target.T @ Z, Z.T @ SZ)
        basis, weighted = (
            torch.linalg.solve_triangular(point.lower.T, x, upper=True, left=False) for x in (Z, SZ)
        )
        return replace(point, basis=basis, weighted=weighted)

    def gradient(self, point: Iterate) -> Factors:
        """Half the gradient of the squared error in the factors."""
        assert point.weighted is not None
        target = self.weighted_target.to(point.outer.dtype)
        gradient = point.weighted @ (point.lower.T @ point.inner) - target @ point.outer
        return [contract(gradient, point.factors, j) for j in range(len(point.factors))]

    def curvature(self, point: Iterate) -> Product:
        """Return the product with half the Gauss-Newton matrix."""
        f, basis, below = point.factors, point.basis, point.weighted
        assert basis is not None and below is not None
        metric = self.cg_metric.to(f[0].dtype)

        def product(v: Factors) -> Factors:
            change = khatri_rao([v[0], *f[1:]])
            for j in range(1, len(f)):
                change = change + khatri_rao([*f[:j], v[j], *f[j + 1 :]])
            weighted = metric @ change
            # Changes in the span of Z cost nothing, because A compensates for them.
            weighted -= below @ (basis.T @ weighted)
            image = weighted @ point.inner
            return [contract(image, f, j) for j in range(len(f))]

        return product


def cholesky(matrix: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """Return L of matrix + diag(ridge) = L L^T; the ridge is raised if rounding needs it."""
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
    """Solve A (Z^T S Z) = W S Z for ``gram`` = Z^T S Z and ``cross`` = W S Z, with a ridge on A."""
    ridge = loss.ridge * gram.diagonal()
    ridge = ridge + torch.finfo(cross.dtype).eps * ridge.mean() + torch.finfo(torch.float32).tiny
    lower = cholesky(gram, ridge)
    inverse = torch.cholesky_inverse(lower)
    outer = cross @ inverse
    inner, power = outer.T @ outer, loss.power
    common = float((outer * cross).sum())
    error = power - 2 * common + float((inner * gram).sum())
    return Iterate(factors, outer, inner, lower, inverse, None, None, power - common, error)
