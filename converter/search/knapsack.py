"""Choosing one option for each layer: a multiple-choice knapsack, as an integer program."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

RELATIVE_GAP, TIME_LIMIT_S = 1e-4, 20.0


@dataclass(frozen=True)
class Limit:
    """An upper bound on the summed cost of the chosen options.

    Attributes:
        costs: Cost of each option, one array (options,) for each layer.
        maximum: Largest sum.
    """

    costs: Sequence[np.ndarray]
    maximum: float


def choose(goal: Sequence[np.ndarray], limits: Sequence[Limit]) -> list[int] | None:
    """Choose an option for each layer.

    Args:
        goal: Cost of each option whose sum is minimized, one array (options,) for each layer.
        limits: Upper bounds on the sums of other costs.

    Returns:
        The number of each layer's option, or None if no choice keeps the limits.
    """
    sizes = [len(costs) for costs in goal]
    if not sizes:
        return []
    starts = np.cumsum([0, *sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    count = int(starts[-1])
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), (len(sizes), count))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for limit in limits:
        row = np.concatenate(limit.costs)
        scale = np.abs(row).max() or 1.0  # the solver's tolerances are absolute
        constraints.append(LinearConstraint(row[None] / scale, -np.inf, limit.maximum / scale))
    objective = np.concatenate(goal)
    with _silent_stdout():
        solution = milp(
            objective / (np.abs(objective).max() or 1.0),
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": RELATIVE_GAP, "time_limit": TIME_LIMIT_S},
        )
    if solution.x is None:
        return None
    return [int(np.argmax(solution.x[a:b])) for a, b in itertools.pairwise(starts)]


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard standard output of the solver's C++ code, which prints even if told not to."""
    try:
        stdout = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    library = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    try:
        with open(os.devnull, "w") as sink:
            library.fflush(None)
            os.dup2(sink.fileno(), 1)
        yield
    finally:
        library.fflush(None)  # output may still be in C's buffer
        os.dup2(stdout, 1)
        os.close(stdout)
