"""How each form factors a kernel.

Every function named like a form takes the kernel of one group, (O, I, *k) in float64, a rank and
a ``Setting``, and gives the kernels of the steps, each with its groups; ``..._errors`` takes the
kernel and gives a function from rank to relative error.
"""

from __future__ import annotations

import math

import numpy as np

from converter.decomposition.form import ErrorAt, Kernels, Rank, Setting, Shape
from converter.decomposition.metric import Metric, mapped
from converter.decomposition.solvers.svd import tail_errors, truncated_svd
from converter.decomposition.solvers.tucker import tucker2


def _pointwise(matrix: np.ndarray, axes: int) -> np.ndarray:
    return matrix.reshape(*matrix.shape, *[1] * axes)  # (O, I) -> (O, I, 1, 1)


def _along(factor: np.ndarray, axis: int, axes: int) -> np.ndarray:
    shape = [1] * axes
    shape[axis] = factor.shape[0]
    found: np.ndarray = factor.T.reshape(-1, 1, *shape)  # (K, R) -> (R, 1, K, 1) for axis 0 of 2
    return found


def lvh(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Give each filter its best rank-1 chain: lateral, vertical, horizontal (arXiv 1412.5474).

    With one input channel there is nothing lateral but a factor, which the next step takes.
    """
    O, I, *k = kernel.shape
    axes = covered(tuple(k))
    from converter.decomposition.solvers.cp import (
        rank_one,  # shapes are asked for where torch is not
    )

    roots = _roots(kernel, setting.metric)
    factors = rank_one(mapped(kernel.reshape(squeezed(kernel.shape)), roots))
    lateral, *spatial = (np.linalg.solve(root.T, f.T).T for root, f in zip(roots, factors))
    if I == 1:
        spatial[0] = spatial[0] * lateral
    steps = [(_along(f.T, axis, len(k)), O) for f, axis in zip(spatial, axes)]
    if I == 1:
        return [(steps[0][0], 1), *steps[1:]]
    return [(_pointwise(lateral, len(k)), 1), *steps]


def lvh_twice(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Give two stages of lvh in a row, as the paper's networks have them (arXiv 1412.5474)."""
    from converter.decomposition.solvers.two_stages import (
        two_stages,  # shapes are asked for without torch
    )

    axes, k = covered(kernel.shape[2:]), kernel.shape[2:]
    tensor = kernel.reshape(squeezed(kernel.shape))
    steps: Kernels = []
    stages = two_stages(
        tensor, rank[0], setting.seed, setting.metric, setting.device, setting.effort
    )
    for mix, *windows in stages:
        factor = math.prod(window for window in windows if window.shape[1] == 1)
        steps.append((_pointwise(mix * factor, len(k)), 1))
        steps += [
            (_along(window.T, axis, len(k)), len(mix))
            for window, axis in zip(windows, axes)
            if window.shape[1] > 1
        ]
    return steps


def flattened(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """CP over all modes: R rank-1 filters shared by all outputs (arXiv 1412.6553)."""
    k = kernel.shape[2:]
    tensor = kernel.reshape(squeezed(kernel.shape))
    out, lateral, *spatial = _cp(tensor, rank[0], setting)  # (O, R), (I, R), (K, R) ...
    steps: Kernels = [(_pointwise(lateral.T, len(k)), 1)]
    steps += [(_along(f, axis, len(k)), rank[0]) for f, axis in zip(spatial, covered(k))]
    return [*steps, (_pointwise(out, len(k)), 1)]


def separable(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """CP over outputs, inputs and the whole kernel window."""
    O, I, *k = kernel.shape
    out, lateral, window = _cp(kernel.reshape(O, I, -1), rank[0], setting)
    return [
        (_pointwise(lateral.T, len(k)), 1),
        (window.T.reshape(-1, 1, *k), rank[0]),
        (_pointwise(out, len(k)), 1),
    ]


def _cp(tensor: np.ndarray, R: int, setting: Setting) -> list[np.ndarray]:
    from converter.decomposition.solvers.cp import cp  # shapes are asked for where torch is not

    start = None
    if setting.start is not None:  # the kernels of all steps but the last, which has a closed form
        lateral, *windows = (kernel for kernel, _ in setting.start[:-1])
        start = [lateral.reshape(len(lateral), -1).T]
        start += [window.reshape(len(window), -1).T for window in windows]
        start = [factor.astype(np.float64) for factor in start]
    return cp(tensor, R, setting.seed, setting.metric, start, setting.device, setting.effort)


def _roots(kernel: np.ndarray, metric: Metric | None) -> list[np.ndarray]:
    """Square roots of a metric's Kronecker form, for the channels and each axis covered."""
    sizes = squeezed(kernel.shape)[1:]
    return [np.eye(n) for n in sizes] if metric is None else metric.roots(sizes[1:])


def decoupled(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Give each input channel m windows, then mix them: an SVD (O x K) per input channel."""
    O, I, *k = kernel.shape
    per_input = kernel.reshape(O, I, -1).transpose(1, 0, 2)  # (I, O, K)
    moments = None if setting.metric is None else setting.metric.windows()
    out, window = truncated_svd(per_input, rank[0], right=moments)  # (I, O, m), (I, m, K)
    mix = out.transpose(1, 0, 2).reshape(O, -1)  # (O, I m)
    return [(window.reshape(-1, 1, *k), I), (_pointwise(mix, len(k)), 1)]


def decoupled_errors(kernel: np.ndarray) -> ErrorAt:
    """Add up what the SVD of each input channel leaves."""
    O, I = kernel.shape[:2]
    energy = np.linalg.svd(kernel.reshape(O, I, -1).swapaxes(0, 1), compute_uv=False) ** 2
    tail = np.append(energy.sum(0)[::-1].cumsum()[::-1], 0.0)  # over ranks, of all channels
    return lambda rank: math.sqrt(tail[rank[0]] / max(tail[0], np.finfo(np.float64).tiny))


def _train(kernel: np.ndarray) -> np.ndarray:
    """Order a kernel as ``spatial`` reads it: (I, K1, ..., Kn, O), without axes of size 1."""
    return np.moveaxis(kernel.reshape(squeezed(kernel.shape)), 0, -1)


def spatial(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Split into one convolution an axis by SVD (arXiv 1405.3866, scheme 2).

    Over three axes this is the tensor train of Oseledets (2011): an SVD splits the first axis
    from the rest, which is split again. Under a metric all axes are whitened by its Kronecker
    form, in which the SVD is exact.
    """
    axes = covered(kernel.shape[2:])
    roots = _roots(kernel, setting.metric)
    white = mapped(kernel.reshape(squeezed(kernel.shape)), roots)
    rest = np.moveaxis(white, 0, -1)  # (I, K1, ..., Kn, O)
    factors = []
    weight = np.ones(kernel.shape[1])  # singular values that are shared with the step before
    for R in rank:
        rows, columns = math.prod(rest.shape[:2]), rest.shape[2:]
        weighted = rest * weight.reshape(-1, *[1] * (rest.ndim - 1))
        left, right = truncated_svd(weighted.reshape(rows, -1), R)  # (M K, R), (R, ...)
        left = np.pad(left, ((0, 0), (0, R - left.shape[1])))
        right = np.pad(right, ((0, R - right.shape[0]), (0, 0)))
        inverse = np.divide(1, weight, out=np.zeros_like(weight), where=weight > 0)
        factors.append((left.reshape(len(weight), -1, R).T * inverse).swapaxes(1, 2))  # (R, M, K)
        rest, weight = right.reshape(R, *columns), np.linalg.norm(left, axis=0)
    factors.append(rest.transpose(2, 0, 1))  # (O, R, K)
    channels, *windows = roots
    factors[0] = np.einsum("rmk,mi->rik", factors[0], np.linalg.inv(channels))
    factors = [f @ np.linalg.inv(window) for f, window in zip(factors, windows)]
    return [
        (f.reshape(*f.shape[:2], *only(axis, f.shape[2], kernel.shape)), 1)
        for f, axis in zip(factors, axes)
    ]


def spatial_errors(kernel: np.ndarray) -> ErrorAt:
    """Add up the errors of the cuts: exact for one, for two a bound (Oseledets 2011, thm 2.2)."""
    train = _train(kernel)
    cuts = range(2, train.ndim - 1)
    tails = [tail_errors(train.reshape(math.prod(train.shape[:cut]), -1)) for cut in cuts]
    return lambda rank: math.hypot(*(tail[r] for tail, r in zip(tails, rank)))


def tucker(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Tucker-2: R1 input channels, a core convolution, R2 output channels (arXiv 1511.06530)."""
    O, I, *k = kernel.shape
    R1, R2 = rank
    out, core, inner = tucker2(kernel.reshape(O, I, -1), (R2, R1), setting.metric)
    return [
        (_pointwise(inner.T, len(k)), 1),
        (core.reshape(R2, R1, *k), 1),
        (_pointwise(out, len(k)), 1),
    ]


def tucker_errors(kernel: np.ndarray) -> ErrorAt:
    """Bound the error by those of the two unfoldings (De Lathauwer et al. 2000, property 10)."""
    O, I = kernel.shape[:2]
    tail_out = tail_errors(kernel.reshape(O, -1))
    tail_in = tail_errors(kernel.swapaxes(0, 1).reshape(I, -1))
    return lambda rank: math.hypot(tail_in[rank[0]], tail_out[rank[1]])


def channel(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Filter to R channels, then mix: an SVD of (O x I K), exact under any metric (1505.06798)."""
    O, I, *k = kernel.shape
    moments = None if setting.metric is None else setting.metric.dense()
    out, filters = truncated_svd(kernel.reshape(O, -1), rank[0], right=moments)
    return [(filters.reshape(-1, I, *k), 1), (_pointwise(out, len(k)), 1)]


def channel_errors(kernel: np.ndarray) -> ErrorAt:
    """Give what the SVD leaves (Eckart and Young 1936)."""
    tail = tail_errors(kernel.reshape(len(kernel), -1))
    return lambda rank: float(tail[rank[0]])


def covered(k: tuple[int, ...]) -> list[int]:
    """List the axes that a kernel of size ``k`` extends over."""
    return [axis for axis, size in enumerate(k) if size > 1]


def squeezed(shape: Shape) -> Shape:
    """Leave out the axes of size 1 of a kernel's shape (O, I, *k)."""
    return (*shape[:2], *(size for size in shape[2:] if size > 1))


def only(axis: int, size: int, shape: Shape) -> Shape:
    """Give the window of a step that covers one axis of a kernel of ``shape``."""
    return tuple(size if a == axis else 1 for a in range(len(shape) - 2))
