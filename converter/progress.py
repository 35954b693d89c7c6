"""Progress on standard error: a bar for each stage, or a line each minute without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LOG_INTERVAL_S = 60.0


@contextmanager
def show_progress(silent: bool) -> Iterator[Callable[[str, float], None]]:
    """Yield a function that shows a stage and the fraction of it that is done."""
    is_terminal = sys.stderr.isatty()
    bars = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=silent or not is_terminal,
    )
    stages: dict[str, TaskID] = {}
    logged_s = time.monotonic()

    def update(stage: str, done: float) -> None:
        nonlocal logged_s
        if stage not in stages:
            stages[stage] = bars.add_task(stage, total=1.0)
        task = bars.tasks[stages[stage]]
        if done < task.completed:  # the stage runs again
            bars.reset(stages[stage])
        bars.update(stages[stage], completed=done)
        if not silent and not is_terminal and time.monotonic() - logged_s > LOG_INTERVAL_S:
            logged_s = time.monotonic()
            left_s = task.time_remaining
            left = "" if left_s is None else f", {timedelta(seconds=left_s)} left"
            sys.stderr.write(f"{stage}: {100 * done:.0f} %{left}\n")

    with bars:
        yield update
