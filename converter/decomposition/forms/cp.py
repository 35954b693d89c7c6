"""Forms that are sums of rank-1 terms: ``flattened``, ``separable``, ``lvh`` and ``lvh2``."""

from __future__ import annotations

import math

import numpy as np
from tensorly.cp_tensor import CPTensor

from converter.decomposition.conv import Conv
from converter.decomposition.form import Form, Kernels, Rank, Shape, ranks_by_macs
from converter.decomposition.forms.steps import (
    along,
    columns,
    covered_axes,
    needs_window,
    one_axis_shapes,
    ones,
    pointwise,
    squeezed,
)
from converter.decomposition.problem import KernelProblem, SolverSettings
from converter.decomposition.solvers import tensorly
from converter.decomposition.solvers.cp import cp
from converter.decomposition.solvers.khatri_rao import cp_tensor
from converter.decomposition.solvers.rank_one import rank_one
from converter.decomposition.solvers.svd import exact_rank
from converter.decomposition.solvers.two_stages import two_stages
from converter.decomposition.taps import stage_sizes

# Shares of the layer's multiply-accumulates at which ranks are timed.
MACS_SHARES = (0.04, 0.07, 0.11, 0.17, 0.25, 0.35, 0.5, 0.7)
# From this kernel size on, 1-D filters save work over whole windows. Then ``flattened`` and
# ``separable`` are both timed, each at every other share.
LARGE_KERNEL = 5


def _is_large(conv: Conv) -> bool:
    return len(conv.k) > 1 and max(conv.k) >= LARGE_KERNEL


def _flattened_kernels(tensor: CPTensor, shape: Shape) -> Kernels:
    out, lateral, *spatial = tensor.factors  # (O, R), (I, R), (K, R) ...
    axes = len(shape) - 2
    return [
        (pointwise(lateral.T, axes), 1),
        *((along(f, axis, axes), tensor.rank) for f, axis in zip(spatial, covered_axes(shape[2:]))),
        (pointwise(out, axes), 1),
    ]


def _separable_kernels(tensor: CPTensor, shape: Shape) -> Kernels:
    out, lateral, window = tensor.factors  # (O, R), (I, R), (K, R)
    axes = len(shape) - 2
    return [
        (pointwise(lateral.T, axes), 1),
        (window.T.reshape(-1, 1, *shape[2:]), tensor.rank),
        (pointwise(out, axes), 1),
    ]


def _sum_of_terms(kernels: Kernels) -> CPTensor:
    """Reverse ``_flattened_kernels`` and ``_separable_kernels``."""
    *steps, (out, _) = kernels
    return cp_tensor([columns(out).T, *(columns(kernel) for kernel, _ in steps)])


def _lvh_kernels(tensor: CPTensor, shape: Shape) -> Kernels:
    """Return the steps; with one input channel, the first 1-D filters take the lateral factors."""
    _, lateral, *spatial = tensor.factors  # (I, O), (K, O) ...
    O, I, *k = shape
    if I == 1:
        spatial[0] = spatial[0] * lateral
    steps = [(along(f, axis, len(k)), O) for f, axis in zip(spatial, covered_axes(tuple(k)))]
    if I == 1:
        return [(steps[0][0], 1), *steps[1:]]
    return [(pointwise(lateral.T, len(k)), 1), *steps]


def _lvh_tensor(kernels: Kernels) -> CPTensor:
    """Reverse ``_lvh_kernels``: O terms, each with an output channel of its own."""
    O = len(kernels[0][0])
    factors = [columns(kernel) for kernel, _ in kernels]
    covers_axis = kernels[0][0][0].size > kernels[0][0].shape[1]  # the first step is not pointwise
    lateral = [np.ones((1, O))] if covers_axis else []
    return cp_tensor([np.eye(O), *lateral, *factors])


def _lvh_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    steps = one_axis_shapes(shape, shape[0])
    if shape[1] == 1:
        return [(steps[0][0], 1), *steps[1:]]
    return [((*shape[:2], *ones(shape)), 1), *steps]


def _solve_lvh(problem: KernelProblem, rank: Rank, settings: SolverSettings) -> CPTensor:
    problem, start = problem.squeezed(), problem.start
    if start is not None:
        whitened = [root.T @ f for root, f in zip(problem.roots, start.factors[1:])]
        start = cp_tensor([start.factors[0], *whitened])
    identity, *factors = rank_one(problem.whitened, start).factors
    factors = [np.linalg.solve(root.T, f) for root, f in zip(problem.roots, factors)]
    return cp_tensor([identity, *factors])


def _two_stage_kernels(stages: tuple[CPTensor, CPTensor], shape: Shape) -> Kernels:
    steps: Kernels = []
    axes = len(shape) - 2
    for stage in stages:
        _, mix, *windows = stage.factors  # (channels in, channels out), (K, channels out) ...
        factor = math.prod(window for window in windows if len(window) == 1)
        steps.append((pointwise((mix * factor).T, axes), 1))
        steps += [
            (along(window, axis, axes), stage.rank)
            for window, axis in zip(windows, covered_axes(shape[2:]))
            if len(window) > 1
        ]
    return steps


def _two_stages(kernels: Kernels) -> tuple[CPTensor, ...]:
    """Reverse ``_two_stage_kernels``; axes over which a stage does not extend are left out."""
    mixes = [n for n, (_, groups) in enumerate(kernels) if groups == 1]
    stages = (kernels[: mixes[1]], kernels[mixes[1] :]) if len(mixes) > 1 else (kernels,)
    return tuple(_lvh_tensor(stage) for stage in stages)


def _two_stage_shapes(shape: Shape, rank: Rank) -> list[tuple[Shape, int]]:
    steps: list[tuple[Shape, int]] = []
    for stage, (O, I) in enumerate(((rank[0], shape[1]), (shape[0], rank[0]))):
        sizes = (*shape[:2], *(stage_sizes(size)[stage] for size in shape[2:]))
        steps += [((O, I, *ones(shape)), 1), *one_axis_shapes(sizes, O)]
    return steps


# CP over all modes: R rank-1 filters shared by all outputs (arXiv 1412.6553).
flattened = Form(
    name="flattened",
    solve=lambda p, rank, settings: cp(p.squeezed(), rank[0], settings),
    solve_with_tensorly=lambda p, rank, settings: tensorly.parafac(p.squeezed(), rank[0], settings),
    to_kernels=_flattened_kernels,
    to_tensor=_sum_of_terms,
    shapes=lambda s, r: [
        ((r[0], s[1], *ones(s)), 1),
        *one_axis_shapes(s, r[0]),
        ((s[0], r[0], *ones(s)), 1),
    ],
    max_rank=lambda s: (exact_rank(squeezed(s)),),
    default="1.0",
    refuses=needs_window,
    warm_start=True,
    rank_policy=lambda form, conv, size, block: (
        ranks_by_macs(form, conv, size, block, MACS_SHARES[::2]) if _is_large(conv) else []
    ),
)

# CP over outputs, inputs and the whole window.
separable = Form(
    name="separable",
    solve=lambda p, rank, settings: cp(p.merged(), rank[0], settings),
    solve_with_tensorly=lambda p, rank, settings: tensorly.parafac(p.merged(), rank[0], settings),
    to_kernels=_separable_kernels,
    to_tensor=_sum_of_terms,
    shapes=lambda s, r: [
        ((r[0], s[1], *ones(s)), 1),
        ((r[0], 1, *s[2:]), r[0]),
        ((s[0], r[0], *ones(s)), 1),
    ],
    max_rank=lambda s: (exact_rank((s[0], s[1], math.prod(s[2:]))),),
    default="1.0",
    refuses=needs_window,
    warm_start=True,
    rank_policy=lambda form, conv, size, block: ranks_by_macs(
        form, conv, size, block, MACS_SHARES[::2] if _is_large(conv) else MACS_SHARES
    ),
)

# One rank-1 chain per filter: lateral, vertical, horizontal (arXiv 1412.5474). As a CP tensor it
# has O terms, and the identity as the factor of the outputs.
lvh = Form(
    name="lvh",
    solve=_solve_lvh,
    solve_with_tensorly=lambda p, rank, settings: tensorly.rank_one(p.squeezed(), settings),
    to_kernels=_lvh_kernels,
    to_tensor=_lvh_tensor,
    shapes=_lvh_shapes,
    max_rank=lambda s: (1,),
    default="1",
    refuses=needs_window,
    reference_rank=lambda s: (math.prod(s[2:]),),
    per_channel=True,
    splits_depthwise=True,
    rank_policy=lambda form, conv, size, block: [],
)

# Two stages of lvh in a row, as in the paper's networks (arXiv 1412.5474); ``lvh --stages 2``.
lvh2 = Form(
    name="lvh2",
    solve=lambda p, rank, settings: two_stages(p.squeezed(), rank[0], settings),
    to_kernels=_two_stage_kernels,
    to_tensor=_two_stages,
    shapes=_two_stage_shapes,
    max_rank=lambda s: (s[0],),
    default="1.0",
    refuses=needs_window,
    rank_policy=lambda form, conv, size, block: [],
)
