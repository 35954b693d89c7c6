"""One option for each layer, best together: a multiple-choice knapsack, solved exactly."""

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

GAP, LIMIT_S = 1e-4, 20.0


@dataclass(frozen=True)
class Limit:
    """A bound on a sum of what the chosen options cost: one array for each layer."""

    costs: Sequence[np.ndarray]
    most: float


def choose(goal: Sequence[np.ndarray], limits: Sequence[Limit]) -> list[int] | None:
    """Choose an option for each layer.

    Args:
        goal: What the sum of is to be least, one array (options,) for each layer.
        limits: What must hold.

    Returns:
        The number of each layer's option, or None where no choice keeps the limits.
    """
    sizes = [len(costs) for costs in goal]
    if not sizes:
        return []
    starts = np.cumsum([0, *sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    count = int(starts[-1])
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), (len(sizes), count))
    rules = [LinearConstraint(one_each, 1, 1)]
    for limit in limits:
        row = np.concatenate(limit.costs)
        scale = np.abs(row).max() or 1.0  # the solver's tolerances are absolute
        rules.append(LinearConstraint(row[None] / scale, -np.inf, limit.most / scale))
    objective = np.concatenate(goal)
    with _muted():
        solution = milp(
            objective / (np.abs(objective).max() or 1.0),
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=rules,
            options={"mip_rel_gap": GAP, "time_limit": LIMIT_S},
        )
    if solution.x is None:
        return None
    return [int(np.argmax(solution.x[a:b])) for a, b in itertools.pairwise(starts)]


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keep what the solver's C++ prints, whatever it is told, off standard output."""
    try:
        kept = os.dup(1)
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
        library.fflush(None)  # what it printed may still be in C's buffer
        os.dup2(kept, 1)
        os.close(kept)
