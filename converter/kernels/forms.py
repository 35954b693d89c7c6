"""The registry of forms: ways to write one ``Conv`` as a ``Chain`` of smaller ones.

A form is one function that takes the kernel of one group, (O, I, *k), and gives the kernels of
its steps; ``register`` makes it known. Groups, stride, padding, dilation and bias are none of
its business: ``decompose`` deals with them for all forms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from converter.errors import ConverterError
from converter.kernels.conv import Chain, Conv, assemble
from converter.kernels.solve.cp import cp, exact_rank, rank_one
from converter.kernels.solve.svd import tail_errors, truncated_svd
from converter.kernels.solve.tucker import tucker2

Rank = tuple[int, ...]
Shape = tuple[int, ...]
Kernels = list[tuple[np.ndarray, int]]
Solve = Callable[[np.ndarray, Rank, int], Kernels]
ErrorAt = Callable[[Rank], float]


@dataclass(frozen=True)
class Form:
    """One way to factor a kernel.

    Attributes:
        name: As the user writes it.
        solve: (kernel (O, I, *k), rank, seed) -> kernels of the steps with their groups.
        shapes: ((O, I, *k), rank) -> shapes of those kernels with their groups.
        max_rank: (O, I, *k) -> the rank at which the form is exact.
        default: The rank used when the user names the form only, as text for ``parse_rank``.
        refuses: kernel size k -> why the form has nothing to offer for it, or None.
        per_channel: The rank counts per channel (lvh, decoupled), not over the whole layer.
        errors: kernel (O, I, *k) -> a function from rank to relative error, where that has a
            closed form (for tucker an upper bound); None where only solving tells.
    """

    name: str
    solve: Solve
    shapes: Callable[[Shape, Rank], list[tuple[Shape, int]]]
    max_rank: Callable[[Shape], Rank]
    default: str
    refuses: Callable[[tuple[int, ...]], str | None]
    per_channel: bool = False
    errors: Callable[[np.ndarray], ErrorAt] | None = None


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


def refusal(form: Form, conv: Conv) -> str | None:
    """Say why ``form`` cannot stand in for ``conv``, or None if it can."""
    if conv.transposed:
        return "transposed convolutions cannot be converted yet"
    if conv.groups == conv.I:
        return "it is depthwise and has no channels to separate"
    return form.refuses(conv.k)


def full_rank(form: Form, conv: Conv) -> Rank:
    """Return the rank at which ``form`` reproduces ``conv`` exactly."""
    O, I = conv.kernel.shape[:2]
    per_group = form.max_rank((O // conv.groups, I, *conv.k))
    return per_group if form.per_channel else tuple(r * conv.groups for r in per_group)


def parse_rank(text: str, form: Form, conv: Conv) -> Rank:
    """Turn what the user wrote into a rank, which need not fit ``conv``.

    ``16`` is an integer; ``1.0`` a fraction of O (for ``tucker`` of I and O, for ``decoupled``
    of the kernel's size); ``0.5,0.5`` or ``16,32`` a pair for ``tucker``.

    Raises:
        ConverterError: When ``text`` is not a number (or a pair), or not above 0.
    """
    count = len(full_rank(form, conv))
    parts = text.split(",")
    if len(parts) == 1:
        parts = parts * count
    if len(parts) != count:
        raise ConverterError(f"Rank {text!r} has {len(parts)} parts; {form.name} takes {count}.")
    whole = (conv.I, conv.O) if count == 2 else (conv.O,)
    if form.per_channel:
        whole = (math.prod(conv.k),)
    rank = []
    for part, size in zip(parts, whole):
        try:
            value = int(part) if part.strip().lstrip("+-").isdigit() else float(part)
        except ValueError:
            raise ConverterError(
                f"Rank {text!r} is not a number; write 16 or 0.5 (tucker: 0.5,0.5)."
            ) from None
        if not (math.isfinite(value) and value > 0):
            raise ConverterError(f"Rank {text!r} must be above 0.")
        rank.append(value if isinstance(value, int) else max(round(value * size), 1))
    return tuple(rank)


def fit_rank(rank: Rank, form: Form, conv: Conv) -> Rank:
    """Bring ``rank`` to the nearest that ``conv`` takes: a multiple of groups, not above full."""
    unit = 1 if form.per_channel else conv.groups
    full = full_rank(form, conv)
    return tuple(min(max(round(r / unit), 1) * unit, most) for r, most in zip(rank, full))


def rank_grid(form: Form, conv: Conv, block: int) -> list[Rank]:
    """List the ranks worth asking for: multiples of the runtime's ``block``, and the full one."""
    unit = 1 if form.per_channel else math.lcm(block, conv.groups)
    axes = [[*range(unit, most, unit), most] for most in full_rank(form, conv)]
    return list(itertools.product(*axes))


def skeleton(conv: Conv, form: Form, rank: Rank) -> Chain:
    """Give the chain that ``decompose`` would, with zeros for weights: its shapes and its cost."""
    rank = _group_rank(conv, form, rank)
    shape = (conv.kernel.shape[0] // conv.groups, *conv.kernel.shape[1:])
    zero = np.zeros((), conv.kernel.dtype)
    return assemble(
        conv,
        [
            (np.broadcast_to(zero, (s[0] * conv.groups, *s[1:])), groups * conv.groups)
            for s, groups in form.shapes(shape, rank)
        ],
    )


def estimate_errors(conv: Conv, form: Form) -> ErrorAt | None:
    """Give the relative Frobenius error of ``conv`` as a function of the rank, if it is cheap."""
    if form.errors is None:
        return None
    parts = np.split(conv.kernel.astype(np.float64), conv.groups)
    curves = [form.errors(part) for part in parts]
    power = np.array([np.sum(part**2) for part in parts])
    weights = power / max(power.sum(), np.finfo(np.float64).tiny)

    def error_at(rank: Rank) -> float:
        rank = _group_rank(conv, form, rank)
        return math.sqrt(sum(w * curve(rank) ** 2 for w, curve in zip(weights, curves)))

    return error_at


def decompose(conv: Conv, form: Form, rank: Rank, seed: int = 0) -> Chain:
    """Write ``conv`` as a chain of ``form`` at ``rank``, each group by itself.

    Computed in float64; the chain's kernels have the type of ``conv``'s.

    Raises:
        ConverterError: When the form cannot stand in for ``conv``, or the rank does not fit.
    """
    per_group = _group_rank(conv, form, rank)
    parts = np.split(conv.kernel.astype(np.float64), conv.groups)
    solved = [form.solve(part, per_group, seed) for part in parts]
    return assemble(
        conv,
        [
            (np.concatenate([kernel for kernel, _ in step]), step[0][1] * conv.groups)
            for step in zip(*solved)
        ],
    )


def _group_rank(conv: Conv, form: Form, rank: Rank) -> Rank:
    """Check that ``form`` takes ``rank`` for ``conv``, and give the rank of one group."""
    reason = refusal(form, conv)
    if reason:
        raise ConverterError(f"{form.name} cannot stand in for this convolution: {reason}.")
    full = full_rank(form, conv)
    if len(rank) != len(full) or any(not 1 <= r <= most for r, most in zip(rank, full)):
        raise ConverterError(
            f"Rank {show_rank(rank)} does not fit; {form.name} takes 1 to {show_rank(full)} here."
        )
    unit = 1 if form.per_channel else conv.groups
    if any(r % unit for r in rank):
        raise ConverterError(f"Rank {show_rank(rank)} must be a multiple of {unit} groups.")
    return tuple(r // unit for r in rank)


def relative_error(conv: Conv, chain: Chain) -> float:
    """Relative Frobenius error of the chain's dense kernel against ``conv``'s."""
    kernel = conv.kernel.astype(np.float64)
    norm = float(np.linalg.norm(kernel))
    error = float(np.linalg.norm(chain.dense().kernel.reshape(kernel.shape) - kernel))
    return error / norm if norm else error


def show_rank(rank: Rank) -> str:
    """Write a rank as the user would: ``16`` or ``16,32``."""
    return ",".join(map(str, rank))


def _pointwise(matrix: np.ndarray, axes: int) -> np.ndarray:
    return matrix.reshape(*matrix.shape, *[1] * axes)  # (O, I) -> (O, I, 1, 1)


def _along(factor: np.ndarray, axis: int, axes: int) -> np.ndarray:
    shape = [1] * axes
    shape[axis] = factor.shape[0]
    return factor.T.reshape(-1, 1, *shape)  # (K, R) -> (R, 1, K, 1) for axis 0 of 2


def _covered(k: tuple[int, ...]) -> list[int]:
    return [axis for axis, size in enumerate(k) if size > 1]


def _lvh(kernel: np.ndarray, rank: Rank, seed: int) -> Kernels:
    """Give each filter its best rank-1 chain: lateral, vertical, horizontal (arXiv 1412.5474)."""
    O, _, *k = kernel.shape
    axes = _covered(tuple(k))
    lateral, *spatial = rank_one(kernel.reshape(_squeezed(kernel.shape)))
    steps: Kernels = [(_pointwise(lateral, len(k)), 1)]
    steps += [(_along(f.T, axis, len(k)), O) for f, axis in zip(spatial, axes)]
    return steps


def _flattened(kernel: np.ndarray, rank: Rank, seed: int) -> Kernels:
    """CP over all modes: R rank-1 filters shared by all outputs (arXiv 1412.6553)."""
    k = kernel.shape[2:]
    axes = _covered(k)
    out, lateral, *spatial = cp(
        kernel.reshape(_squeezed(kernel.shape)), rank[0], seed
    )  # (O, R), (I, R), (K, R) ...
    steps: Kernels = [(_pointwise(lateral.T, len(k)), 1)]
    steps += [(_along(f, axis, len(k)), rank[0]) for f, axis in zip(spatial, axes)]
    return [*steps, (_pointwise(out, len(k)), 1)]


def _separable(kernel: np.ndarray, rank: Rank, seed: int) -> Kernels:
    """CP over outputs, inputs and the whole kernel window."""
    O, I, *k = kernel.shape
    out, lateral, window = cp(kernel.reshape(O, I, -1), rank[0], seed)
    return [
        (_pointwise(lateral.T, len(k)), 1),
        (window.T.reshape(-1, 1, *k), rank[0]),
        (_pointwise(out, len(k)), 1),
    ]


def _decoupled(kernel: np.ndarray, rank: Rank, seed: int) -> Kernels:
    """Give each input channel m windows, then mix them: an SVD (O x K) per input channel."""
    O, I, *k = kernel.shape
    per_input = kernel.reshape(O, I, -1).transpose(1, 0, 2)  # (I, O, K)
    out, window = truncated_svd(per_input, rank[0])  # (I, O, m), (I, m, K)
    mix = out.transpose(1, 0, 2).reshape(O, -1)  # (O, I m)
    return [(window.reshape(-1, 1, *k), I), (_pointwise(mix, len(k)), 1)]


def _spatial_matrix(kernel: np.ndarray) -> np.ndarray:
    O, I, Kh, Kw = kernel.shape
    return kernel.transpose(1, 2, 0, 3).reshape(I * Kh, O * Kw)


def _spatial(kernel: np.ndarray, rank: Rank, seed: int) -> Kernels:
    """Split into a vertical and a horizontal convolution by SVD (arXiv 1405.3866, scheme 2)."""
    O, I, Kh, Kw = kernel.shape
    left, right = truncated_svd(_spatial_matrix(kernel), rank[0])  # (I Kh, R), (R, O Kw)
    vertical = left.T.reshape(-1, I, Kh, 1)
    horizontal = right.reshape(-1, O, Kw).transpose(1, 0, 2)[:, :, None]  # (O, R, 1, Kw)
    return [(vertical, 1), (horizontal, 1)]


def _tucker(kernel: np.ndarray, rank: Rank, seed: int) -> Kernels:
    """Tucker-2: R1 input channels, a core convolution, R2 output channels (arXiv 1511.06530)."""
    O, I, *k = kernel.shape
    R1, R2 = rank
    out, core, inner = tucker2(kernel.reshape(O, I, -1), (R2, R1), seed)
    return [
        (_pointwise(inner.T, len(k)), 1),
        (core.reshape(R2, R1, *k), 1),
        (_pointwise(out, len(k)), 1),
    ]


def _channel(kernel: np.ndarray, rank: Rank, seed: int) -> Kernels:
    """Filter to R channels, then mix: an SVD of (O x I K) (arXiv 1505.06798)."""
    O, I, *k = kernel.shape
    out, filters = truncated_svd(kernel.reshape(O, -1), rank[0])
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
