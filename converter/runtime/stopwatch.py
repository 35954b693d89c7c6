"""Time open networks by the clock, in blocks of calls; this file also runs without flatconv."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray]


def seconds_per_call(session: Any, feeds: Feeds, calls: int) -> float:
    """Return the mean time of ``calls`` calls of a session, after one call that is not timed."""
    session.run(None, feeds)
    start = time.perf_counter()
    for _ in range(calls):
        session.run(None, feeds)
    return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class TimingSettings:
    """How long and how often networks are timed.

    Calls are timed in blocks that are long compared with the resolution of the clock, and short
    compared with the drift of a shared machine.

    Attributes:
        profile_s: Seconds of a profile.
        variants: How many variants race against the original, to scale the profiles.
        rounds: Pairs of blocks in a race of a variant.
        block_s: Seconds of a block of calls.
        pause_s: Seconds before a block, in which the threads of other sessions stop spinning.
        race_s: Seconds that a race of whole networks spends on each of them.
        min_rounds: Fewest rounds of a race of whole networks.
        max_rounds: Most rounds of a race of whole networks.
        stopwatch: (session, inputs, number of calls) -> seconds per call.
        attempts: How often all layers are measured at most, where profile and clock disagree.
        max_gap: Relative difference between the time of a network and the sum over its nodes
            from which on profile and clock disagree.
    """

    profile_s: float = 0.25
    variants: int = 4
    rounds: int = 7
    block_s: float = 0.03
    pause_s: float = 0.02
    race_s: float = 4.0
    min_rounds: int = 16
    max_rounds: int = 60
    stopwatch: Callable[[Any, Feeds, int], float] = seconds_per_call
    attempts: int = 3
    max_gap: float = 0.15


# Used wherever a caller passes no settings. Tests shorten all timing here (tests/conftest.py).
DEFAULT_SETTINGS = TimingSettings()


@dataclass(frozen=True)
class TimedSession:
    """An open network, its inputs, and the number of calls in a block.

    Attributes:
        session: The open network.
        feeds: Inputs by name.
        call_s: Approximate seconds of a call.
        calls: Calls in a block.
        settings: How the network is timed.
    """

    session: Any
    feeds: Feeds
    call_s: float
    calls: int
    settings: TimingSettings

    @classmethod
    def of(cls, session: Any, feeds: Feeds, settings: TimingSettings) -> TimedSession:
        """Choose the number of calls in a block from the time of a call."""
        call_s = min(settings.stopwatch(session, feeds, 1) for _ in range(2))
        return cls(session, feeds, call_s, max(1, round(settings.block_s / call_s)), settings)

    def seconds(self) -> float:
        """Return the seconds of a call, from one block after a pause."""
        time.sleep(self.settings.pause_s)
        return self.settings.stopwatch(self.session, self.feeds, self.calls)

    def ratio_to(self, base: TimedSession) -> float:
        """Return the median ratio of this network's time to another's, in alternating blocks."""
        rounds = range(self.settings.rounds)
        return float(np.median([self.seconds() / base.seconds() for _ in rounds]))
