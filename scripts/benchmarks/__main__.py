"""``python -m scripts.benchmarks``, from the root of a checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

if not __package__:  # started as ``python scripts/benchmarks``; child processes need it, too
    root = str(Path(__file__).resolve().parents[2])
    sys.path[0] = root
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.getenv("PYTHONPATH")]))

from cyclopts import App, Parameter

from scripts.benchmarks.run import SUITES, find_suite, run_suite
from scripts.benchmarks.suite import Settings

app = App(name="python -m scripts.benchmarks", help="Measure flatconv.", version_flags=[])


@app.command(name="run")
def run_command(
    suite: str, *, settings: Annotated[Settings, Parameter(name="*")] = Settings()
) -> int:
    """Measure a suite, and write SUITE.json as each row arrives.

    Args:
        suite: Name of the suite; ``list`` prints them.
        settings: Settings.
    """
    rows = run_suite(find_suite(suite), settings)
    return int(any(row.get("met") is False for row in rows))


@app.command(name="list")
def list_command(suite: str | None = None) -> None:
    """List the suites, or the cases of one."""
    if suite is None:
        for name in SUITES:
            print(f"{name}: {find_suite(name).about}")
        return
    for case in find_suite(suite).cases:
        print(case.name + (f" (needs --{case.requires})" if case.requires else ""))


if __name__ == "__main__":
    sys.exit(app())
