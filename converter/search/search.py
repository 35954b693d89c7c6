"""The search: propose an assignment from the tables, measure it, and adjust the allowance.

The times of single layers nearly add up, their losses do not. So a trial is proposed from the
tables under an allowance for the predicted loss, its real loss and time are measured, and the
allowance is adjusted until the measured values keep their limits closely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from converter.search.budgets import Column
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
    walk,
)

MAX_STEP = 8.0  # largest factor between the loss allowances of two trials
# If no trial keeps the limits, EXTRA_TRIALS more aim at LOWER_AIM of them.
EXTRA_TRIALS, LOWER_AIM = 3, 0.75
CONFLICT_TRIALS = 3  # networks to build for each limit if all together cannot be kept
IMPROVED_TIME = 0.94  # share of the best network's time that a network of another prior may take
# Networks are built with little effort first. They lose DRAFT_EXCESS times as much then, more or
# less: one that uses more than DRAFT_USAGE of a limit would not keep the limit with all effort
# either. The first walk ends where a network is expected to use a share between DRAFT_ENDS.
DRAFT_EFFORT, DRAFT_EXCESS, DRAFT_USAGE = 0.25, 1.6, 1.5
MAX_DRAFTS, DRAFT_ENDS = 3, (0.75, 1.15)


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
        fast = _build_trial(raced[0], measures)
        return Outcome(fast, (fast, *raced[1:]))
    trials = stay_within(first, limits, measures, effort, progress)
    kept = [trial for trial in trials if trial.worst <= 1]
    best: Trial[Built] | None = None
    if kept:
        best = min(kept, key=lambda t: first.total(t.assignment, limits.goal))
        max_built = min(effort.improve, effort.trials - len(trials))
        best = _improve(spaces[1:], limits, measures, best, max_built)
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
        return _build_trial(Trial(assignment, allowance), measures, last or draft)

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
        return _next_loss(trials, effort.aim.at if len(trials) < effort.trials else LOWER_AIM)

    draft = _draft(propose, measures, limits.loss, effort)
    first = limits.loss if draft is None else draft.allowance
    return walk(propose, measure, advance, first, effort.trials + EXTRA_TRIALS)


def _draft(
    propose: Callable[[float], Assignment | None],
    measures: Measures[Built],
    allowance: float,
    effort: Effort,
) -> Trial[Built] | None:
    """Look for the allowance at which to start, by networks that are built with little effort.

    Returns:
        The last network, with the allowance to start at; None if there is no network at all.
    """

    def measure(
        assignment: Assignment, allowance: float, last: Trial[Built] | None
    ) -> Trial[Built]:
        trial = _build_trial(Trial(assignment, allowance), measures, last, DRAFT_EFFORT)
        expected = {option: used / DRAFT_EXCESS for option, used in trial.usage.items()}
        return replace(trial, usage=expected)

    def advance(trials: Sequence[Trial[Built]]) -> float | None:
        last = trials[-1]
        repeated = any(trial.assignment == last.assignment for trial in trials[:-1])
        if repeated or DRAFT_ENDS[0] <= last.worst <= DRAFT_ENDS[1]:
            return None
        return _next_loss(trials, effort.aim.at)

    drafts = walk(propose, measure, advance, allowance, MAX_DRAFTS)
    if not drafts:
        return None
    return replace(drafts[-1], allowance=advance(drafts) or drafts[-1].allowance)


def _improve(
    spaces: Sequence[SearchSpace],
    limits: Limits,
    measures: Measures[Built],
    best: Trial[Built],
    max_built: int,
) -> Trial[Built]:
    """Look for faster networks that keep the limits, at the least loss under other priors."""
    remaining, tried = list(spaces), [best.assignment]
    for _ in range(max_built):
        if not remaining:
            break
        ms = IMPROVED_TIME * remaining[0].total(best.assignment, "ms")
        assignment = remaining[0].minimize("loss", {**limits.sums, "ms": ms})
        if assignment is not None and assignment not in tried:
            tried.append(assignment)
            trial = _build_trial(Trial(assignment, best.allowance), measures, best, DRAFT_EFFORT)
            if trial.worst <= DRAFT_USAGE:
                trial = _build_trial(Trial(assignment, best.allowance), measures, trial)
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
    tried.append(_build_trial(fast, measures))
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
    trials: list[Trial[Built]] = []
    for assignment in assignments[: effort.trials]:
        last = trials[-1] if trials else None
        trials.append(_build_trial(Trial(assignment, math.inf), measures, last))
    best = trials[0]
    if len(trials) > 1:
        errors = [measures.error(trial.network) for trial in trials if trial.network is not None]
        best = min(zip(errors, trials, strict=True), key=lambda pair: pair[0])[1]
    return Outcome(best, tuple(trials))


def _build_trial(
    trial: Trial[Built],
    measures: Measures[Built],
    near: Trial[Built] | None = None,
    effort: float = 1.0,
) -> Trial[Built]:
    """Build the network of a trial, starting from that of another, and measure its usage."""
    network = measures.build(trial.assignment, near.network if near else None, effort)
    return replace(trial, network=network, usage={**measures.usage(network), **trial.usage})


def _nearest(space: SearchSpace, limits: Limits) -> Assignment:
    """Return the assignment of the least loss within the sums; else the least of the first sum."""
    assignment = space.minimize("loss", limits.sums)
    return assignment or space.least(next(iter(limits.sums), "ms"))


def _next_loss(trials: Sequence[Trial[Built]], aim: float) -> float:
    """Return the next loss allowance.

    It is interpolated, on logarithmic scales, between the closest trials on both sides of the
    limit; with trials on one side only, it is scaled toward ``aim``.
    """
    below = max((t for t in trials if t.worst <= 1), key=lambda t: t.allowance, default=None)
    above = min((t for t in trials if t.worst > 1), key=lambda t: t.allowance, default=None)
    if below is None or above is None or below.allowance >= above.allowance:
        last = trials[-1]
        return last.allowance * float(np.clip(aim / max(last.worst, 1e-9), 1 / MAX_STEP, MAX_STEP))
    low, high = (math.log(max(trial.worst, 1e-3)) for trial in (below, above))
    share = float(np.clip((math.log(aim) - low) / max(high - low, 1e-9), 0.1, 0.9))
    return float(below.allowance ** (1 - share) * above.allowance**share)
