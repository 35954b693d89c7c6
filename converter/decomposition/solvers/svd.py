"""Truncated singular value decompositions of stacks of matrices, their errors, and exact ranks."""

from __future__ import annotations

import math

import numpy as np


def truncated_svd(
    matrices: np.ndarray, R: int, metric: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Factor each matrix of a stack at rank R; both factors get the roots of the singular values.

    numpy decomposes a stack at once; tensorly's ``svd_interface`` takes one matrix.

    Args:
        matrices: (..., m, n), float64.
        R: At most min(m, n).
        metric: (..., n, n), positive definite; the identity if None.

    Returns:
        a (..., m, R) and b (..., R, n) with a @ b the best approximation of the matrix M: the
        least tr(D S D^T) of D = M - a @ b under the metric S (Eckart and Young 1936).
    """
    if metric is not None:
        metric = np.linalg.cholesky(metric)
        matrices = matrices @ metric
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(s[..., :R])
    a, b = u[..., :R] * root[..., None, :], root[..., :, None] * vt[..., :R, :]
    if metric is not None:
        b = np.linalg.solve(metric.swapaxes(-1, -2), b.swapaxes(-1, -2)).swapaxes(-1, -2)
    return a, b


def tail_errors(matrix: np.ndarray) -> np.ndarray:
    """Return the relative Frobenius error of the best approximation at each rank.

    Args:
        matrix: (m, n).

    Returns:
        (min(m, n) + 1,): entry R is the error at rank R; entry 0 is 1.
    """
    energy = np.linalg.svd(matrix, compute_uv=False) ** 2
    tail = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    errors: np.ndarray = np.sqrt(tail / max(energy.sum(), np.finfo(np.float64).tiny))
    return errors


def exact_rank(shape: tuple[int, ...]) -> int:
    """Return a rank at which every tensor of ``shape`` has an exact CP decomposition."""
    return math.prod(shape) // max(shape)
