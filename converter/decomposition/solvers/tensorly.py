"""tensorly's own decompositions, in the coordinates that a metric's Kronecker form whitens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from tensorly import decomposition
from tensorly.cp_tensor import CPTensor
from tensorly.tenalg import svd_interface
from tensorly.tucker_tensor import TuckerTensor

from converter.decomposition.problem import KernelProblem, SolverSettings
from converter.decomposition.solvers.khatri_rao import cp_tensor, equalize_arrays
from converter.errors import ConverterError

MAX_ITERATIONS = 100  # tensorly's default


def parafac(problem: KernelProblem, R: int, settings: SolverSettings) -> CPTensor:
    """Decompose (O, n_2, ..., n_d) by alternating least squares, started by SVD.

    Returns:
        d factors (n_j, R) with weights 1, each term's norm spread evenly over its factors.

    Raises:
        ConverterError: When tensorly fails, or does not converge to finite factors.
    """
    if not problem.target.any():  # on which parafac divides by zero
        return cp_tensor([np.zeros((n, R)) for n in problem.target.shape])
    _, (out, *factors) = _checked(
        decomposition.parafac,
        problem.whitened,
        R,
        n_iter_max=_iterations(settings),
        init="svd",
        random_state=settings.seed,
    )
    if not all(np.isfinite(factor).all() for factor in (out, *factors)):
        raise ConverterError(f"tensorly did not converge at rank {R}; use --solver flatconv.")
    unwhitened = [np.linalg.solve(root.T, f) for root, f in zip(problem.roots, factors)]
    return cp_tensor(equalize_arrays([out, *unwhitened]))


def rank_one(problem: KernelProblem, settings: SolverSettings) -> CPTensor:
    """Decompose each filter of (O, n_2, ..., n_d) at rank 1.

    Returns:
        Factors (O, O), the identity, and (n_2, O), ..., (n_d, O), with weights 1.
    """
    terms = [
        parafac(KernelProblem(kernel[None]), 1, settings).factors for kernel in problem.whitened
    ]
    out, *factors = (np.hstack(columns) for columns in zip(*terms))
    factors[0] = factors[0] * out  # (n_2, O) times (1, O)
    unwhitened = [np.linalg.solve(root.T, f) for root, f in zip(problem.roots, factors)]
    return cp_tensor([np.eye(len(terms)), *unwhitened])


def partial_tucker(
    problem: KernelProblem, ranks: tuple[int, int], settings: SolverSettings
) -> TuckerTensor:
    """Decompose (O, I, K) over its first two modes at ``ranks`` (R2, R1).

    Returns:
        Core (R2, R1, K); factors (O, R2), (I, R1) and, for the window, the identity.
    """
    K = problem.target.shape[2]
    if not problem.target.any():
        zeros = [np.zeros((n, R)) for n, R in zip(problem.target.shape, ranks)]
        return TuckerTensor((np.zeros((*ranks, K)), [*zeros, np.eye(K)]))
    (core, (out, inner)), _ = _checked(
        decomposition.partial_tucker,
        problem.whitened,
        list(ranks),
        modes=[0, 1],
        n_iter_max=_iterations(settings),
        random_state=settings.seed,
    )
    channels, window = problem.roots
    core = core @ np.linalg.inv(window)
    return TuckerTensor((core, [out, np.linalg.solve(channels.T, inner), np.eye(K)]))


def truncated_svd(matrices: np.ndarray, R: int) -> tuple[np.ndarray, np.ndarray]:
    """Factor matrices (..., m, n) as ``svd.truncated_svd`` does, by tensorly."""
    left, right = [], []
    for matrix in matrices.reshape(-1, *matrices.shape[-2:]):
        u, s, vt = _checked(svd_interface, matrix, n_eigenvecs=R)
        left.append(u * np.sqrt(s))
        right.append(np.sqrt(s)[:, None] * vt)
    stack = matrices.shape[:-2]
    return np.reshape(left, (*stack, *left[0].shape)), np.reshape(right, (*stack, *right[0].shape))


def _iterations(settings: SolverSettings) -> int:
    return max(round(settings.effort * MAX_ITERATIONS), 1)


def _checked(solve: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call tensorly without its warnings.

    Raises:
        ConverterError: When tensorly fails on a singular matrix.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return solve(*args, **kwargs)
    except np.linalg.LinAlgError as error:
        raise ConverterError(
            f"tensorly could not decompose this kernel ({error}); use a lower rank or "
            "--solver flatconv."
        ) from None
