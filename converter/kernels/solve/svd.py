"""Truncated singular value decompositions, exact under the Frobenius norm (Eckart and Young)."""

from __future__ import annotations

import numpy as np


def truncated_svd(matrices: np.ndarray, R: int) -> tuple[np.ndarray, np.ndarray]:
    """Factor each matrix of a stack at rank R, the square root of the values on both sides.

    Args:
        matrices: (..., m, n), float64.
        R: At most min(m, n).

    Returns:
        left (..., m, R) and right (..., R, n) with left @ right the best approximation.
    """
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(s[..., :R])
    return u[..., :R] * root[..., None, :], root[..., :, None] * vt[..., :R, :]


def tail_errors(matrix: np.ndarray) -> np.ndarray:
    """Relative Frobenius error of the best approximation at each rank.

    Args:
        matrix: (m, n).

    Returns:
        (min(m, n) + 1,): entry R is the error at rank R; entry 0 is 1.
    """
    energy = np.linalg.svd(matrix, compute_uv=False) ** 2
    tail = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    return np.sqrt(tail / max(energy.sum(), np.finfo(np.float64).tiny))
