"""Closing a budget: choose by the tables, build, look at what it really loses and takes, adjust."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from converter.search.candidates import Option
from converter.search.knapsack import Limit, choose

Built = TypeVar("Built")
Choice = dict[str, Option]

STEP = 8.0  # largest factor between the budgets of two trials
# Where no trial is within the limit, so many more aim at this share of it.
MORE, LOWER_AIM = 3, 0.75
# Networks raced to reach a speedup, predictions tried; how much more than wanted is enough for a
# race of other minutes to reach it, too, and not worth a further race.
RACES, AIMS, ENOUGH, CLOSE = 8, 16, 1.03, 1.06
# What the tables take for slower may not be: so many options of single layers that lose less are
# raced, of those that take at most so many times as long by the tables.
SWAPS, DOUBT = 10, 1.5
FASTER = 0.94  # share of the time that a further network must take
# An option must save this share of its layer's time.
LEAST_GAIN = 0.03


@dataclass(frozen=True)
class Aim:
    """Shares of what may be lost.

    Attributes:
        at: What the next trial is to lose.
        close: What is worth no further trial.
    """

    at: float
    close: float


CLOSELY, ROUGHLY = Aim(0.97, 0.94), Aim(0.87, 0.75)


@dataclass(frozen=True)
class Constraints:
    """What a choice must keep, by the tables.

    Attributes:
        ms: Most milliseconds that the layers may take together; infinite for no limit.
        macs: Most multiply-accumulates of them.
    """

    ms: float = math.inf
    macs: float = math.inf


@dataclass(frozen=True)
class SearchSpace:
    """Options of each layer with what the network loses by them.

    Attributes:
        options: By layer name; the first is to do nothing.
        weights: Loss per squared relative error, by layer name.
    """

    options: Mapping[str, Sequence[Option]]
    weights: Mapping[str, float]

    def sensible(self) -> SearchSpace:
        """Leave out options that gain nothing, or that another beats in every respect."""
        return SearchSpace(
            {name: _undominated(options) for name, options in self.options.items()}, self.weights
        )

    def unchanged(self) -> Choice:
        """Choose to do nothing."""
        return {name: options[0] for name, options in self.options.items()}

    def fastest(self) -> Choice:
        """Choose for time alone."""
        return {n: min(o, key=lambda option: option.ms) for n, o in self.options.items()}

    def least_macs(self) -> int:
        """Fewest multiply-accumulates that the layers can take."""
        return sum(min(o.macs for o in options) for options in self.options.values())

    def min_latency(self, loss: float, wanted: Constraints) -> Choice | None:
        """Choose the least time of those that lose at most ``loss``; None where there is none."""
        limit = Limit([_column(self, n, "loss") for n in self.options], loss)
        return self._chosen("ms", [limit, *self._limits(wanted)])

    def min_loss(self, wanted: Constraints) -> Choice | None:
        """Choose the least loss of those that keep to ``wanted``; None where there is none."""
        return self._chosen("loss", self._limits(wanted))

    def _limits(self, wanted: Constraints) -> list[Limit]:
        bounds = {"ms": wanted.ms, "macs": wanted.macs}
        return [
            Limit([_column(self, n, what) for n in self.options], most)
            for what, most in bounds.items()
            if most < math.inf
        ]

    def _chosen(self, goal: str, limits: Sequence[Limit]) -> Choice | None:
        numbers = choose([_column(self, n, goal) for n in self.options], limits)
        if numbers is None:
            return None
        return {name: o[n] for (name, o), n in zip(self.options.items(), numbers)}


@dataclass(frozen=True)
class Trial(Generic[Built]):
    """A network that was built.

    Attributes:
        choice: What was done to each layer.
        built: The network.
        value: What it really loses, as a share of what it may lose.
        budget: The loss that the tables were allowed.
    """

    choice: Choice
    built: Built
    value: float
    budget: float


def close(
    menu: SearchSpace,
    wanted: Constraints,
    first: float,
    build: Callable[[Choice], Built],
    value: Callable[[Built], float],
    most: int,
    aim: Aim = CLOSELY,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Trial[Built] | None, list[Trial[Built]]]:
    """Find the fastest network that loses no more than it may.

    What single layers lose does not add up, so that the loss that the tables are allowed is
    moved until what the network really loses comes close to the limit from below.

    Args:
        menu: What could be done.
        wanted: What must hold besides.
        first: The loss to begin with.
        build: Makes a network of a choice.
        value: Says what a network really loses, as a share of what it may lose.
        most: How many networks may be built; some more where none of these is within the limit.
        aim: How near the limit is near enough.
        progress: Called with the share done.

    Returns:
        The fastest trial within the limit, or None; and all trials.
    """
    trials: list[Trial[Built]] = []
    budget = first
    for number in range(most + MORE):
        if number >= most and any(trial.value <= 1 for trial in trials):
            break
        choice = menu.min_latency(budget, wanted)
        if choice is None or any(trial.choice == choice for trial in trials):
            break
        built = build(choice)
        trials.append(Trial(choice, built, value(built), budget))
        progress(min((number + 1) / most, 1.0))
        last = trials[-1]
        at_the_end = choice == menu.fastest() and last.value <= 1
        if aim.close <= last.value <= 1 or at_the_end:
            break
        budget = _next_budget(trials, aim.at if number + 1 < most else LOWER_AIM)
    within = [trial for trial in trials if trial.value <= 1]
    return min(within, key=lambda trial: total_ms(trial.choice), default=None), trials


def improve(
    menus: Sequence[SearchSpace],
    wanted: Constraints,
    best: Trial[Built],
    build: Callable[[Choice], Built],
    value: Callable[[Built], float],
    most: int,
) -> Trial[Built]:
    """Look for faster networks that lose no more than they may, by what other menus lose least by.

    Args:
        menus: What could be done, with other guesses of what is lost.
        wanted: What must hold besides.
        best: The fastest network so far.
        build: Makes a network of a choice.
        value: Says what a network really loses, as a share of what it may lose.
        most: How many networks may be built.

    Returns:
        The fastest network.
    """
    todo = list(menus)
    for _ in range(most):
        if not todo:
            break
        ms = min(wanted.ms, FASTER * total_ms(best.choice))
        choice = todo[0].min_loss(replace(wanted, ms=ms))
        built = None if choice is None else build(choice)
        if choice is not None and built is not None and (lost := value(built)) <= 1:
            best = Trial(choice, built, lost, best.budget)
        else:
            todo = todo[1:]
    return best


def reach(
    menu: SearchSpace,
    wanted_ms: Callable[[float], Constraints],
    target: float,
    measured: Callable[[Choice], float],
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Choice, float]:
    """Find the choice of least loss that is really as much faster as wanted, and hardly more.

    Tables err, and what they predict is aimed higher or lower until a race is won by little. Then
    single layers are given options that lose less, for as long as races are still won.

    Args:
        menu: What could be done.
        wanted_ms: Gives what must hold for a speedup that the tables predict.
        target: The speedup.
        measured: Says how much faster a choice really is.
        progress: Called with the share done.

    Returns:
        The choice, and what it was measured at; the fastest where the target is out of reach.
    """
    middle = math.sqrt(ENOUGH * CLOSE) * target
    aim, too_low, sufficient = middle, 0.0, math.inf
    raced: list[tuple[Choice, float]] = []
    best: tuple[Choice, float] | None = None
    for _ in range(AIMS):
        choice = menu.min_loss(wanted_ms(aim)) or menu.fastest()
        speedup = next((found for other, found in raced if other == choice), 0.0)
        if not speedup:
            if len(raced) == RACES:
                break
            speedup = measured(choice)
            raced.append((choice, speedup))
            progress(len(raced) / (RACES + SWAPS))
        if speedup >= ENOUGH * target:
            best, sufficient = (choice, speedup), aim
        elif choice == menu.fastest():
            break
        else:
            too_low = aim
        if ENOUGH <= speedup / target <= CLOSE:
            break
        aim *= middle / speedup
        if not too_low < aim < sufficient:  # then both are known
            aim = math.sqrt(too_low * sufficient)
    if best is None:
        return max(raced, key=lambda race: race[1])
    refused: list[tuple[str, Option]] = []
    for number in range(SWAPS):
        gentler = _gentler(menu, best[0], wanted_ms(target).macs)
        swap = next((other for other in gentler if other not in refused), None)
        if swap is None:
            break
        choice = {**best[0], swap[0]: swap[1]}
        speedup = measured(choice)
        progress((RACES + number + 1) / (RACES + SWAPS))
        if speedup >= ENOUGH * target:
            best = choice, speedup
        else:
            refused.append(swap)
    return best


def total_ms(choice: Choice) -> float:
    """Time of the layers together, by the tables."""
    return sum(option.ms for option in choice.values())


def total_macs(choice: Choice) -> int:
    """Multiply-accumulates of the layers together."""
    return sum(option.macs for option in choice.values())


def _next_budget(trials: Sequence[Trial[Built]], aim: float) -> float:
    """Interpolate between the last trials on both sides of the limit, or step toward ``aim``."""
    below = max((t for t in trials if t.value <= 1), key=lambda t: t.budget, default=None)
    above = min((t for t in trials if t.value > 1), key=lambda t: t.budget, default=None)
    if below is None or above is None or below.budget >= above.budget:
        last = trials[-1]
        return last.budget * float(np.clip(aim / max(last.value, 1e-9), 1 / STEP, STEP))
    low, high = (math.log(max(t.value, 1e-3)) for t in (below, above))
    share = float(np.clip((math.log(aim) - low) / max(high - low, 1e-9), 0.1, 0.9))
    return float(below.budget ** (1 - share) * above.budget**share)


def _gentler(menu: SearchSpace, choice: Choice, macs: float) -> list[tuple[str, Option]]:
    """List other options of single layers that lose less, what gains most a millisecond first."""

    def gain_per_ms(swap: tuple[str, Option]) -> float:
        name, option = swap
        gain = menu.weights[name] * (choice[name].rel_error ** 2 - option.rel_error**2)
        return gain / max(option.ms - choice[name].ms, 1e-9)

    room = macs - total_macs(choice)
    swaps = [
        (name, option)
        for name, now in choice.items()
        for option in menu.options[name]
        if option.rel_error < now.rel_error
        and option.ms <= DOUBT * now.ms
        and option.macs - now.macs <= room
    ]
    return sorted(swaps, key=gain_per_ms, reverse=True)


def _column(menu: SearchSpace, layer: str, what: str) -> np.ndarray:
    options = menu.options[layer]
    if what == "loss":
        return menu.weights[layer] * np.array([option.rel_error**2 for option in options])
    return np.array([getattr(option, what) for option in options], np.float64)


def _undominated(options: Sequence[Option]) -> list[Option]:
    keep, *others = options
    most_ms = (1 - LEAST_GAIN) * keep.ms
    kept = [keep]
    for option in sorted(
        (o for o in others if o.ms <= most_ms), key=lambda o: (o.rel_error, o.ms, o.macs)
    ):
        if not any(
            k.rel_error <= option.rel_error and k.ms <= option.ms and k.macs <= option.macs
            for k in kept
        ):
            kept.append(option)
    return kept
