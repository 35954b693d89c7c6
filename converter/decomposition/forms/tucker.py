"""``tucker``: R1 input channels, a core convolution, R2 output channels (arXiv 1511.06530)."""

from __future__ import annotations

import math

import numpy as np
from tensorly.tucker_tensor import TuckerTensor

from converter.decomposition.form import ErrorAt, Form, Kernels, Rank, Shape
from converter.decomposition.forms.steps import columns, needs_window, ones, pointwise
from converter.decomposition.problem import KernelProblem, SolverSettings
from converter.decomposition.solvers import tensorly
from converter.decomposition.solvers.svd import tail_errors
from converter.decomposition.solvers.tucker import tucker2


def _solve(problem: KernelProblem, rank: Rank, settings: SolverSettings) -> TuckerTensor:
    return tucker2(problem.merged(), (rank[1], rank[0]))


def _solve_with_tensorly(
    problem: KernelProblem, rank: Rank, settings: SolverSettings
) -> TuckerTensor:
    return tensorly.partial_tucker(problem.merged(), (rank[1], rank[0]), settings)


def _to_kernels(tensor: TuckerTensor, shape: Shape) -> Kernels:
    core, (out, inner, _) = tensor
    axes = len(shape) - 2
    return [
        (pointwise(inner.T, axes), 1),
        (core.reshape(*core.shape[:2], *shape[2:]), 1),
        (pointwise(out, axes), 1),
    ]


def _to_tensor(kernels: Kernels) -> TuckerTensor:
    inner, core, out = (kernel for kernel, _ in kernels)
    core = core.reshape(*core.shape[:2], -1)
    return TuckerTensor((core, [columns(out).T, columns(inner), np.eye(core.shape[2])]))


def _errors(kernel: np.ndarray) -> ErrorAt:
    """Bound the error by those of the two unfoldings (De Lathauwer et al. 2000, property 10)."""
    O, I = kernel.shape[:2]
    tail_out = tail_errors(kernel.reshape(O, -1))
    tail_in = tail_errors(kernel.swapaxes(0, 1).reshape(I, -1))
    return lambda rank: math.hypot(tail_in[rank[0]], tail_out[rank[1]])


tucker = Form(
    name="tucker",
    solve=_solve,
    solve_with_tensorly=_solve_with_tensorly,
    to_kernels=_to_kernels,
    to_tensor=_to_tensor,
    shapes=lambda s, r: [
        ((r[0], s[1], *ones(s)), 1),
        ((r[1], r[0], *s[2:]), 1),
        ((s[0], r[1], *ones(s)), 1),
    ],
    max_rank=lambda s: (min(s[1], s[0] * math.prod(s[2:])), min(s[0], s[1] * math.prod(s[2:]))),
    default="0.5,0.5",
    refuses=needs_window,
    reference_rank=lambda s: (s[1], s[0]),
    errors=_errors,
)
