"""The registry of forms: the ways to write one kernel as a sequence of smaller ones.

A form is a function that takes the kernel of one group, (O, I, *k), and gives the kernels of its
steps, and a word on its shapes and ranks. Groups, stride, padding, dilation and bias are none of
its business: ``decompose`` deals with them for all forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from converter.errors import ConverterError
from converter.kernels.form import ErrorAt, Form, Kernels, Rank, Setting, Shape
from converter.kernels.metric import Metric
from converter.kernels.solve.cp import cp, exact_rank, rank_one
from converter.kernels.solve.svd import tail_errors, truncated_svd
from converter.kernels.solve.tucker import tucker2

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
    return factor.T.reshape(-1, 1, *shape)  # (K, R) -> (R, 1, K, 1) for axis 0 of 2


def _covered(k: tuple[int, ...]) -> list[int]:
    return [axis for axis, size in enumerate(k) if size > 1]


def _lvh(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Give each filter its best rank-1 chain: lateral, vertical, horizontal (arXiv 1412.5474)."""
    O, _, *k = kernel.shape
    axes = _covered(tuple(k))
    roots = _roots(kernel, setting.metric)
    factors = rank_one(_mapped(kernel.reshape(_squeezed(kernel.shape)), roots))
    lateral, *spatial = (np.linalg.solve(root.T, f.T).T for root, f in zip(roots, factors))
    steps: Kernels = [(_pointwise(lateral, len(k)), 1)]
    steps += [(_along(f.T, axis, len(k)), O) for f, axis in zip(spatial, axes)]
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
    start = None
    if setting.start is not None:  # the kernels of all steps but the last, which has a closed form
        lateral, *windows = (kernel for kernel, _ in setting.start[:-1])
        start = [lateral.reshape(len(lateral), -1).T]
        start += [window.reshape(len(window), -1).T for window in windows]
        start = [factor.astype(np.float64) for factor in start]
    return cp(tensor, R, setting.seed, setting.metric, start, setting.device)


def _roots(kernel: np.ndarray, metric: Metric | None) -> list[np.ndarray]:
    """Square roots of a metric's Kronecker form, for the channels and each axis covered."""
    sizes = _squeezed(kernel.shape)[1:]
    return [np.eye(n) for n in sizes] if metric is None else metric.roots(sizes[1:])


def _mapped(tensor: np.ndarray, roots: list[np.ndarray]) -> np.ndarray:
    """Multiply mode 1, 2, ... of a tensor with the transposed roots."""
    for mode, root in enumerate(roots, start=1):
        tensor = np.moveaxis(np.tensordot(tensor, root, (mode, 0)), -1, mode)
    return tensor


def _decoupled(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Give each input channel m windows, then mix them: an SVD (O x K) per input channel."""
    O, I, *k = kernel.shape
    per_input = kernel.reshape(O, I, -1).transpose(1, 0, 2)  # (I, O, K)
    moments = None if setting.metric is None else setting.metric.windows()
    out, window = truncated_svd(per_input, rank[0], right=moments)  # (I, O, m), (I, m, K)
    mix = out.transpose(1, 0, 2).reshape(O, -1)  # (O, I m)
    return [(window.reshape(-1, 1, *k), I), (_pointwise(mix, len(k)), 1)]


def _spatial_matrix(kernel: np.ndarray) -> np.ndarray:
    O, I, Kh, Kw = kernel.shape
    return kernel.transpose(1, 2, 0, 3).reshape(I * Kh, O * Kw)


def _spatial(kernel: np.ndarray, rank: Rank, setting: Setting) -> Kernels:
    """Split into a vertical and a horizontal convolution by SVD (arXiv 1405.3866, scheme 2)."""
    O, I, Kh, Kw = kernel.shape
    left = right = None
    if setting.metric is not None:
        channels, vertical, horizontal = (r @ r.T for r in setting.metric.roots((Kh, Kw)))
        left, right = np.kron(channels, vertical), np.kron(np.eye(O), horizontal)
    a, b = truncated_svd(_spatial_matrix(kernel), rank[0], left, right)  # (I Kh, R), (R, O Kw)
    return [
        (a.T.reshape(-1, I, Kh, 1), 1),
        (b.reshape(-1, O, Kw).transpose(1, 0, 2)[:, :, None], 1),  # (O, R, 1, Kw)
    ]


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


def _matrix_errors(unfold: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], ErrorAt]:
    def errors(kernel: np.ndarray) -> ErrorAt:
        tail = tail_errors(unfold(kernel))
        return lambda rank: float(tail[rank[0]])

    return errors


def _tucker_errors(kernel: np.ndarray) -> ErrorAt:
    """Bound the error by those of the two unfoldings (De Lathauwer et al. 2000, property 10)."""
    O, I = kernel.shape[:2]
    tail_out = tail_errors(kernel.reshape(O, -1))
    tail_in = tail_errors(kernel.swapaxes(0, 1).reshape(I, -1))
    return lambda rank: math.hypot(tail_in[rank[0]], tail_out[rank[1]])


def _needs_window(k: tuple[int, ...]) -> str | None:
    return None if _covered(k) else "a 1x1 kernel has nothing to separate in space"


def _needs_two_axes(k: tuple[int, ...]) -> str | None:
    if len(k) != 2 or len(_covered(k)) != 2:
        return "its kernel does not extend over two axes"
    return None


def _squeezed(shape: Shape) -> Shape:
    return (*shape[:2], *(size for size in shape[2:] if size > 1))


def _ones(shape: Shape) -> Shape:
    return (1,) * (len(shape) - 2)


def _one_axis(shape: Shape, R: int) -> list[tuple[Shape, int]]:
    """Shapes of the depthwise 1-D steps, one for each axis that the kernel covers."""
    k = shape[2:]
    return [((R, 1, *(k[a] if a == axis else 1 for a in range(len(k)))), R) for axis in _covered(k)]


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
        shapes=lambda s, r: [((s[0], s[1], *_ones(s)), 1), *_one_axis(s, s[0])],
        max_rank=lambda s: (1,),
        default="1",
        refuses=_needs_window,
        per_channel=True,
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
        per_channel=True,
    )
)
register(
    Form(
        name="spatial",
        solve=_spatial,
        shapes=lambda s, r: [((r[0], s[1], s[2], 1), 1), ((s[0], r[0], 1, s[3]), 1)],
        max_rank=lambda s: (min(s[1] * s[2], s[0] * s[3]),),
        default="0.5",
        refuses=_needs_two_axes,
        errors=_matrix_errors(_spatial_matrix),
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
        errors=_tucker_errors,
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
        errors=_matrix_errors(lambda kernel: kernel.reshape(len(kernel), -1)),
    )
)
