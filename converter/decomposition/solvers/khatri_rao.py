"""Products and scaling of CP factors: the inner loops of the CP solver, in torch.

tensorly's ``khatri_rao`` takes two to four times as long under its torch backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from tensorly.cp_tensor import CPTensor

Factors: TypeAlias = list[torch.Tensor]


def khatri_rao(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the column-wise Kronecker product: (n_1, R), (n_2, R), ... -> (n_1 n_2 ..., R)."""
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


def equalize_norms(factors: Sequence[torch.Tensor]) -> Factors:
    """Rescale the factors (n_j, R) of each term to equal norms; their product stays."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors])  # (d, R)
    nonzero = (norms > 0).all(0)
    mean = norms.clamp_min(torch.finfo(norms.dtype).tiny).log().mean(0).exp()
    scale = torch.where(nonzero, mean / norms, torch.zeros_like(norms))
    return [factor * s for factor, s in zip(factors, scale)]


def equalize_arrays(factors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rescale arrays as ``equalize_norms`` does."""
    tensors = [torch.from_numpy(np.ascontiguousarray(factor)) for factor in factors]
    return [factor.numpy() for factor in equalize_norms(tensors)]


def cp_tensor(factors: Sequence[np.ndarray]) -> CPTensor:
    """Make a ``CPTensor`` of factors (n_j, R) with weights 1."""
    return CPTensor((np.ones(factors[0].shape[1]), list(factors)))


def hadamard(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the entrywise product of at least one matrix."""
    product = matrices[0]
    for matrix in matrices[1:]:
        product = product * matrix
    return product
