"""Products of large matrices, on the threads of torch.

The threads of numpy's BLAS spin for a while after each call. Beside those of torch, both solve no
faster on two cores than on one, so ``realize`` gives numpy's BLAS one thread.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

ROWS, BLOCKS = 8192, 4  # of a part of ``gram``


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return A B of two matrices, in the type of A."""
    left = torch.from_numpy(a)
    result: np.ndarray = (left @ torch.from_numpy(b).to(left.dtype)).numpy()
    return result


def gram(rows: np.ndarray) -> np.ndarray:
    """Return X^T X; products in the type of the rows, sums in float64."""
    n = rows.shape[1]
    edges = np.linspace(0, n, BLOCKS + 1).astype(int)
    total = np.zeros((n, n))
    for part in np.array_split(rows, max(len(rows) // ROWS, 1)):
        for start, end in itertools.pairwise(edges):  # the blocks above the diagonal
            total[start:end, start:] += product(part[:, start:end].T, part[:, start:])
    for start, end in itertools.pairwise(edges):
        total[end:, start:end] = total[start:end, end:].T
    return total


def factorize(matrix: np.ndarray) -> torch.Tensor:
    """Return the lower Cholesky factor of a positive definite matrix."""
    factor: torch.Tensor = torch.linalg.cholesky(torch.from_numpy(matrix))
    return factor


def solve(factor: torch.Tensor, right: np.ndarray) -> np.ndarray:
    """Return M^-1 B for the Cholesky factor of M and a matrix B."""
    result: np.ndarray = torch.cholesky_solve(torch.from_numpy(right), factor).numpy()
    return result
