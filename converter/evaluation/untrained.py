"""Tell random weights from trained ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

MIN_SIDE, MAX_SIZE = 8, 2**22  # of the matrices that are looked at
MAX_RATIO = 1.1  # of the largest singular value; random: up to 1.01, trained: from 1.22 on


def look_untrained(kernels: Iterable[np.ndarray]) -> bool:
    """Whether all kernels (O, ...) look as if they were drawn at random, entry by entry.

    The largest singular value of an O x K matrix of independent entries of variance 1 is close to
    sqrt(O) + sqrt(K) (Bai and Yin, Annals of Probability 21, 1993). Training adds directions that
    are much larger, in some layer at least. Rows are scaled to the same norm first: a folded
    BatchNormalization scales them. Without a kernel that is large enough the answer is no.
    """
    matrices = [kernel.reshape(len(kernel), -1) for kernel in kernels if kernel.ndim > 1]
    usable = [m for m in matrices if min(m.shape) >= MIN_SIDE and m.size <= MAX_SIZE]
    usable.sort(key=lambda matrix: matrix.size)
    return bool(usable) and all(_ratio(matrix) < MAX_RATIO for matrix in usable)


def _ratio(matrix: np.ndarray) -> float:
    """Return the largest singular value over that of a random matrix with rows of such norms."""
    rows = matrix.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    if min(rows.shape) < MIN_SIDE:
        return 1.0
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    largest = math.sqrt(np.linalg.eigvalsh(gram)[-1])
    count, size = rows.shape
    return largest / ((math.sqrt(count) + math.sqrt(size)) / math.sqrt(size))
