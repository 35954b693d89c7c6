"""``Problem``, what a solver approximates, and ``SolverSettings``, how it does so."""

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
# what a form without one of these returns.
Tensor: TypeAlias = Any


@dataclass(frozen=True)
class SolverSettings:
    """How kernels are decomposed.

    Attributes:
        solver: ``flatconv``: the solvers of this package. ``tensorly``: those of tensorly alone.
            ``tensorly+refine``: the former, started from the result of the latter.
        seed: Of the random part of a start.
        device: torch device of the iterative solvers; tensorly's run on the CPU.
        effort: Share of the usual work that an iterative solver may take.

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
class Problem:
    """A tensor to approximate, the norm of the error, and an approximation to start from.

    Attributes:
        target: (O, I, *window), float64.
        metric: Of the modes I and window; None for the Frobenius norm.
        start: A decomposition of the kind that is wanted, or None.
    """

    target: np.ndarray
    metric: Metric | None = None
    start: Tensor | None = None

    def reshaped(self, *shape: int) -> Problem:
        """Return the same problem with the window's modes merged or left out."""
        return replace(self, target=self.target.reshape(shape))

    @cached_property
    def roots(self) -> list[np.ndarray]:
        """Lower Cholesky factors L of the metric's Kronecker form, for the modes after the first.

        In the coordinates that these whiten, the metric's Kronecker form is the Frobenius norm.
        """
        sizes = self.target.shape[1:]
        return [np.eye(n) for n in sizes] if self.metric is None else self.metric.roots(sizes[1:])

    @cached_property
    def whitened(self) -> np.ndarray:
        """The target in whitened coordinates: multiplied by L^T in each mode after the first."""
        return self.target if self.metric is None else whiten(self.target, self.roots)
