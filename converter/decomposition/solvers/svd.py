"""What linear algebra gives at once: truncated singular value decompositions, a bound on ranks."""

from __future__ import annotations

import math

import numpy as np


def truncated_svd(
    matrices: np.ndarray,
    R: int,
    left: np.ndarray | None = None,
    right: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Factor each matrix of a stack at rank R, the square root of the values on both sides.

    Args:
        matrices: (..., m, n), float64.
        R: At most min(m, n).
        left: (..., m, m), positive definite, or None.
        right: (..., n, n), positive definite, or None.

    Returns:
        a (..., m, R) and b (..., R, n) with a @ b the best approximation of the matrix M: the
        least tr(left D right D^T) of D = M - a @ b, where a metric left out is the identity.
    """
    if left is not None:
        left = np.linalg.cholesky(left)
        matrices = left.swapaxes(-1, -2) @ matrices
    if right is not None:
        right = np.linalg.cholesky(right)
        matrices = matrices @ right
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(s[..., :R])
    a, b = u[..., :R] * root[..., None, :], root[..., :, None] * vt[..., :R, :]
    if left is not None:
        a = np.linalg.solve(left.swapaxes(-1, -2), a)
    if right is not None:
        b = np.linalg.solve(right.swapaxes(-1, -2), b.swapaxes(-1, -2)).swapaxes(-1, -2)
    return a, b


def tail_errors(matrix: np.ndarray) -> np.ndarray:
    """Relative Frobenius error of the best approximation at each rank.

    Args:
        matrix: (m, n).

    Returns:
        (min(m, n) + 1,): entry R is the error at rank R; entry 0 is 1.
    """
    energy = np.linalg.svd(matrix, compute_uv=False) ** 2
    tail = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    found: np.ndarray = np.sqrt(tail / max(energy.sum(), np.finfo(np.float64).tiny))
    return found


def exact_rank(shape: tuple[int, ...]) -> int:
    """Return a rank at which every tensor of ``shape`` has an exact CP decomposition."""
    return math.prod(shape) // max(shape)
