"""Ridge regression from the patches of a layer to what its outputs lack."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from converter.reconstruction.products import factorize, gram, product, solve

# Ridges relative to the mean power of the patches, from which cross-validation chooses.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Patches:
    """Patches X (P, n), and the smaller of X^T X / P and X X^T / P.

    Attributes:
        X: The patches.
        moments: (n, n), or (P, P) if there are fewer patches than entries.
    """

    X: np.ndarray
    moments: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> Patches:
        """Compute the products of the patches."""
        P, n = X.shape
        return cls(X, gram(X if n <= P else X.T) / P)

    def with_ridge(self, ridge: float) -> Regression:
        """Prepare a regression with a ridge, relative to the mean power of the patches."""
        power = float(np.trace(self.moments)) / self.X.shape[1] or 1.0  # some are always 0
        ridged = self.moments.copy()
        ridged[np.diag_indices(len(ridged))] += ridge * power
        return Regression(self.X, factorize(ridged))


@dataclass(frozen=True)
class Regression:
    """The least |X C - Y|^2 / P + l |C|^2 over C (n, O).

    C = (X^T X / P + l I)^-1 X^T Y / P = X^T (X X^T / P + l I)^-1 Y / P.

    Attributes:
        X: Patches (P, n).
        factor: Cholesky factor of the smaller of the two matrices.
    """

    X: np.ndarray
    factor: torch.Tensor

    def fit(self, Y: np.ndarray) -> np.ndarray:
        """Return C (n, O) for Y (P, O)."""
        P, n = self.X.shape
        if len(self.factor) == n:
            return solve(self.factor, product(self.X.T, Y).astype(np.float64) / P)
        return product(self.X.T, solve(self.factor, Y.astype(np.float64)) / P)


def choose_ridge(X: np.ndarray, residual: np.ndarray) -> float:
    """Choose the ridge of ``RIDGES`` with which half of the patches best predicts the rest.

    They are tried from the smallest on, until the error rises.

    Args:
        X: Patches (P, n), image by image, so that the halves are of different images.
        residual: (P, O), what the outputs of the trained kernel lack.
    """
    half = len(X) // 2
    first, best = Patches.of(X[:half]), math.inf
    for number, ridge in enumerate(RIDGES):
        rest = residual[half:] - product(X[half:], first.with_ridge(ridge).fit(residual[:half]))
        error = float(np.square(rest, dtype=np.float64).sum())
        if error >= best:
            return RIDGES[number - 1]
        best = error
    return RIDGES[-1]
