"""Races of open networks: short blocks in turn, and confidence intervals of their ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import quantile_test

from converter.runtime import stopwatch
from converter.runtime.runtime import ExclusiveSession, Session
from converter.runtime.stopwatch import TimedSession, TimingSettings

CONFIDENCE = 0.99
MIN_EXCLUSIVE_ROUNDS = 5  # where networks must be opened again for each block


@dataclass(frozen=True)
class Interval:
    """A median with its 99 % confidence interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Interval:
        """Take median and interval from order statistics, whatever the distribution."""
        test = quantile_test(values, q=0, p=0.5)
        interval = test.confidence_interval(confidence_level=CONFIDENCE)
        # Below 8 values no order statistic is wide enough; take the whole range.
        low = float(np.min(values)) if math.isnan(interval.low) else float(interval.low)
        high = float(np.max(values)) if math.isnan(interval.high) else float(interval.high)
        return cls(float(np.median(values)), low, high)


@dataclass(frozen=True)
class Race:
    """Latencies of several sessions, and their speedups over the first.

    Attributes:
        latency_ms: Milliseconds of a call, by session.
        speedup: Speedup over the first session, by session.
        gain: Speedup of the last session over the one before it.
        rounds: Blocks that each session ran.
    """

    latency_ms: tuple[Interval, ...]
    speedup: tuple[Interval, ...]
    gain: Interval
    rounds: int


def race(
    sessions: Sequence[Session],
    feeds: Sequence[Mapping[str, np.ndarray]],
    progress: Callable[[float], None] = lambda done: None,
    settings: TimingSettings | None = None,
) -> Race:
    """Time sessions against one another in short blocks, with a pause before each block.

    Every round gives each session one block of calls, in an order that rotates. A speedup is the
    ratio of two blocks of the same round, so slow changes of the machine's speed cancel.

    Args:
        sessions: At least one session.
        feeds: Inputs of each session.
        progress: Called with the fraction that is done.
        settings: How long and how often networks are timed; the default if left out.
    """
    settings = settings or stopwatch.DEFAULT_SETTINGS
    timed = [TimedSession.of(session, feed, settings) for session, feed in zip(sessions, feeds)]
    round_s = sum((t.calls + 1) * t.call_s + settings.pause_s for t in timed)
    exclusive = any(isinstance(session, ExclusiveSession) for session in sessions)
    min_rounds = min(settings.min_rounds, MIN_EXCLUSIVE_ROUNDS if exclusive else math.inf)
    rounds = int(np.clip(settings.race_s * len(timed) / round_s, min_rounds, settings.max_rounds))
    times_ms = np.zeros((rounds, len(timed)))
    order = np.arange(len(timed))
    for number in range(rounds):
        for n in np.roll(order, -number):
            times_ms[number, n] = 1e3 * timed[n].seconds()
        progress((number + 1) / rounds)
    ratios = times_ms[:, :1] / times_ms
    return Race(
        latency_ms=tuple(Interval.of(column) for column in times_ms.T),
        speedup=tuple(Interval.of(column) for column in ratios.T),
        gain=Interval.of(times_ms[:, -2:][:, 0] / times_ms[:, -1]),
        rounds=rounds,
    )
