"""Trials of a search, and the walk that makes one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from converter.search.budgets import Column
from converter.search.search_space import Assignment

Built = TypeVar("Built")
MAX_PROPOSALS = 16  # of the tables, in one walk


@dataclass(frozen=True)
class Aim:
    """Shares of what may be lost: ``at`` for the next trial, ``close`` where no more is needed."""

    at: float
    close: float


CLOSELY, ROUGHLY = Aim(0.97, 0.94), Aim(0.87, 0.75)


@dataclass(frozen=True)
class Limits:
    """What a search has to keep.

    Attributes:
        loss: The loss that the tables are allowed at first; None where nothing limits the loss.
        speedup: The measured speedup to reach; None for none.
        sums: Largest sums over the searched layers by column, which the tables know.
        ms_at: The milliseconds that the searched layers may take at a predicted speedup.
        goal: The column to minimize: the time where the loss is limited, else the loss.
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
        """Drop one limit, and minimize its column instead."""
        return replace(
            self,
            loss=None if column == "loss" else self.loss,
            speedup=None if column == "ms" else self.speedup,
            sums={name: most for name, most in self.sums.items() if name != column},
            goal=column,
        )


@dataclass(frozen=True)
class Measures(Generic[Built]):
    """How a search measures an assignment.

    Attributes:
        build: Makes the network.
        usage: A built network -> share of each limit that it uses, by option; at most 1 keeps it.
        speedup: Races an assignment against the original.
        error: A built network -> its loss, where nothing limits it.
    """

    build: Callable[[Assignment], Built]
    usage: Callable[[Built], Mapping[str, float]]
    speedup: Callable[[Assignment], float]
    error: Callable[[Built], float]


@dataclass(frozen=True)
class Trial(Generic[Built]):
    """An assignment that was measured.

    Attributes:
        assignment: The candidate of each layer.
        allowance: What the tables were allowed.
        network: The built network; None where it was only raced.
        usage: Share of each measured limit that it uses, by option.
        speedup: As raced, or None.
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
        trials: Networks to build; some more where none of these keeps the limits.
        aim: How near a limit is near enough.
        improve: Networks to build for other priors after that.
    """

    trials: int
    aim: Aim = CLOSELY
    improve: int = 0


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
    measure: Callable[[Assignment, float], Trial[Built]],
    advance: Callable[[Sequence[Trial[Built]]], float | None],
    allowance: float,
    max_measured: int,
) -> list[Trial[Built]]:
    """Measure one proposal after the other; the allowance follows from the trials so far.

    Args:
        propose: Allowance -> assignment, or None where the tables know none.
        measure: Measures an assignment; one that comes again is not measured again.
        advance: Trials so far -> the next allowance, or None to stop.
        allowance: The first.
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
            trial = measure(assignment, allowance)
            measured.append(trial)
        trials.append(replace(trial, allowance=allowance))
        following = advance(trials)
        if following is None:
            break
        allowance = following
    return trials
