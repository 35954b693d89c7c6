"""The walk toward a measured speedup, for the least loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from converter.search.budgets import Column
from converter.search.candidates import Candidate
from converter.search.search_space import Assignment, SearchSpace
from converter.search.trials import Built, Limits, Trial, walk

# A race that is ENOUGH above the target is won again in other minutes; one that is CLOSE above it
# is worth no further race.
MAX_RACES, ENOUGH, CLOSE = 8, 1.03, 1.06
# Tables err. Candidates of single layers that lose less and take at most DOUBT times as long by
# the tables are raced, up to MAX_SWAPS of them.
MAX_SWAPS, DOUBT = 10, 1.5


def reach_speedup(
    space: SearchSpace,
    limits: Limits,
    speedup_of: Callable[[Assignment], float],
    progress: Callable[[float], None] = lambda done: None,
) -> list[Trial[Built]]:
    """Walk toward the network of least loss that is as much faster as wanted, and hardly more.

    Tables err, so the predicted speedup that is aimed at moves until a race is won by little. Then
    single layers get candidates that lose less, as long as races are still won.

    Returns:
        All trials; the first is the best: the fastest where the target is out of reach.
    """
    assert limits.speedup is not None
    target = limits.speedup
    fastest = (space.minimize("ms", limits.sums) if limits.sums else None) or space.least("ms")
    middle = math.sqrt(ENOUGH * CLOSE) * target
    races = 0

    def propose(aim: float) -> Assignment | None:
        return space.minimize(limits.goal, {**limits.sums, "ms": limits.ms_at(aim)}) or fastest

    def measure(assignment: Assignment, aim: float) -> Trial[Built]:
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
        if ENOUGH <= ratio <= CLOSE or (ratio < ENOUGH and last.assignment == fastest):
            return None
        aim = last.allowance * middle / last.speedup
        low = next((t.allowance for t in reversed(trials) if not _won(t)), 0.0)
        high = next((t.allowance for t in reversed(trials) if _won(t)), math.inf)
        return aim if low < aim < high else math.sqrt(low * high)

    trials = walk(propose, measure, advance, middle, MAX_RACES)
    won = [trial for trial in trials if _won(trial)]
    if not won:
        best = max(trials, key=lambda trial: trial.speedup or 0.0)
        return [best, *(trial for trial in trials if trial is not best)]
    if limits.goal != "loss":
        return [won[-1], *(trial for trial in trials if trial is not won[-1])]
    best, swapped = _swap(space, limits, won[-1], measure)
    return [best, *(trial for trial in [*trials, *swapped] if trial is not best)]


def _won(trial: Trial[Built]) -> bool:
    """Tell whether a race was won by so much that another is, too."""
    return trial.usage["target_speedup"] * ENOUGH <= 1


def _swap(
    space: SearchSpace,
    limits: Limits,
    best: Trial[Built],
    measure: Callable[[Assignment, float], Trial[Built]],
) -> tuple[Trial[Built], list[Trial[Built]]]:
    """Give single layers candidates that lose less, as long as races are still won."""
    raced: list[Trial[Built]] = []
    lost: list[tuple[str, Candidate]] = []
    for _ in range(MAX_SWAPS):
        swaps = _gentler(space, best.assignment, limits.sums)
        swap = next((other for other in swaps if other not in lost), None)
        if swap is None:
            break
        trial = measure({**best.assignment, swap[0]: swap[1]}, best.allowance)
        raced.append(trial)
        if _won(trial):
            best = trial
        else:
            lost.append(swap)
    return best, raced


def _gentler(
    space: SearchSpace, assignment: Assignment, sums: Mapping[Column, float]
) -> list[tuple[str, Candidate]]:
    """List other candidates of single layers that lose less, the largest gain per ms first."""

    def gain_per_ms(swap: tuple[str, Candidate]) -> float:
        name, candidate = swap
        gain = space.weights[name] * (assignment[name].rel_error ** 2 - candidate.rel_error**2)
        return gain / max(candidate.ms - assignment[name].ms, 1e-9)

    swaps = [
        (name, candidate)
        for name, now in assignment.items()
        for candidate in space.candidates[name]
        if candidate.rel_error < now.rel_error
        and candidate.ms <= DOUBT * now.ms
        and all(
            space.total({**assignment, name: candidate}, column) <= most
            for column, most in sums.items()
        )
    ]
    return sorted(swaps, key=gain_per_ms, reverse=True)
