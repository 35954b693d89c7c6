"""The registry of forms: the ways to write one kernel as a sequence of smaller ones.

A form is a function that takes the kernel of one group, (O, I, *k), and gives the kernels of its
steps, and a word on its shapes and ranks. Groups, stride, padding, dilation and bias are none of
its business: ``decompose`` deals with them for all forms.
"""

from __future__ import annotations

import math

import numpy as np

from converter.errors import ConverterError
from converter.kernels.form import ErrorAt, Form, Kernels, Rank, Setting, Shape
from converter.kernels.metric import Metric, mapped
from converter.kernels.solve.svd import exact_rank, tail_errors, truncated_svd
from converter.kernels.solve.tucker import tucker2
from converter.kernels.taps import stage_sizes

FORMS: dict[str, Form] = {}


def register(form: Form) -> None:
    """Make ``form`` known by its name."""
    FORMS[form.name] = form


def find_form(name: str) -> Form:
    """Look a form up.

    Raises:
        ConverterError: When there is none of that name.
    """
    if name not in FORMS:
        raise ConverterError(f"There is no form {name!r}; use one of {', '.join(FORMS)}.")
    return FORMS[name]


def _pointwise(matrix: np.ndarray, axes: int) -> np.ndarray:
    return matrix.reshape(*matrix.shape, *[1] * axes)  # (O, I) -> (O, I, 1, 1)


def _along(factor: np.ndarray, axis: int, axes: int) -> np.ndarray:
    shape = [1] * axes
    shape[axis] = factor.shape[0]
    found: np.ndarray = factor.T.reshape(-1, 1, *shape)  # (K, R) -> (R, 1, K, 1) for axis 0 of 2
    return found


def _covered(k: tuple[int, ...]) -> list[int]:
    return [axis for axis, size in enumerate(k) if size > 1]


def _lvh(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Give each filter its best rank-1 chain: lateral, vertical, horizontal (arXiv 1412.5474).

    With one input channel there is nothing lateral but a factor, which the next step takes.
    """
    O, I, *k = kernel.shape
    axes = _covered(tuple(k))
    from converter.kernels.solve.cp import rank_one  # shapes are asked for where torch is not

    roots = _roots(kernel, setting.metric)
    factors = rank_one(mapped(kernel.reshape(_squeezed(kernel.shape)), roots))
    lateral, *spatial = (np.linalg.solve(root.T, f.T).T for root, f in zip(roots, factors))
    if I == 1:
        spatial[0] = spatial[0] * lateral
    steps = [(_along(f.T, axis, len(k)), O) for f, axis in zip(spatial, axes)]
    if I == 1:
        return [(steps[0][0], 1), *steps[1:]]
    return [(_pointwise(lateral, len(k)), 1), *steps]


def _lvh_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    steps = _one_axis(shape, shape[0])
    if shape[1] == 1:
        return [(steps[0][0], 1), *steps[1:]]
    return [((*shape[:2], *_ones(shape)), 1), *steps]


def _lvh_twice(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Give two stages of lvh in a row, as the paper's networks have them (arXiv 1412.5474)."""
    from converter.kernels.solve.twice import two_stages  # shapes are asked for without torch

    axes, k = _covered(kernel.shape[2:]), kernel.shape[2:]
    tensor = kernel.reshape(_squeezed(kernel.shape))
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


def _lvh_twice_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    steps: list[tuple[Shape, int]] = []
    for stage, (O, I) in enumerate(((rank[0], shape[1]), (shape[0], rank[0]))):
        sizes = (*shape[:2], *(stage_sizes(size)[stage] for size in shape[2:]))
        steps += [((O, I, *_ones(shape)), 1), *_one_axis(sizes, O)]
    return steps


def _flattened(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """CP over all modes: R rank-1 filters shared by all outputs (arXiv 1412.6553)."""
    k = kernel.shape[2:]
    tensor = kernel.reshape(_squeezed(kernel.shape))
    out, lateral, *spatial = _cp(tensor, rank[0], setting)  # (O, R), (I, R), (K, R) ...
    steps: Kernels = [(_pointwise(lateral.T, len(k)), 1)]
    steps += [(_along(f, axis, len(k)), rank[0]) for f, axis in zip(spatial, _covered(k))]
    return [*steps, (_pointwise(out, len(k)), 1)]


def _separable(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """CP over outputs, inputs and the whole kernel window."""
    O, I, *k = kernel.shape
    out, lateral, window = _cp(kernel.reshape(O, I, -1), rank[0], setting)
    return [
        (_pointwise(lateral.T, len(k)), 1),
        (window.T.reshape(-1, 1, *k), rank[0]),
        (_pointwise(out, len(k)), 1),
    ]


def _cp(tensor: np.ndarray, R: int, setting: Setting) -> list[np.ndarray]:
    from converter.kernels.solve.cp import cp  # shapes are asked for where torch is not

    start = None
    if setting.start is not None:  # the kernels of all steps but the last, which has a closed form
        lateral, *windows = (kernel for kernel, _ in setting.start[:-1])
        start = [lateral.reshape(len(lateral), -1).T]
        start += [window.reshape(len(window), -1).T for window in windows]
        start = [factor.astype(np.float64) for factor in start]
    return cp(tensor, R, setting.seed, setting.metric, start, setting.device, setting.effort)


def _roots(kernel: np.ndarray, metric: Metric | None) -> list[np.ndarray]:
    """Square roots of a metric's Kronecker form, for the channels and each axis covered."""
    sizes = _squeezed(kernel.shape)[1:]
    return [np.eye(n) for n in sizes] if metric is None else metric.roots(sizes[1:])


def _decoupled(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Give each input channel m windows, then mix them: an SVD (O x K) per input channel."""
    O, I, *k = kernel.shape
    per_input = kernel.reshape(O, I, -1).transpose(1, 0, 2)  # (I, O, K)
    moments = None if setting.metric is None else setting.metric.windows()
    out, window = truncated_svd(per_input, rank[0], right=moments)  # (I, O, m), (I, m, K)
    mix = out.transpose(1, 0, 2).reshape(O, -1)  # (O, I m)
    return [(window.reshape(-1, 1, *k), I), (_pointwise(mix, len(k)), 1)]


def _decoupled_errors(kernel: np.ndarray) -> ErrorAt:
    """Add up what the SVD of each input channel leaves."""
    O, I = kernel.shape[:2]
    energy = np.linalg.svd(kernel.reshape(O, I, -1).swapaxes(0, 1), compute_uv=False) ** 2
    tail = np.append(energy.sum(0)[::-1].cumsum()[::-1], 0.0)  # over ranks, of all channels
    return lambda rank: math.sqrt(tail[rank[0]] / max(tail[0], np.finfo(np.float64).tiny))


def _train(kernel: np.ndarray) -> np.ndarray:
    """Order a kernel as ``spatial`` reads it: (I, K1, ..., Kn, O), without axes of size 1."""
    return np.moveaxis(kernel.reshape(_squeezed(kernel.shape)), 0, -1)


def _spatial(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Split into one convolution an axis by SVD (arXiv 1405.3866, scheme 2).

    Over three axes this is the tensor train of Oseledets (2011): an SVD splits the first axis
    from the rest, which is split again. Under a metric all axes are whitened by its Kronecker
    form, in which the SVD is exact.
    """
    axes = _covered(kernel.shape[2:])
    roots = _roots(kernel, setting.metric)
    squeezed = mapped(kernel.reshape(_squeezed(kernel.shape)), roots)
    rest = np.moveaxis(squeezed, 0, -1)  # (I, K1, ..., Kn, O)
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
        (f.reshape(*f.shape[:2], *_only(axis, f.shape[2], kernel.shape)), 1)
        for f, axis in zip(factors, axes)
    ]


def _spatial_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    channels, axes = (shape[1], *rank, shape[0]), _covered(shape[2:])
    return [
        ((after, before, *_only(axis, shape[2 + axis], shape)), 1)
        for before, after, axis in zip(channels, channels[1:], axes)
    ]


def _spatial_rank(shape: Shape) -> Rank:
    sizes = [shape[1], *_squeezed(shape)[2:], shape[0]]
    cuts = range(2, len(sizes) - 1)
    return tuple(min(math.prod(sizes[:cut]), math.prod(sizes[cut:])) for cut in cuts)


def _spatial_errors(kernel: np.ndarray) -> ErrorAt:
    """Add up the errors of the cuts: exact for one, for two a bound (Oseledets 2011, thm 2.2)."""
    train = _train(kernel)
    cuts = range(2, train.ndim - 1)
    tails = [tail_errors(train.reshape(math.prod(train.shape[:cut]), -1)) for cut in cuts]
    return lambda rank: math.hypot(*(tail[r] for tail, r in zip(tails, rank)))


def _tucker(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Tucker-2: R1 input channels, a core convolution, R2 output channels (arXiv 1511.06530)."""
    O, I, *k = kernel.shape
    R1, R2 = rank
    out, core, inner = tucker2(kernel.reshape(O, I, -1), (R2, R1), setting.metric)
    return [
        (_pointwise(inner.T, len(k)), 1),
        (core.reshape(R2, R1, *k), 1),
        (_pointwise(out, len(k)), 1),
    ]


def _channel(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Filter to R channels, then mix: an SVD of (O x I K), exact under any metric (1505.06798)."""
    O, I, *k = kernel.shape
    moments = None if setting.metric is None else setting.metric.dense()
    out, filters = truncated_svd(kernel.reshape(O, -1), rank[0], right=moments)
    return [(filters.reshape(-1, I, *k), 1), (_pointwise(out, len(k)), 1)]


def _channel_errors(kernel: np.ndarray) -> ErrorAt:
    tail = tail_errors(kernel.reshape(len(kernel), -1))
    return lambda rank: float(tail[rank[0]])


def _tucker_errors(kernel: np.ndarray) -> ErrorAt:
    """Bound the error by those of the two unfoldings (De Lathauwer et al. 2000, property 10)."""
    O, I = kernel.shape[:2]
    tail_out = tail_errors(kernel.reshape(O, -1))
    tail_in = tail_errors(kernel.swapaxes(0, 1).reshape(I, -1))
    return lambda rank: math.hypot(tail_in[rank[0]], tail_out[rank[1]])


def _needs_window(k: tuple[int, ...]) -> str | None:
    what = "1x1 kernel" if k else "linear layer"
    return None if _covered(k) else f"a {what} has nothing to separate in space"


def _needs_two_axes(k: tuple[int, ...]) -> str | None:
    return None if len(_covered(k)) > 1 else "its kernel does not extend over two axes"


def _squeezed(shape: Shape) -> Shape:
    return (*shape[:2], *(size for size in shape[2:] if size > 1))


def _ones(shape: Shape) -> Shape:
    return (1,) * (len(shape) - 2)


def _only(axis: int, size: int, shape: Shape) -> Shape:
    """Give the window of a step that covers one axis of a kernel of ``shape``."""
    return tuple(size if a == axis else 1 for a in range(len(shape) - 2))


def _one_axis(shape: Shape, R: int) -> list[tuple[Shape, int]]:
    """Shapes of the depthwise 1-D steps, one for each axis that the kernel covers."""
    return [((R, 1, *_only(a, shape[2 + a], shape)), R) for a in _covered(shape[2:])]


register(
    Form(
        name="flattened",
        solve=_flattened,
        shapes=lambda s, r: [
            ((r[0], s[1], *_ones(s)), 1),
            *_one_axis(s, r[0]),
            ((s[0], r[0], *_ones(s)), 1),
        ],
        max_rank=lambda s: (exact_rank(_squeezed(s)),),
        default="1.0",
        refuses=_needs_window,
    )
)
register(
    Form(
        name="separable",
        solve=_separable,
        shapes=lambda s, r: [
            ((r[0], s[1], *_ones(s)), 1),
            ((r[0], 1, *s[2:]), r[0]),
            ((s[0], r[0], *_ones(s)), 1),
        ],
        max_rank=lambda s: (exact_rank((s[0], s[1], math.prod(s[2:]))),),
        default="1.0",
        refuses=_needs_window,
    )
)
register(
    Form(
        name="lvh",
        solve=_lvh,
        shapes=_lvh_shapes,
        max_rank=lambda s: (1,),
        default="1",
        refuses=_needs_window,
        whole=lambda s: (math.prod(s[2:]),),
        per_channel=True,
        splits_depthwise=True,
    )
)
register(
    Form(  # lvh --stages 2
        name="lvh2",
        solve=_lvh_twice,
        shapes=_lvh_twice_shapes,
        max_rank=lambda s: (s[0],),
        default="1.0",
        refuses=_needs_window,
    )
)
register(
    Form(
        name="decoupled",
        solve=_decoupled,
        shapes=lambda s, r: [
            ((s[1] * r[0], 1, *s[2:]), s[1]),
            ((s[0], s[1] * r[0], *_ones(s)), 1),
        ],
        max_rank=lambda s: (min(s[0], math.prod(s[2:])),),
        default="2",
        refuses=_needs_window,
        whole=lambda s: (math.prod(s[2:]),),
        per_channel=True,
        errors=_decoupled_errors,
    )
)
register(
    Form(
        name="spatial",
        solve=_spatial,
        shapes=_spatial_shapes,
        max_rank=_spatial_rank,
        default="0.5",
        refuses=_needs_two_axes,
        whole=lambda s: (s[0],) * len(_spatial_rank(s)),
        splits_depthwise=True,
        errors=_spatial_errors,
    )
)
register(
    Form(
        name="tucker",
        solve=_tucker,
        shapes=lambda s, r: [
            ((r[0], s[1], *_ones(s)), 1),
            ((r[1], r[0], *s[2:]), 1),
            ((s[0], r[1], *_ones(s)), 1),
        ],
        max_rank=lambda s: (
            min(s[1], s[0] * math.prod(s[2:])),
            min(s[0], s[1] * math.prod(s[2:])),
        ),
        default="0.5,0.5",
        refuses=_needs_window,
        whole=lambda s: (s[1], s[0]),
        errors=_tucker_errors,
    )
)
register(
    Form(  # as it is; its weights alone are solved again, for what the layers before it give
        name="dense",
        solve=lambda kernel, rank, setting: [(kernel, 1)],
        shapes=lambda s, r: [(s, 1)],
        max_rank=lambda s: (1,),
        default="1",
        refuses=lambda k: None,
        per_channel=True,
        splits_depthwise=True,
    )
)
register(
    Form(
        name="channel",
        solve=_channel,
        shapes=lambda s, r: [((r[0], *s[1:]), 1), ((s[0], r[0], *_ones(s)), 1)],
        max_rank=lambda s: (min(s[0], math.prod(s[1:])),),
        default="0.5",
        refuses=lambda k: None,
        errors=_channel_errors,
    )
)
