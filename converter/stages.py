"""The time that each stage of a conversion takes, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """What one stage of a conversion took.

    Attributes:
        seconds: Wall time.
        cpu_seconds: Time of all threads of this process.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def cores(self) -> float:
        """Cores that this process used, on average."""
        return self.cpu_seconds / self.seconds if self.seconds else 0.0


class StageTimer:
    """A progress function that also measures the stages.

    A stage reports what it has done, so the time since the report before is counted as its own.
    """

    def __init__(
        self,
        progress: Callable[[str, float], None],
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        """Start.

        Args:
            progress: Called with every stage and the fraction of it that is done.
            clock: Seconds from any origin.
            cpu_clock: Seconds of all threads of this process.
        """
        self._stages: dict[str, Stage] = {}
        self._progress, self._clock, self._cpu_clock = progress, clock, cpu_clock
        self._last_s, self._last_cpu_s = clock(), cpu_clock()

    def __call__(self, stage: str, done: float) -> None:
        """Add the time since the last call to a stage."""
        now_s, cpu_s = self._clock(), self._cpu_clock()
        before = self._stages.get(stage, Stage())
        self._stages[stage] = Stage(
            before.seconds + now_s - self._last_s,
            before.cpu_seconds + cpu_s - self._last_cpu_s,
        )
        self._last_s, self._last_cpu_s = now_s, cpu_s
        self._progress(stage, done)

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages until now, in the order in which they began."""
        return dict(self._stages)


# Seconds by stage, in order: a conversion of ResNet-20 on two cores.
USUAL_S = {
    "loading": 4.0,
    "measuring": 7.0,
    "calibrating": 4.0,
    "options": 4.0,
    "probing": 4.0,
    "solving": 25.0,
    "searching": 2.0,
    "timing": 8.0,
    "scoring": 4.0,
}
ALTERNATING = {"solving", "searching", "racing"}  # none of them ends before the next other stage
MAX_SCALE = 8.0  # factor between the expected time and that of a larger or smaller network


def seconds_left(
    expected_s: Mapping[str, float], spent_s: Mapping[str, float], done: float = 0.0
) -> float:
    """Estimate the seconds that a conversion still takes.

    What ended so far tells how much slower or faster this conversion is than the earlier one. The
    fraction that is done tells it of a stage that the earlier one did not have, as of training.

    Args:
        expected_s: Seconds by stage of an earlier conversion.
        spent_s: Seconds by stage so far, the current one last.
        done: Fraction of the current stage that is done.
    """
    if not spent_s:
        return sum(expected_s.values())
    current = list(spent_s)[-1]
    running = ALTERNATING if current in ALTERNATING else {current}
    ended = {name for name in spent_s if name not in running}
    expected = sum(expected_s.get(name, 0.0) for name in ended)
    spent = sum(spent_s[name] for name in ended if name in expected_s)
    scale = min(max(spent / expected, 1 / MAX_SCALE), MAX_SCALE) if expected and spent else 1.0
    unexpected = current not in expected_s and done > 0
    return (spent_s[current] * (1 - done) / done if unexpected else 0.0) + sum(
        max(scale * seconds - spent_s.get(name, 0.0), 0.0)
        for name, seconds in expected_s.items()
        if name not in ended
    )
