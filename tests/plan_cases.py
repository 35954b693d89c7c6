"""Layers with random kernels, the plans made for them, and what these choose."""

import numpy as np

from converter.decomposition.conv import Conv
from converter.graph.survey import Layer
from converter.options import Options
from converter.search.manual import make_plan

SHAPES = {"x": (1, 3, 8, 8)}


def layer(name, *shape, low_rank=None, reason=None, groups=1, seed=0):
    """A 3x3 (or other) layer on 8x8 inputs; of matrix rank ``low_rank`` and a little noise."""
    rng = np.random.default_rng((seed, *map(ord, name)))
    kernel = rng.standard_normal(shape)
    if low_rank is not None:
        flat = rng.standard_normal((shape[0], low_rank)) @ rng.standard_normal(
            (low_rank, kernel[0].size)
        )
        kernel = flat.reshape(shape) + 0.01 * kernel
    pad = tuple((k // 2, k // 2) for k in shape[2:])
    conv = Conv(kernel.astype(np.float32), None, (1, 1), pad, (1, 1), groups=groups)
    return Layer(
        name=name,
        output=f"{name}.out",
        source=f"{name}.in",
        weight=f"{name}.weight",
        conv=None if reason else conv,
        size=(8, 8),
        params=conv.params,
        macs=conv.macs((8, 8)),
        reason=reason,
    )


def plan_of(layers, /, **options):
    options = Options.of(**options)
    return make_plan(layers, options.layers, SHAPES, options.resources.seed)


def chosen(plan):
    return {c.layer: (c.form, c.rank) for c in plan.choices if c.form}


def reasons(plan):
    return {c.layer: c.reason for c in plan.choices if c.reason}
