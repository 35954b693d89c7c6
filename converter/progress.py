"""Progress on standard error: one bar, or a line each minute without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from converter.stages import seconds_left

LOG_INTERVAL_S = 60.0


class Position:
    """Where a command is.

    Attributes:
        text: The stage, and how often it began.
        share: Fraction of the command that is done; of the stage if no time is expected.
        left: Time that is left, as text; empty if no time is expected.
    """

    def __init__(
        self, expected_s: Mapping[str, float] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start.

        Args:
            expected_s: Seconds by stage of an earlier run, in order; None if there is none.
            clock: Seconds from any origin.
        """
        self.text, self.share, self.left = "", 0.0, ""
        self._expected_s, self._clock = expected_s, clock
        self._start_s = self._last_s = clock()
        self._spent_s: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._runs: dict[str, int] = {}

    def update(self, stage: str, done: float) -> None:
        """Move to a stage of which a fraction is done."""
        now_s = self._clock()
        again = done < self._done.get(stage, 0.0)
        self._runs[stage] = self._runs.get(stage, 1) + again
        self._done[stage] = done
        spent_s = self._spent_s.pop(stage, 0.0) + now_s - self._last_s
        self._spent_s[stage], self._last_s = spent_s, now_s  # the current stage comes last
        runs = self._runs[stage]
        self.text, self.share = f"{stage} {runs}" if runs > 1 else stage, done
        if self._expected_s is not None:
            left_s = seconds_left(self._expected_s, self._spent_s, done)
            elapsed_s = now_s - self._start_s
            self.share = elapsed_s / (elapsed_s + left_s) if left_s else 1.0
            self.left = f"about {timedelta(seconds=round(left_s))} left"


@contextmanager
def show_progress(
    silent: bool, expected_s: Mapping[str, float] | None = None
) -> Iterator[Callable[[str, float], None]]:
    """Yield a function that shows a stage and the fraction of it that is done.

    Args:
        silent: Show nothing.
        expected_s: Seconds by stage of an earlier run, in order, from which the time left is
            estimated.
    """
    is_terminal = sys.stderr.isatty()
    bar = Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
        disable=silent or not is_terminal,
    )
    position, task = Position(expected_s), bar.add_task("", total=1.0, left="")
    logged_s = time.monotonic()

    def update(stage: str, done: float) -> None:
        nonlocal logged_s
        position.update(stage, done)
        text, share, left = position.text, position.share, position.left
        bar.update(task, description=text, completed=share, left=left)
        if not silent and not is_terminal and time.monotonic() - logged_s > LOG_INTERVAL_S:
            logged_s = time.monotonic()
            words = [f"{text}: {100 * share:.0f} %", *([left] if left else [])]
            sys.stderr.write(", ".join(words) + "\n")

    with bar:
        yield update
