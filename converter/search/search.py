"""The search: propose an assignment from the tables, measure it, and adjust the allowance.

The times of single layers nearly add up, their losses do not. So a trial is proposed from the
tables under an allowance for the predicted loss, its real loss and time are measured, and the
allowance is adjusted until the measured values keep their limits closely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from converter.search.budgets import Column
from converter.search.drafts import DRAFT_EFFORT, DRAFT_USAGE, make_draft
from converter.search.search_space import Assignment, SearchSpace
from converter.search.speedup import reach_speedup
from converter.search.trials import (
    LOOSE,
    Built,
    Effort,
    Limits,
    Measures,
    Outcome,
    Trial,
    build_trial,
    next_loss,
    walk,
)

# If no trial keeps the limits, EXTRA_TRIALS more aim at LOWER_AIM of them.
EXTRA_TRIALS, LOWER_AIM = 3, 0.75
CONFLICT_TRIALS = 3  # networks to build for each limit if all together cannot be kept
IMPROVED_TIME = 0.94  # share of the best network's time that a network of another prior may take


def search(
    spaces: Sequence[SearchSpace],
    limits: Limits,
    measures: Measures[Built],
    effort: Effort,
    progress: Callable[[float], None] = lambda done: None,
) -> Outcome[Built]:
    """Search the best network that keeps every limit when measured.

    The best network is the fastest if the loss is limited, else the one of the least loss. If the
    limits cannot all be kept, the search also finds the best value of each under the others, and
    prefers a network that keeps every limit but the speedup.

    Args:
        spaces: The candidates under one prior each. The first is searched; the others are tried
            for improvements.
        limits: The limits to keep.
        measures: How an assignment is built, scored and raced.
        effort: How many networks may be built.
        progress: Called with the fraction that is done.
    """
    outcome = _search(spaces, limits, measures, effort, progress)
    if outcome.kept or len(limits.columns) < 2:
        return outcome
    less = Effort(min(effort.trials, CONFLICT_TRIALS), LOOSE)
    others: dict[Column, Trial[Built]] = {}
    for column in limits.columns:
        best = _search(spaces[:1], limits.without(column), measures, less, progress).best
        if limits.speedup is not None and best.speedup is None:
            best = _race_trial(best, limits.speedup, measures)
        others[column] = best
    trials = (*outcome.trials, *others.values())
    for trial in others.values():
        if trial.worst <= 1:
            return Outcome(trial, trials)
    slow = others.get("ms")
    if slow is not None and all(v <= 1 for o, v in slow.usage.items() if o != "target_speedup"):
        return Outcome(slow, trials)
    return Outcome(outcome.best, trials)


def _search(
    spaces: Sequence[SearchSpace],
    limits: Limits,
    measures: Measures[Built],
    effort: Effort,
    progress: Callable[[float], None],
) -> Outcome[Built]:
    """Search once, under all limits together."""
    first = spaces[0]
    if limits.loss is None and limits.speedup is None:
        return _search_under_sums(spaces, limits, measures, effort)
    if limits.loss is None:
        raced: list[Trial[Built]] = reach_speedup(first, limits, measures.speedup, progress)
        fast = build_trial(raced[0], measures)
        return Outcome(fast, (fast, *raced[1:]))
    trials = stay_within(first, limits, measures, effort, progress)
    kept = [trial for trial in trials if trial.worst <= 1]
    best: Trial[Built] | None = None
    if kept:
        best = min(kept, key=lambda t: first.total(t.assignment, limits.goal))
        max_built = min(effort.improve, effort.trials - len(trials))
        best = _improve(spaces[1:], limits, measures, best, replace(effort, improve=max_built))
    if limits.speedup is not None:
        best, raced = _meet_speedup(first, limits, measures, best, kept)
        trials += raced
    return Outcome(best or min(trials, key=lambda trial: trial.worst), tuple(trials))


def stay_within(
    space: SearchSpace,
    limits: Limits,
    measures: Measures[Built],
    effort: Effort,
    progress: Callable[[float], None] = lambda done: None,
) -> list[Trial[Built]]:
    """Make trials toward the fastest network whose measured loss keeps its limit."""
    assert limits.loss is not None
    fastest = space.least(limits.goal)

    def propose(allowance: float) -> Assignment | None:
        return space.minimize(limits.goal, {"loss": allowance, **limits.sums}) or _nearest(
            space, limits
        )

    def measure(
        assignment: Assignment, allowance: float, last: Trial[Built] | None
    ) -> Trial[Built]:
        return build_trial(Trial(assignment, allowance), measures, last or draft)

    def advance(trials: Sequence[Trial[Built]]) -> float | None:
        progress(min(len(trials) / effort.trials, 1.0))
        last, kept = trials[-1], any(trial.worst <= 1 for trial in trials)
        repeated = any(trial.assignment == last.assignment for trial in trials[:-1])
        if repeated and (kept or last.assignment == _nearest(space, limits)):
            return None
        if kept and len(trials) >= effort.trials:
            return None
        cannot_improve = last.assignment == fastest and last.worst <= 1
        if effort.aim.close <= last.worst <= 1 or cannot_improve:
            return None
        return next_loss(trials, effort.aim.at if len(trials) < effort.trials else LOWER_AIM)

    draft = make_draft(propose, measures, limits.loss, effort) if effort.drafts else None
    first = limits.loss if draft is None else draft.allowance
    return walk(propose, measure, advance, first, effort.trials + EXTRA_TRIALS)


def _improve(
    spaces: Sequence[SearchSpace],
    limits: Limits,
    measures: Measures[Built],
    best: Trial[Built],
    effort: Effort,
) -> Trial[Built]:
    """Look for faster networks that keep the limits, at the least loss under other priors."""
    remaining, tried = list(spaces), [best.assignment]
    for _ in range(effort.improve):
        if not remaining:
            break
        ms = IMPROVED_TIME * remaining[0].total(best.assignment, "ms")
        assignment = remaining[0].minimize("loss", {**limits.sums, "ms": ms})
        if assignment is not None and assignment not in tried:
            tried.append(assignment)
            near, trial = best, Trial[Built](assignment, best.allowance)
            if effort.drafts:
                near = build_trial(trial, measures, best, DRAFT_EFFORT)
            if not effort.drafts or near.worst <= DRAFT_USAGE:
                trial = build_trial(trial, measures, near)
                if trial.worst <= 1:
                    best = trial
                    continue
        remaining = remaining[1:]
    return best


def _meet_speedup(
    space: SearchSpace,
    limits: Limits,
    measures: Measures[Built],
    best: Trial[Built] | None,
    kept: Sequence[Trial[Built]],
) -> tuple[Trial[Built] | None, list[Trial[Built]]]:
    """Race the networks that keep the loss; if none is fast enough, measure the loss of a fast one.

    Returns:
        The trial that keeps both limits, or comes nearest; and the new trials.
    """
    assert limits.speedup is not None
    tried: list[Trial[Built]] = []
    others = [trial for trial in kept if best is None or trial.assignment != best.assignment]
    for trial in ([best] if best else []) + sorted(
        others, key=lambda trial: space.total(trial.assignment, "ms")
    ):
        tried.append(_race_trial(trial, limits.speedup, measures))
        if tried[-1].worst <= 1:
            return tried[-1], tried
    fast: Trial[Built] = reach_speedup(space, replace(limits, goal="loss"), measures.speedup)[0]
    tried.append(build_trial(fast, measures))
    return min(tried, key=lambda trial: trial.worst), tried


def _race_trial(trial: Trial[Built], target: float, measures: Measures[Built]) -> Trial[Built]:
    """Measure the speedup of a trial."""
    speedup = measures.speedup(trial.assignment)
    usage = {**trial.usage, "target_speedup": target / speedup}
    return replace(trial, speedup=speedup, usage=usage)


def _search_under_sums(
    spaces: Sequence[SearchSpace], limits: Limits, measures: Measures[Built], effort: Effort
) -> Outcome[Built]:
    """Build the best assignment of each prior, and choose the network of the least measured error.

    Only sums that follow from the tables are limited, so one network for each prior is enough.
    """
    assignments: list[Assignment] = []
    for space in spaces:
        assignment = space.minimize(limits.goal, limits.sums) or _nearest(space, limits)
        if assignment not in assignments:
            assignments.append(assignment)
    share = DRAFT_EFFORT if effort.drafts and len(assignments) > 1 else 1.0
    trials: list[Trial[Built]] = []
    for assignment in assignments[: effort.trials]:
        last = trials[-1] if trials else None
        trials.append(build_trial(Trial(assignment, math.inf), measures, last, share))
    best = trials[0]
    if len(trials) > 1:
        errors = [measures.error(trial.network) for trial in trials if trial.network is not None]
        best = min(zip(errors, trials, strict=True), key=lambda pair: pair[0])[1]
    if share < 1:
        best = build_trial(Trial(best.assignment, math.inf), measures, best)
        trials.append(best)
    return Outcome(best, tuple(trials))


def _nearest(space: SearchSpace, limits: Limits) -> Assignment:
    """Return the assignment of the least loss within the sums; else the least of the first sum."""
    assignment = space.minimize("loss", limits.sums)
    return assignment or space.least(next(iter(limits.sums), "ms"))
