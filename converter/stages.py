"""``StageTimer``: the seconds that each stage of a conversion takes, and the cores it uses."""

from __future__ import annotations

import time
from collections.abc import Callable
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
