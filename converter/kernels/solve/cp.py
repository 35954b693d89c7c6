"""CP decompositions: a tensor as a sum of R rank-1 terms."""

from __future__ import annotations

import math
import warnings

import numpy as np
import tensorly as tl
import torch
from tensorly.decomposition import parafac

ITERATIONS = 100


def cp(tensor: np.ndarray, R: int, seed: int) -> list[np.ndarray]:
    """Decompose by alternating least squares (tensorly's ``parafac``, torch backend).

    At R >= size / largest mode the decomposition is written down exactly instead.

    Args:
        tensor: (n_1, ..., n_d), float64.
        R: Number of rank-1 terms.
        seed: Of the random part of the start (used where R exceeds a mode's size).

    Returns:
        d factors (n_j, R), each term's norm spread evenly over its factors.
    """
    if not tensor.any():
        return [np.zeros((n, R)) for n in tensor.shape]
    if exact_rank(tensor.shape) <= R:
        factors = _exact(tensor, R)
    else:
        with tl.backend_context("pytorch"), warnings.catch_warnings():
            # parafac warns where R exceeds a mode, which it handles.
            warnings.simplefilter("ignore")
            _, found = parafac(
                torch.from_numpy(tensor + _dither(tensor, seed)),
                R,
                n_iter_max=ITERATIONS,
                tol=1e-7,
                init="svd",
                random_state=seed,
            )
        factors = [factor.numpy() for factor in found]
    return balanced(factors)


def exact_rank(shape: tuple[int, ...]) -> int:
    """Return a rank at which every tensor of ``shape`` has an exact decomposition."""
    return math.prod(shape) // max(shape)


def rank_one(tensors: np.ndarray, iterations: int = 100) -> list[np.ndarray]:
    """Give the best rank-1 term of each tensor of a stack (higher-order power method).

    Started from the leading singular vector of each mode's unfolding (De Lathauwer, De Moor and
    Vandewalle 2000); exact where a tensor has rank 1.

    Args:
        tensors: (N, n_1, ..., n_d), float64.
        iterations: Sweeps over the modes.

    Returns:
        d factors (N, n_j), norms spread evenly.
    """
    count, modes = len(tensors), tensors.ndim - 1
    letters = "abcdef"[:modes]
    factors = []
    for mode in range(modes):
        unfolding = np.moveaxis(tensors, 1 + mode, 1).reshape(count, tensors.shape[1 + mode], -1)
        _, vectors = np.linalg.eigh(unfolding @ unfolding.transpose(0, 2, 1))
        factors.append(vectors[:, :, -1])
    for _ in range(iterations):
        for mode in range(modes):
            others = [j for j in range(modes) if j != mode]
            spec = ",".join([f"z{letters}", *(f"z{letters[j]}" for j in others)])
            found = np.einsum(
                f"{spec}->z{letters[mode]}", tensors, *(factors[j] for j in others), optimize=True
            )
            norm = np.linalg.norm(found, axis=1, keepdims=True)
            factors[mode] = found / np.maximum(norm, np.finfo(np.float64).tiny)
    factors[-1] = factors[-1] * norm
    return [factor.T for factor in balanced([factor.T for factor in factors])]


def balanced(factors: list[np.ndarray]) -> list[np.ndarray]:
    """Rescale the factors (n_j, R) of each term to equal norms; their product stays."""
    norms = np.stack([np.linalg.norm(factor, axis=0) for factor in factors])  # (d, R)
    mean = np.prod(norms, axis=0) ** (1 / len(factors))
    scale = np.divide(mean, norms, out=np.zeros_like(norms), where=norms > 0)
    return [factor * s for factor, s in zip(factors, scale)]


def _dither(tensor: np.ndarray, seed: int) -> np.ndarray:
    """Noise 1e-7 of the tensor: ``parafac`` stops at the singular systems of deficient ones."""
    noise = np.random.default_rng(seed).standard_normal(tensor.shape)
    return 1e-7 * np.linalg.norm(tensor) / np.linalg.norm(noise) * noise


def _exact(tensor: np.ndarray, R: int) -> list[np.ndarray]:
    """Write a tensor as one term per fibre of its largest mode, zero terms up to R."""
    largest = int(np.argmax(tensor.shape))
    rest = [n for mode, n in enumerate(tensor.shape) if mode != largest]
    fibres = np.moveaxis(tensor, largest, 0).reshape(tensor.shape[largest], -1)
    columns = np.indices(rest).reshape(len(rest), -1)  # which entry of each other mode
    factors = [np.eye(n)[:, column] for n, column in zip(rest, columns)]
    factors.insert(largest, fibres)
    return [np.pad(factor, ((0, 0), (0, R - factor.shape[1]))) for factor in factors]
