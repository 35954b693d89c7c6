"""The registry of forms: the ways to write one kernel as a sequence of smaller ones.

A form is a function (of ``factor``) that takes the kernel of one group, (O, I, *k), and gives the
kernels of its steps, and a word on its shapes and ranks. Groups, stride, padding, dilation and bias
are none of its business: ``decompose`` deals with them for all forms.
"""

from __future__ import annotations

import math

from converter.decomposition import factor
from converter.decomposition.factor import covered, only, squeezed
from converter.decomposition.form import Form, Rank, Shape
from converter.decomposition.solvers.svd import exact_rank
from converter.decomposition.taps import stage_sizes
from converter.errors import ConverterError

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


def _lvh_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    steps = _one_axis(shape, shape[0])
    if shape[1] == 1:
        return [(steps[0][0], 1), *steps[1:]]
    return [((*shape[:2], *_ones(shape)), 1), *steps]


def _lvh_twice_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    steps: list[tuple[Shape, int]] = []
    for stage, (O, I) in enumerate(((rank[0], shape[1]), (shape[0], rank[0]))):
        sizes = (*shape[:2], *(stage_sizes(size)[stage] for size in shape[2:]))
        steps += [((O, I, *_ones(shape)), 1), *_one_axis(sizes, O)]
    return steps


def _spatial_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    channels, axes = (shape[1], *rank, shape[0]), covered(shape[2:])
    return [
        ((after, before, *only(axis, shape[2 + axis], shape)), 1)
        for before, after, axis in zip(channels, channels[1:], axes)
    ]


def _spatial_rank(shape: Shape) -> Rank:
    sizes = [shape[1], *squeezed(shape)[2:], shape[0]]
    cuts = range(2, len(sizes) - 1)
    return tuple(min(math.prod(sizes[:cut]), math.prod(sizes[cut:])) for cut in cuts)


def _needs_window(k: tuple[int, ...]) -> str | None:
    what = "1x1 kernel" if k else "linear layer"
    return None if covered(k) else f"a {what} has nothing to separate in space"


def _needs_two_axes(k: tuple[int, ...]) -> str | None:
    return None if len(covered(k)) > 1 else "its kernel does not extend over two axes"


def _ones(shape: Shape) -> Shape:
    return (1,) * (len(shape) - 2)


def _one_axis(shape: Shape, R: int) -> list[tuple[Shape, int]]:
    """Shapes of the depthwise 1-D steps, one for each axis that the kernel covers."""
    return [((R, 1, *only(a, shape[2 + a], shape)), R) for a in covered(shape[2:])]


register(
    Form(
        name="flattened",
        solve=factor.flattened,
        shapes=lambda s, r: [
            ((r[0], s[1], *_ones(s)), 1),
            *_one_axis(s, r[0]),
            ((s[0], r[0], *_ones(s)), 1),
        ],
        max_rank=lambda s: (exact_rank(squeezed(s)),),
        default="1.0",
        refuses=_needs_window,
    )
)
register(
    Form(
        name="separable",
        solve=factor.separable,
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
        solve=factor.lvh,
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
        solve=factor.lvh_twice,
        shapes=_lvh_twice_shapes,
        max_rank=lambda s: (s[0],),
        default="1.0",
        refuses=_needs_window,
    )
)
register(
    Form(
        name="decoupled",
        solve=factor.decoupled,
        shapes=lambda s, r: [
            ((s[1] * r[0], 1, *s[2:]), s[1]),
            ((s[0], s[1] * r[0], *_ones(s)), 1),
        ],
        max_rank=lambda s: (min(s[0], math.prod(s[2:])),),
        default="2",
        refuses=_needs_window,
        whole=lambda s: (math.prod(s[2:]),),
        per_channel=True,
        errors=factor.decoupled_errors,
    )
)
register(
    Form(
        name="spatial",
        solve=factor.spatial,
        shapes=_spatial_shapes,
        max_rank=_spatial_rank,
        default="0.5",
        refuses=_needs_two_axes,
        whole=lambda s: (s[0],) * len(_spatial_rank(s)),
        splits_depthwise=True,
        errors=factor.spatial_errors,
    )
)
register(
    Form(
        name="tucker",
        solve=factor.tucker,
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
        errors=factor.tucker_errors,
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
        solve=factor.channel,
        shapes=lambda s, r: [((r[0], *s[1:]), 1), ((s[0], r[0], *_ones(s)), 1)],
        max_rank=lambda s: (min(s[0], math.prod(s[1:])),),
        default="0.5",
        refuses=lambda k: None,
        errors=factor.channel_errors,
    )
)
