"""``KernelProblem``, a kernel to decompose, and ``SolverSettings``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from converter.decomposition.metric import Metric, whiten
from converter.errors import ConverterError

SolverName = Literal["flatconv", "tensorly", "tensorly+refine"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)
# tensorly's ``CPTensor``, ``TuckerTensor`` or ``TTTensor`` (tensorly has no type annotations), or
# the kernels of a form that has none of these.
Tensor: TypeAlias = Any


@dataclass(frozen=True)
class SolverSettings:
    """Settings of the solvers.

    Attributes:
        solver: ``flatconv``: the solvers of this package. ``tensorly``: those of tensorly alone.
            ``tensorly+refine``: the former, started from the result of the latter.
        seed: Seed of random starting values.
        device: torch device of the iterative solvers; tensorly's run on the CPU.
        effort: Share of the usual work that an iterative solver may do.

    Raises:
        ConverterError: When there is no such solver.
    """

    solver: SolverName = "flatconv"
    seed: int = 0
    device: str = "cpu"
    effort: float = 1.0

    def __post_init__(self) -> None:
        """Check the name of the solver."""
        if self.solver not in SOLVERS:
            names = ", ".join(SOLVERS)
            raise ConverterError(f"There is no solver {self.solver!r}; use one of {names}.")


@dataclass(frozen=True)
class KernelProblem:
    """A tensor to approximate, the norm of the error, and an approximation to start from.

    Attributes:
        target: (O, I, *window), float64.
        metric: Metric of the modes I and window; None for the Frobenius norm.
        start: A decomposition, as the solver returns it, to start from; or None.
    """

    target: np.ndarray
    metric: Metric | None = None
    start: Tensor | None = None

    def squeezed(self) -> KernelProblem:
        """Return the same problem without the axes of size 1 of the window."""
        O, I, *k = self.target.shape
        return replace(self, target=self.target.reshape(O, I, *(size for size in k if size > 1)))

    def merged(self) -> KernelProblem:
        """Return the same problem with the window as one axis: (O, I, K)."""
        return replace(self, target=self.target.reshape(*self.target.shape[:2], -1))

    @cached_property
    def roots(self) -> list[np.ndarray]:
        """Lower Cholesky factors L of the metric's Kronecker form, for the modes after the first.

        In the coordinates that they whiten, the Kronecker form is the Frobenius norm.
        """
        sizes = self.target.shape[1:]
        return [np.eye(n) for n in sizes] if self.metric is None else self.metric.roots(sizes[1:])

    @cached_property
    def whitened(self) -> np.ndarray:
        """The target in whitened coordinates: multiplied by L^T in each mode after the first."""
        return self.target if self.metric is None else whiten(self.target, self.roots)
