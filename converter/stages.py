"""``StageTimer``: the seconds that each stage of a conversion takes."""

from __future__ import annotations

import time
from collections.abc import Callable


class StageTimer:
    """A progress function that also measures the stages.

    A stage reports what it has done, so the time since the report before is counted as its own.

    Attributes:
        seconds: By stage, in the order in which they began.
    """

    def __init__(
        self,
        progress: Callable[[str, float], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start.

        Args:
            progress: Called with every stage and the fraction of it that is done.
            clock: Seconds from any origin.
        """
        self.seconds: dict[str, float] = {}
        self._progress, self._clock, self._last_s = progress, clock, clock()

    def __call__(self, stage: str, done: float) -> None:
        """Add the time since the last call to a stage."""
        now_s = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._last_s
        self._last_s = now_s
        self._progress(stage, done)
