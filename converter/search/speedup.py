"""The search for a measured speedup at the least loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from converter.search.budgets import Column
from converter.search.candidates import Candidate
from converter.search.search_space import Assignment, SearchSpace
from converter.search.trials import Built, Limits, Trial, walk

# The search stops when the measured speedup exceeds the target by a factor between these two: the
# lower margin absorbs the noise between races, the upper one is not worth a further race.
MAX_RACES, MIN_MARGIN, MAX_MARGIN = 8, 1.03, 1.06
# The tables have errors: candidates of single layers that lose less are raced even if they take
# MAX_SLOWDOWN times as long by the tables, up to MAX_SWAPS of them.
MAX_SWAPS, MAX_SLOWDOWN = 10, 1.5


def reach_speedup(
    space: SearchSpace,
    limits: Limits,
    speedup_of: Callable[[Assignment], float],
    progress: Callable[[float], None] = lambda done: None,
) -> list[Trial[Built]]:
    """Search the network of least loss that reaches a measured speedup, and hardly more.

    The tables have errors, so the predicted speedup that is aimed at is adjusted until the measured
    one is just above the target. Then single layers get candidates that lose less, as long as the
    target is still reached.

    Args:
        space: The candidates.
        limits: The limits; ``speedup`` is the target.
        speedup_of: Assignment -> measured speedup.
        progress: Called with the fraction that is done.

    Returns:
        All trials, the best first; it is the fastest one if the target is out of reach.
    """
    assert limits.speedup is not None
    target = limits.speedup
    fastest = (space.minimize("ms", limits.sums) if limits.sums else None) or space.least("ms")
    middle = math.sqrt(MIN_MARGIN * MAX_MARGIN) * target
    races = 0

    def propose(aim: float) -> Assignment | None:
        return space.minimize(limits.goal, {**limits.sums, "ms": limits.ms_at(aim)}) or fastest

    def measure(assignment: Assignment, aim: float, last: object = None) -> Trial[Built]:
        nonlocal races
        races += 1
        speedup = speedup_of(assignment)
        progress(min(races / (MAX_RACES + MAX_SWAPS), 1.0))
        usage = {"target_speedup": target / speedup}
        return Trial(assignment, aim, None, usage, speedup)

    def advance(trials: Sequence[Trial[Built]]) -> float | None:
        last = trials[-1]
        assert last.speedup is not None
        ratio = last.speedup / target
        if MIN_MARGIN <= ratio <= MAX_MARGIN or (ratio < MIN_MARGIN and last.assignment == fastest):
            return None
        aim = last.allowance * middle / last.speedup
        low = next((t.allowance for t in reversed(trials) if not _reached(t)), 0.0)
        high = next((t.allowance for t in reversed(trials) if _reached(t)), math.inf)
        return aim if low < aim < high else math.sqrt(low * high)

    trials = walk(propose, measure, advance, middle, MAX_RACES)
    reached = [trial for trial in trials if _reached(trial)]
    if not reached:
        best = max(trials, key=lambda trial: trial.speedup or 0.0)
        return [best, *(trial for trial in trials if trial is not best)]
    if limits.goal != "loss":
        return [reached[-1], *(trial for trial in trials if trial is not reached[-1])]
    best, swapped = _swap(space, limits, reached[-1], measure)
    return [best, *(trial for trial in [*trials, *swapped] if trial is not best)]


def _reached(trial: Trial[Built]) -> bool:
    """Tell whether the speedup is above the target by more than the noise of a race."""
    return trial.usage["target_speedup"] * MIN_MARGIN <= 1


def _swap(
    space: SearchSpace,
    limits: Limits,
    best: Trial[Built],
    measure: Callable[[Assignment, float], Trial[Built]],
) -> tuple[Trial[Built], list[Trial[Built]]]:
    """Give single layers candidates that lose less, as long as the target is still reached.

    Returns:
        The best trial, and all new trials.
    """
    raced: list[Trial[Built]] = []
    rejected: list[tuple[str, Candidate]] = []
    for _ in range(MAX_SWAPS):
        swaps = _less_lossy_swaps(space, best.assignment, limits.sums)
        swap = next((other for other in swaps if other not in rejected), None)
        if swap is None:
            break
        trial = measure({**best.assignment, swap[0]: swap[1]}, best.allowance)
        raced.append(trial)
        if _reached(trial):
            best = trial
        else:
            rejected.append(swap)
    return best, raced


def _less_lossy_swaps(
    space: SearchSpace, assignment: Assignment, sums: Mapping[Column, float]
) -> list[tuple[str, Candidate]]:
    """List candidates of single layers that lose less, the least loss per added ms first."""

    def gain_per_ms(swap: tuple[str, Candidate]) -> float:
        name, candidate = swap
        gain = space.weights[name] * (assignment[name].rel_error ** 2 - candidate.rel_error**2)
        return gain / max(candidate.ms - assignment[name].ms, 1e-9)

    swaps = [
        (name, candidate)
        for name, current in assignment.items()
        for candidate in space.candidates[name]
        if candidate.rel_error < current.rel_error
        and candidate.ms <= MAX_SLOWDOWN * current.ms
        and all(
            space.total({**assignment, name: candidate}, column) <= limit
            for column, limit in sums.items()
        )
    ]
    return sorted(swaps, key=gain_per_ms, reverse=True)
