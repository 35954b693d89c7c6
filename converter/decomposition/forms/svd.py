"""Forms solved by an SVD: ``spatial``, ``channel``, ``decoupled``; and ``dense``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from tensorly.cp_tensor import CPTensor
from tensorly.tt_tensor import TTTensor

from converter.decomposition.form import ErrorAt, Form, Kernels, Rank, Shape, default_ranks
from converter.decomposition.forms.steps import (
    axis_window,
    columns,
    covered_axes,
    needs_two_axes,
    needs_window,
    ones,
    pointwise,
    squeezed,
)
from converter.decomposition.problem import KernelProblem, SolverSettings
from converter.decomposition.solvers import tensorly
from converter.decomposition.solvers.khatri_rao import cp_tensor
from converter.decomposition.solvers.svd import tail_errors, truncated_svd

SVD: TypeAlias = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def _split_axes(problem: KernelProblem, rank: Rank, svd: SVD) -> TTTensor:
    """Split into one convolution for each axis, by SVD (arXiv 1405.3866, scheme 2).

    Over three axes this is the tensor train of Oseledets (2011): an SVD splits the first axis
    from the rest, which is split again. Under a metric all axes are whitened by its Kronecker
    form, in which the SVD is exact.

    Returns:
        A tensor train of the kernel as (I K1, K2, ..., Kn O), without axes of size 1.
    """
    problem = problem.squeezed()
    rest = np.moveaxis(problem.whitened, 0, -1)  # (I, K1, ..., Kn, O)
    cores = []
    weight = np.ones(rest.shape[0])  # singular values that are shared with the core before
    for R in rank:
        rows, columns = math.prod(rest.shape[:2]), rest.shape[2:]
        weighted = rest * weight.reshape(-1, *[1] * (rest.ndim - 1))
        left, right = svd(weighted.reshape(rows, -1), R)  # (M K, R), (R, ...)
        left = np.pad(left, ((0, 0), (0, R - left.shape[1])))
        right = np.pad(right, ((0, R - right.shape[0]), (0, 0)))
        inverse = np.divide(1, weight, out=np.zeros_like(weight), where=weight > 0)
        cores.append(left.reshape(len(weight), -1, R) * inverse[:, None, None])  # (M, K, R)
        rest, weight = right.reshape(R, *columns), np.linalg.norm(left, axis=0)
    cores.append(rest)  # (R, K, O)
    channels, *windows = (np.linalg.inv(root) for root in problem.roots)
    cores[0] = np.einsum("mkr,mi->ikr", cores[0], channels)
    cores = [np.einsum("mkr,kl->mlr", core, window) for core, window in zip(cores, windows)]
    return _tensor_train(cores)


def _tensor_train(cores: list[np.ndarray]) -> TTTensor:
    """Make a tensor train of (I, K1, R1), (R1, K2, R2), ..., (Rn, Kn, O)."""
    first, *middle, last = cores
    first, last = first.reshape(1, -1, first.shape[2]), last.reshape(len(last), -1, 1)
    return TTTensor([first, *middle, last])


def _spatial_kernels(train: TTTensor, shape: Shape) -> Kernels:
    cores = [*train.factors]
    cores[0] = cores[0].reshape(shape[1], -1, cores[0].shape[2])
    cores[-1] = cores[-1].reshape(len(cores[-1]), -1, shape[0])
    kernels = [core.transpose(2, 0, 1) for core in cores]  # (R, M, K)
    return [
        (f.reshape(*f.shape[:2], *axis_window(axis, f.shape[2], shape)), 1)
        for f, axis in zip(kernels, covered_axes(shape[2:]))
    ]


def _spatial_tensor(kernels: Kernels) -> TTTensor:
    """Reverse ``_spatial_kernels``."""
    return _tensor_train(
        [kernel.reshape(*kernel.shape[:2], -1).transpose(1, 2, 0) for kernel, _ in kernels]
    )


def _spatial_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    channels, axes = (shape[1], *rank, shape[0]), covered_axes(shape[2:])
    return [
        ((after, before, *axis_window(axis, shape[2 + axis], shape)), 1)
        for before, after, axis in zip(channels, channels[1:], axes)
    ]


def _spatial_max_rank(shape: Shape) -> Rank:
    sizes = [shape[1], *squeezed(shape)[2:], shape[0]]
    cuts = range(2, len(sizes) - 1)
    return tuple(min(math.prod(sizes[:cut]), math.prod(sizes[cut:])) for cut in cuts)


def _spatial_errors(kernel: np.ndarray) -> ErrorAt:
    """Add up the errors of the cuts: exact for one, for two a bound (Oseledets 2011, thm 2.2)."""
    tensor = np.moveaxis(kernel.reshape(squeezed(kernel.shape)), 0, -1)  # (I, K1, ..., Kn, O)
    cuts = range(2, tensor.ndim - 1)
    tails = [tail_errors(tensor.reshape(math.prod(tensor.shape[:cut]), -1)) for cut in cuts]
    return lambda rank: math.hypot(*(tail[r] for tail, r in zip(tails, rank)))


def _solve_channel(problem: KernelProblem, rank: Rank, settings: SolverSettings) -> CPTensor:
    matrix = problem.target.reshape(len(problem.target), -1)  # (O, I K)
    moments = None if problem.metric is None else problem.metric.dense()
    out, filters = truncated_svd(matrix, rank[0], moments)
    return cp_tensor([out, filters.T])


def _channel_with_tensorly(
    problem: KernelProblem, rank: Rank, settings: SolverSettings
) -> CPTensor:
    problem = problem.merged()
    O, I, K = problem.target.shape
    out, filters = tensorly.truncated_svd(problem.whitened.reshape(O, -1), rank[0])
    channels, window = (np.linalg.inv(root) for root in problem.roots)
    filters = np.einsum("rik,ij,kl->rjl", filters.reshape(-1, I, K), channels, window)
    return cp_tensor([out, filters.reshape(-1, I * K).T])


def _channel_errors(kernel: np.ndarray) -> ErrorAt:
    """Return the part of the spectrum that the SVD leaves out (Eckart and Young 1936)."""
    tail = tail_errors(kernel.reshape(len(kernel), -1))
    return lambda rank: float(tail[rank[0]])


def _per_input(kernel: np.ndarray) -> np.ndarray:
    """Return the matrix (O, K) of each input channel of a kernel (O, I, *k): (I, O, K)."""
    matrices: np.ndarray = kernel.reshape(*kernel.shape[:2], -1).swapaxes(0, 1)
    return matrices


def _solve_decoupled(problem: KernelProblem, rank: Rank, settings: SolverSettings) -> CPTensor:
    moments = None if problem.metric is None else problem.metric.windows()
    return _decoupled(*truncated_svd(_per_input(problem.target), rank[0], moments))


def _decoupled_with_tensorly(
    problem: KernelProblem, rank: Rank, settings: SolverSettings
) -> CPTensor:
    problem = problem.merged()
    root = problem.roots[1]
    out, window = tensorly.truncated_svd(_per_input(problem.target) @ root, rank[0])
    return _decoupled(out, window @ np.linalg.inv(root))


def _decoupled(out: np.ndarray, window: np.ndarray) -> CPTensor:
    """Make terms of (I, O, m) and (I, m, K): m for each input channel."""
    I, O, m = out.shape
    mix = out.transpose(1, 0, 2).reshape(O, -1)  # (O, I m)
    return cp_tensor([mix, np.eye(I).repeat(m, axis=1), window.reshape(I * m, -1).T])


def _decoupled_kernels(tensor: CPTensor, shape: Shape) -> Kernels:
    mix, _, window = tensor.factors
    return [
        (window.T.reshape(-1, 1, *shape[2:]), shape[1]),
        (pointwise(mix, len(shape) - 2), 1),
    ]


def _decoupled_tensor(kernels: Kernels) -> CPTensor:
    """Reverse ``_decoupled_kernels``."""
    (window, I), (mix, _) = kernels
    inputs = np.eye(I).repeat(len(window) // I, axis=1)
    return cp_tensor([columns(mix).T, inputs, columns(window)])


def _decoupled_errors(kernel: np.ndarray) -> ErrorAt:
    """Add up the parts of the spectra that the SVD of each input channel leaves out."""
    energy = np.linalg.svd(_per_input(kernel), compute_uv=False) ** 2
    tail = np.append(energy.sum(0)[::-1].cumsum()[::-1], 0.0)  # over ranks, of all channels
    return lambda rank: math.sqrt(tail[rank[0]] / max(tail[0], np.finfo(np.float64).tiny))


# One convolution for each axis.
spatial = Form(
    name="spatial",
    solve=lambda p, rank, settings: _split_axes(p, rank, truncated_svd),
    solve_with_tensorly=lambda p, rank, settings: _split_axes(p, rank, tensorly.truncated_svd),
    to_kernels=_spatial_kernels,
    to_tensor=_spatial_tensor,
    shapes=_spatial_shapes,
    max_rank=_spatial_max_rank,
    refuses=needs_two_axes,
    reference_rank=lambda s: (s[0],) * len(_spatial_max_rank(s)),
    splits_depthwise=True,
    errors=_spatial_errors,
)

# The layer with its own shape. Its weights are refit to correct the errors of the layers before it.
dense = Form(
    name="dense",
    solve=lambda p, rank, settings: [(p.target, 1)],
    solve_with_tensorly=lambda p, rank, settings: [(p.target, 1)],
    shapes=lambda s, r: [(s, 1)],
    max_rank=lambda s: (1,),
    default="1",
    per_channel=True,
    splits_depthwise=True,
    rank_policy=lambda form, conv, size, block: [],
)

# Filter to R channels, then mix: an SVD of (O, I K), exact under any metric (arXiv 1505.06798).
channel = Form(
    name="channel",
    solve=_solve_channel,
    solve_with_tensorly=_channel_with_tensorly,
    to_kernels=lambda tensor, s: [
        (tensor.factors[1].T.reshape(-1, *s[1:]), 1),
        (pointwise(tensor.factors[0], len(s) - 2), 1),
    ],
    to_tensor=lambda kernels: cp_tensor([columns(kernels[1][0]).T, columns(kernels[0][0])]),
    shapes=lambda s, r: [((r[0], *s[1:]), 1), ((s[0], r[0], *ones(s)), 1)],
    max_rank=lambda s: (min(s[0], math.prod(s[1:])),),
    errors=_channel_errors,
)

# Give each input channel m windows, then mix them: an SVD (O, K) for each (arXiv 1808.05517).
decoupled = Form(
    name="decoupled",
    solve=_solve_decoupled,
    solve_with_tensorly=_decoupled_with_tensorly,
    to_kernels=_decoupled_kernels,
    to_tensor=_decoupled_tensor,
    shapes=lambda s, r: [
        ((s[1] * r[0], 1, *s[2:]), s[1]),
        ((s[0], s[1] * r[0], *ones(s)), 1),
    ],
    max_rank=lambda s: (min(s[0], math.prod(s[2:])),),
    default="2",
    refuses=needs_window,
    reference_rank=lambda s: (math.prod(s[2:]),),
    per_channel=True,
    errors=_decoupled_errors,
    rank_policy=lambda form, conv, size, block: (
        default_ranks(form, conv, size, block) if max(conv.stride) > 1 else []
    ),
)
