"""Time open networks by the clock, in blocks of calls; runs where flatconv is not installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray]


def seconds_per_call(session: Any, feeds: Feeds, calls: int) -> float:
    """Time ``calls`` calls of a session by the clock; a first call is not counted."""
    session.run(None, feeds)
    start = time.perf_counter()
    for _ in range(calls):
        session.run(None, feeds)
    return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class TimingSettings:
    """How long and how often networks are timed.

    A block is long against the clock and short against the drift of a shared machine.

    Attributes:
        profile_s: Seconds of a profile.
        variants: How many variants race against the original, to scale the profiles.
        rounds: Pairs of blocks of such a race.
        block_s: Seconds of a block of calls.
        pause_s: Seconds before a block, in which the threads of other sessions stop spinning.
        race_s: Seconds that a race of whole networks spends on each of them.
        min_rounds: Rounds of such a race, at least.
        max_rounds: And at most.
        stopwatch: Gives the seconds of a call, from a session, its inputs and a number of calls.
    """

    profile_s: float = 0.25
    variants: int = 4
    rounds: int = 7
    block_s: float = 0.03
    pause_s: float = 0.02
    race_s: float = 4.0
    min_rounds: int = 15
    max_rounds: int = 60
    stopwatch: Callable[[Any, Feeds, int], float] = seconds_per_call


# Used wherever a caller passes no settings. Tests shorten all timing here (tests/conftest.py).
DEFAULT_SETTINGS = TimingSettings()


@dataclass(frozen=True)
class TimedSession:
    """An open network and its inputs.

    Attributes:
        session: The open network.
        feeds: Its inputs by name.
        call_s: Seconds of a call, roughly.
        calls: How many calls make a block.
        settings: How it is timed.
    """

    session: Any
    feeds: Feeds
    call_s: float
    calls: int
    settings: TimingSettings

    @classmethod
    def of(cls, session: Any, feeds: Feeds, settings: TimingSettings) -> TimedSession:
        """Choose the calls of a block by the time of two calls."""
        call_s = min(settings.stopwatch(session, feeds, 1) for _ in range(2))
        return cls(session, feeds, call_s, max(1, round(settings.block_s / call_s)), settings)

    def seconds(self) -> float:
        """Time one call, in a block after a pause."""
        time.sleep(self.settings.pause_s)
        return self.settings.stopwatch(self.session, self.feeds, self.calls)

    def ratio_to(self, base: TimedSession) -> float:
        """Divide the time of this network by that of another, in alternate blocks."""
        rounds = range(self.settings.rounds)
        return float(np.median([self.seconds() / base.seconds() for _ in rounds]))
