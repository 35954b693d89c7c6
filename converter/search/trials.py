"""Trials of a search, and the loop that makes one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np

from converter.search.budgets import Column
from converter.search.search_space import Assignment

Built = TypeVar("Built")
MAX_STEP = 8.0  # largest factor between the loss allowances of two trials
MAX_PROPOSALS = 16  # assignments proposed from the tables in one walk


@dataclass(frozen=True)
class Aim:
    """The share of the allowed loss that a search aims at.

    Attributes:
        at: Share that the next trial should use.
        close: Share from which on the search stops.
    """

    at: float
    close: float


TIGHT, LOOSE = Aim(0.96, 0.9), Aim(0.87, 0.75)


@dataclass(frozen=True)
class Limits:
    """The limits of a search.

    Attributes:
        loss: Predicted loss allowed in the first trial; None where nothing limits the loss.
        speedup: Measured speedup to reach, or None.
        sums: Largest sums over the searched layers by column; they follow from the tables.
        ms_at: Predicted speedup -> milliseconds that the searched layers may take.
        goal: Column to minimize: the time where the loss is limited, else the loss.
    """

    loss: float | None = None
    speedup: float | None = None
    sums: Mapping[Column, float] = field(default_factory=dict)
    ms_at: Callable[[float], float] = lambda speedup: math.inf
    goal: Column = "ms"

    @property
    def columns(self) -> list[Column]:
        """The columns that are limited."""
        measured: list[Column] = ["loss"] if self.loss is not None else []
        measured += ["ms"] if self.speedup is not None else []
        return [*measured, *self.sums]

    def without(self, column: Column) -> Limits:
        """Return the limits without one; its column is minimized instead."""
        return replace(
            self,
            loss=None if column == "loss" else self.loss,
            speedup=None if column == "ms" else self.speedup,
            sums={name: limit for name, limit in self.sums.items() if name != column},
            goal=column,
        )


@dataclass(frozen=True)
class Measures(Generic[Built]):
    """The functions by which a search measures an assignment.

    Attributes:
        build: (assignment, near, effort) -> network; ``near`` is the network of another
            assignment to start from, or None; ``effort`` is the share of the usual work.
        usage: Network -> share of each limit that it uses, by option; 1 or less keeps the limit.
        speedup: Assignment -> measured speedup over the original.
        error: Network -> relative output error, by which networks are compared without a limit.
    """

    build: Callable[[Assignment, Built | None, float], Built]
    usage: Callable[[Built], Mapping[str, float]]
    speedup: Callable[[Assignment], float]
    error: Callable[[Built], float]


@dataclass(frozen=True)
class Trial(Generic[Built]):
    """An assignment that was measured.

    Attributes:
        assignment: The candidate of each layer.
        allowance: Predicted loss, or predicted speedup, for which the assignment was proposed.
        network: The built network; None if it was only raced.
        usage: Share of each measured limit that the network uses, by option.
        speedup: Measured speedup, or None.
    """

    assignment: Assignment
    allowance: float
    network: Built | None = None
    usage: Mapping[str, float] = field(default_factory=dict)
    speedup: float | None = None

    @property
    def worst(self) -> float:
        """The largest share of a limit that the network uses."""
        return max(self.usage.values(), default=0.0)


@dataclass(frozen=True)
class Effort:
    """How much a search may build.

    Attributes:
        trials: Networks to build; a few more if none of these keeps the limits.
        aim: How close to the limit the loss should come.
        improve: Further networks to build for other priors.
        drafts: Whether networks may be judged by drafts: the same networks, solved with less work.
    """

    trials: int
    aim: Aim = TIGHT
    improve: int = 0
    drafts: bool = True


@dataclass(frozen=True)
class Outcome(Generic[Built]):
    """The end of a search: the trial to ship, and all trials."""

    best: Trial[Built]
    trials: tuple[Trial[Built], ...]

    @property
    def kept(self) -> bool:
        """Whether the trial to ship keeps every measured limit."""
        return self.best.worst <= 1


def walk(
    propose: Callable[[float], Assignment | None],
    measure: Callable[[Assignment, float, Trial[Built] | None], Trial[Built]],
    advance: Callable[[Sequence[Trial[Built]]], float | None],
    allowance: float,
    max_measured: int,
) -> list[Trial[Built]]:
    """Measure one proposal after another; the allowance follows from the trials so far.

    Args:
        propose: Allowance -> assignment, or None if no assignment keeps it by the tables.
        measure: (assignment, allowance, last trial) -> trial; it is called once for equal
            assignments.
        advance: Trials so far -> the next allowance, or None to stop.
        allowance: The first allowance.
        max_measured: How many assignments may be measured.
    """
    trials: list[Trial[Built]] = []
    measured: list[Trial[Built]] = []
    for _ in range(MAX_PROPOSALS):
        assignment = propose(allowance)
        if assignment is None:
            break
        trial = next((t for t in measured if t.assignment == assignment), None)
        if trial is None:
            if len(measured) == max_measured:
                break
            trial = measure(assignment, allowance, measured[-1] if measured else None)
            measured.append(trial)
        trials.append(replace(trial, allowance=allowance))
        next_allowance = advance(trials)
        if next_allowance is None:
            break
        allowance = next_allowance
    return trials


def build_trial(
    trial: Trial[Built],
    measures: Measures[Built],
    near: Trial[Built] | None = None,
    effort: float = 1.0,
) -> Trial[Built]:
    """Build the network of a trial, starting from that of another, and measure its usage."""
    network = measures.build(trial.assignment, near.network if near else None, effort)
    return replace(trial, network=network, usage={**measures.usage(network), **trial.usage})


def next_loss(trials: Sequence[Trial[Built]], aim: float) -> float:
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
