"""Races of open networks: short blocks in turn, and confidence intervals of their ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from converter.runtime import stopwatch
from converter.runtime.runtime import ExclusiveSession, Session
from converter.runtime.stopwatch import TimedSession, TimingSettings

CONFIDENCE = 0.99
MIN_VALUES = 8  # of which the whole range is such an interval
MIN_EXCLUSIVE_ROUNDS = 5  # where networks must be opened again for each block
LOOKS = 3  # how often a race that is to decide something looks at its intervals
GROWTH = 2  # factor of its rounds from one look to the next
# Neighbouring rounds had a correlation of 0.12 in 22 races; in pairs of them this adds a tenth to
# the variance of a mean. The factor leaves as much again.
INFLATION = 1.2


@dataclass(frozen=True)
class Interval:
    """A median with its 99 % confidence interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Interval:
        """Take median and interval from order statistics, whatever the distribution."""
        test = stats.quantile_test(values, q=0, p=0.5)
        interval = test.confidence_interval(confidence_level=CONFIDENCE)
        # Below 8 values no order statistic is wide enough; take the whole range.
        low = float(np.min(values)) if math.isnan(interval.low) else float(interval.low)
        high = float(np.max(values)) if math.isnan(interval.high) else float(interval.high)
        return cls(float(np.median(values)), low, high)

    @classmethod
    def of_ratios(cls, ratios: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
        """Take the interval of the ratios (rounds,) of two networks that raced.

        It is that of the signed-rank test (Hodges and Lehmann, Annals of Mathematical Statistics
        34, 1963) on the logarithms, which are symmetric where the networks are equally fast. Means
        of two rounds are taken first: the order of the networks differs between them, and what
        disturbs one round often disturbs the next one, too. A few rounds are not paired.
        """
        logs = values = np.log(ratios)
        if len(logs) >= 2 * MIN_VALUES:
            pairs = np.array_split(logs, math.ceil(len(logs) / 2))
            values = np.array([pair.mean() for pair in pairs])
        low, high = _signed_rank_interval(values, confidence)
        median = float(np.median(logs))
        low, high = min(low, median), max(high, median)
        return cls(math.exp(median), math.exp(low), math.exp(high))

    def contains(self, value: float) -> bool:
        """Tell whether a value lies in the interval."""
        return self.low <= value <= self.high


def _signed_rank_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the confidence interval of the center of symmetry; of few values, by Student's t."""
    count = len(values)
    if count < 2:
        return float(values.min()), float(values.max())
    if 2 * 0.5**count > 1 - confidence:  # even their whole range would be too narrow
        margin = stats.t.ppf((1 + confidence) / 2, count - 1) * stats.sem(values)
        return float(values.mean() - margin), float(values.mean() + margin)
    first, second = np.triu_indices(count)
    means = np.sort((values[first] + values[second]) / 2)
    deviation = math.sqrt(INFLATION * count * (count + 1) * (2 * count + 1) / 24)
    margin = stats.norm.ppf((1 + confidence) / 2) * deviation
    outside = max(math.floor(len(means) / 2 - margin), 0)
    return float(means[outside]), float(means[-1 - outside])


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
    decide: Collection[float] = (),
) -> Race:
    """Time sessions against one another in short blocks, with a pause before each block.

    Every round gives each session one block of calls, in an order that changes. A speedup is the
    ratio of two blocks of the same round, so slow changes of the machine's speed cancel.

    Args:
        sessions: At least one session.
        feeds: Inputs of each session.
        progress: Called with the fraction that is done.
        settings: How long and how often networks are timed; the default if left out.
        decide: Speedups, such as 1 and a target. The race goes on until no interval contains one of
            them, for up to ``GROWTH ** (LOOKS - 1)`` times as long. As it looks at its intervals
            several times, they are wider, so that 99 % of them hold nevertheless.
    """
    settings = settings or stopwatch.DEFAULT_SETTINGS
    timed = [TimedSession.of(session, feed, settings) for session, feed in zip(sessions, feeds)]
    rounds = _rounds(timed, any(isinstance(session, ExclusiveSession) for session in sessions))
    looks = LOOKS if decide and len(timed) > 1 else 1
    ends = [rounds * GROWTH**look for look in range(looks)]
    confidence = 1 - (1 - CONFIDENCE) / looks
    times_ms: list[np.ndarray] = []
    for end in ends:
        while len(times_ms) < end:
            times_ms.append(_one_round(timed, len(times_ms)))
            progress(len(times_ms) / ends[-1])
        outcome = _outcome(np.array(times_ms), confidence)
        intervals = (*outcome.speedup[1:], outcome.gain)
        if not any(interval.contains(value) for interval in intervals for value in decide):
            break
    return outcome


def _rounds(timed: Sequence[TimedSession], exclusive: bool) -> int:
    """Return how many rounds take the time of a race, within limits."""
    settings = timed[0].settings
    round_s = sum((t.calls + 1) * t.call_s + settings.pause_s for t in timed)
    min_rounds = min(settings.min_rounds, MIN_EXCLUSIVE_ROUNDS if exclusive else math.inf)
    return int(np.clip(settings.race_s * len(timed) / round_s, min_rounds, settings.max_rounds))


def _one_round(timed: Sequence[TimedSession], number: int) -> np.ndarray:
    """Return the milliseconds of a call of each session, from one block each.

    The second round of each two has the order of the first one backwards.
    """
    pair, second = divmod(number, 2)
    order = np.roll(range(len(timed)), -pair)
    times_ms = np.zeros(len(timed))
    for n in order[::-1] if second else order:
        times_ms[n] = 1e3 * timed[n].seconds()
    return times_ms


def _outcome(times_ms: np.ndarray, confidence: float) -> Race:
    """Return the intervals of a race from its times (rounds, sessions)."""
    ratios = times_ms[:, :1] / times_ms
    return Race(
        latency_ms=tuple(Interval.of(column) for column in times_ms.T),
        speedup=tuple(Interval.of_ratios(column, confidence) for column in ratios.T),
        gain=Interval.of_ratios(times_ms[:, -2:][:, 0] / times_ms[:, -1], confidence),
        rounds=len(times_ms),
    )
