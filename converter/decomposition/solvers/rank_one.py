"""The best rank-1 term of each tensor of a stack."""

from __future__ import annotations

import numpy as np
from tensorly.cp_tensor import CPTensor

from converter.decomposition.solvers.khatri_rao import cp_tensor, equalize_arrays


def rank_one(tensors: np.ndarray, start: CPTensor | None = None, sweeps: int = 100) -> CPTensor:
    """Return the best rank-1 term of each tensor of a stack (higher-order power method).

    Started from the leading singular vector of each mode's unfolding, in turn, of what the modes
    before it leave (Vannieuwenhoven, Vandebril and Meerbergen 2012), so that the start of a sparse
    tensor is never orthogonal to it; exact where a tensor has rank 1.

    Args:
        tensors: (N, n_1, ..., n_d), float64.
        start: Terms to start from, in the form of the result; or None.
        sweeps: Number of passes over the modes.

    Returns:
        The stack as a sum of N terms: factors (N, N), the identity, and (n_1, N), ..., (n_d, N),
        the norm of each term spread evenly over the latter.
    """
    count, modes = len(tensors), tensors.ndim - 1
    letters = "abcdef"[:modes]
    factors = _start(tensors) if start is None else [f.T for f in start.factors[1:]]
    for _ in range(sweeps):
        for mode in range(modes):
            others = [j for j in range(modes) if j != mode]
            spec = ",".join([f"z{letters}", *(f"z{letters[j]}" for j in others)])
            product = np.einsum(
                f"{spec}->z{letters[mode]}", tensors, *(factors[j] for j in others), optimize=True
            )
            norm = np.linalg.norm(product, axis=1, keepdims=True)
            factors[mode] = product / np.maximum(norm, np.finfo(np.float64).tiny)
    factors[-1] = factors[-1] * norm
    return cp_tensor([np.eye(count), *equalize_arrays([factor.T for factor in factors])])


def _start(tensors: np.ndarray) -> list[np.ndarray]:
    """Return leading singular vectors (N, n_j) of each mode in turn."""
    factors, rest = [], tensors
    for size in tensors.shape[1:]:
        unfolding = rest.reshape(len(tensors), size, -1)
        _, vectors = np.linalg.eigh(unfolding @ unfolding.transpose(0, 2, 1))
        factors.append(vectors[:, :, -1])
        rest = np.einsum("znm,zn->zm", unfolding, factors[-1])
    return factors
