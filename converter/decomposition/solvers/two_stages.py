"""Two stages of 1-D filters in a row: the layers of the paper's networks, as one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tensorly.cp_tensor import CPTensor

from converter.decomposition.problem import KernelProblem, SolverSettings
from converter.decomposition.solvers.cp import cp
from converter.decomposition.solvers.khatri_rao import cp_tensor
from converter.decomposition.solvers.svd import exact_rank
from converter.decomposition.taps import stage_sizes

ITERATIONS = 300
NOISE = 0.1  # of the root mean square entry, for channels without a term to start from


def two_stages(
    problem: KernelProblem, R: int, settings: SolverSettings
) -> tuple[CPTensor, CPTensor]:
    """Write a kernel as two stages, each a mix of channels and a 1-D filter per axis and channel.

    W[o, i, h, w] = sum_r C[o, r] L[r, i] (v1[r] * v2[o])(h) (h1[r] * h2[o])(w), with convolutions
    of the 1-D filters (arXiv 1412.5474, section 3.1). No closed form is known. L-BFGS starts from
    CP terms cut to the first stage's size and searches all factors, in the coordinates that the
    metric's Kronecker form whitens. The result is a local minimum.

    Args:
        problem: Target (O, I, *k), every entry of k above 1.
        R: Channels between the stages.
        settings: Settings of the solver.

    Returns:
        The kernels of the stages, (R, I, *k1) and (O, R, *k2), each with the identity as its first
        factor and weights 1. Where the second stage does not extend over an axis, k2 is 1.
    """
    start = [
        torch.from_numpy(f).to(settings.device).requires_grad_()
        for f in _start(problem, R, settings)
    ]
    half = len(start) // 2
    roots = [torch.from_numpy(root).to(settings.device) for root in problem.roots]
    target = torch.from_numpy(problem.whitened).to(settings.device)
    power = float(target.square().sum()) or 1.0
    search = torch.optim.LBFGS(
        start, max_iter=max(round(settings.effort * ITERATIONS), 1), line_search_fn="strong_wolfe"
    )

    def relative_squared_error() -> torch.Tensor:
        search.zero_grad()
        kernel = _kernel(start[:half], start[half:])
        for mode, root in enumerate(roots, start=1):
            kernel = torch.movedim(torch.movedim(kernel, mode, -1) @ root, -1, mode)
        loss = (kernel - target).square().sum() / power
        loss.backward()
        return loss

    search.step(relative_squared_error)
    solved = [factor.detach().cpu().numpy() for factor in start]
    return _stage(solved[:half]), _stage(solved[half:])


def _stage(rows: Sequence[np.ndarray]) -> CPTensor:
    """Return the kernel of one stage with filters (C, n_j), one for each of its C channels."""
    return cp_tensor([np.eye(len(rows[0])), *(row.T for row in rows)])


def _start(problem: KernelProblem, R: int, settings: SolverSettings) -> list[np.ndarray]:
    """Return the factors (R, I), (R, k1), ... of the first stage, then (O, R), (O, k2), ..."""
    tensor = problem.target
    # Terms of an exact decomposition are single taps; cut to the first stage, many would vanish.
    terms = min(R, max(exact_rank(tensor.shape) - 1, 1))
    factors = cp(problem, terms, settings).factors
    rng = np.random.default_rng(settings.seed)
    size = [NOISE * float(np.sqrt(np.mean(factor**2))) for factor in factors]
    out, lateral, *windows = (
        np.hstack([f, scale * rng.standard_normal((len(f), R - terms))])
        for f, scale in zip(factors, size)
    )
    first, second = [lateral.T], [out]
    for window, width in zip(windows, tensor.shape[2:]):
        first_size, second_size = stage_sizes(width)
        begin = second_size // 2
        first.append(window[begin : begin + first_size].T)
        second.append(np.eye(second_size)[[begin] * len(tensor)])
    return [np.ascontiguousarray(f) for f in (*first, *second)]


def _kernel(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compose two stages into the kernel (O, I, *k) that they compute."""
    lateral, *first_windows = first
    mix, *second_windows = second
    kernel = lateral
    for axis, window in enumerate(first_windows):
        shape = [len(window), *[1] * (axis + 1), window.shape[1]]
        kernel = kernel[..., None] * window.reshape(shape)
    kernel = torch.tensordot(mix, kernel, 1)  # (O, I, *k1)
    for axis, window in enumerate(second_windows, start=2):
        rows = kernel.movedim(axis, -1)
        last_tap = window.shape[1] - 1
        column = (-1, *[1] * (rows.ndim - 1))
        terms = [
            torch.nn.functional.pad(rows, (tap, last_tap - tap)) * window[:, tap].reshape(column)
            for tap in range(last_tap + 1)
        ]
        kernel = torch.stack(terms).sum(0).movedim(-1, axis)
    return kernel
