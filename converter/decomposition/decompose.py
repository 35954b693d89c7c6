"""``decompose``: write one convolution as a chain, in any form and with any solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tensorly as tl

from converter.decomposition.conv import Chain, Conv, assemble
from converter.decomposition.form import Form, Kernels, Rank, group_rank
from converter.decomposition.metric import Metric
from converter.decomposition.problem import KernelProblem, SolverSettings, Tensor
from converter.decomposition.refit import refit
from converter.errors import ConverterError


def decompose(
    conv: Conv,
    form: Form,
    rank: Rank,
    settings: SolverSettings = SolverSettings(),
    *,
    metrics: Sequence[Metric] | None = None,
    start: Chain | None = None,
) -> Chain:
    """Write ``conv`` as a chain of ``form`` at ``rank``, each group by itself.

    Solved in float64 or float32, the last step in float64; the chain's kernels have the type of
    ``conv``'s. Under metrics, the last step is refit, unless tensorly is to solve alone.

    Args:
        conv: The convolution to replace.
        form: Form of the chain.
        rank: Rank over all groups.
        settings: Settings of the solver.
        metrics: One for each group; the Frobenius norm if left out.
        start: A chain of the same form at any rank, from which the CP forms start; the other
            forms ignore it.

    Raises:
        ConverterError: When the form cannot replace ``conv``, the rank does not fit, or the solver
            does not know the form.
    """
    per_group = group_rank(form, conv, rank)
    parts = np.split(conv.kernel.astype(np.float64), conv.groups)
    group_metrics = [None] * conv.groups if metrics is None else metrics
    starts: Sequence[Tensor | None] = [None] * conv.groups
    shape = parts[0].shape
    with tl.backend_context("numpy"):
        if start is not None and form.warm_start:
            starts = [form.to_tensor(kernels) for kernels in group_kernels(start, conv.groups)]
        solved = [
            form.to_kernels(_solve(KernelProblem(*problem), form, per_group, settings), shape)
            for problem in zip(parts, group_metrics, starts, strict=True)
        ]
    chain = assemble(
        conv,
        [
            (np.concatenate([kernel for kernel, _ in step]), step[0][1] * conv.groups)
            for step in zip(*solved)
        ],
    )
    if metrics is None or len(chain.steps) == 1 or settings.solver == "tensorly":
        return chain
    return refit(conv, chain, metrics)


def _solve(problem: KernelProblem, form: Form, rank: Rank, settings: SolverSettings) -> Tensor:
    """Solve one group with the solver of ``settings``."""
    if settings.solver == "flatconv":
        return form.solve(problem, rank, settings)
    if form.solve_with_tensorly is None:
        raise ConverterError(
            f"tensorly cannot decompose a kernel into the form {form.name}; use --solver flatconv."
        )
    tensor = form.solve_with_tensorly(problem, rank, settings)
    if settings.solver == "tensorly":
        return tensor
    return form.solve(replace(problem, start=tensor), rank, settings)


def decompose_ranks(
    conv: Conv,
    form: Form,
    ranks: Sequence[Rank],
    settings: SolverSettings = SolverSettings(),
    *,
    metrics: Sequence[Metric] | None = None,
) -> dict[Rank, Chain]:
    """Decompose one convolution at many ranks, each started from the chain at the rank below.

    For the CP forms the error never rises with the rank (but for a ridge of 1e-6), and each rank
    takes only a few steps. The arguments are those of ``decompose``; ``ranks`` are in any order.
    """
    chains: dict[Rank, Chain] = {}
    start = None
    for rank in sorted(set(ranks), key=lambda r: (sum(r), r)):
        start = decompose(conv, form, rank, settings, metrics=metrics, start=start)
        chains[rank] = start
    return chains


def group_kernels(chain: Chain, groups: int) -> list[Kernels]:
    """Split a chain of ``decompose`` into the kernels of each of ``groups`` groups.

    Returns:
        For each group the kernels of the steps, in float64, with their groups.
    """
    steps = [
        [(part, step.groups // groups) for part in np.split(step.kernel.astype(np.float64), groups)]
        for step in chain.steps
    ]
    return [list(kernels) for kernels in zip(*steps)]
