"""The runner: measures the cases of a suite, and the ways to convert that all suites share."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import converter
from scripts.benchmarks.results import ROOT, Row, earlier_rows, write
from scripts.benchmarks.suite import Case, Figures, Settings, Suite

SUITES = (
    "solver resnets_untuned resnets_tuned zoo paper onnx int8 peers scale numbers intervals wheel "
    "faults fuzz real kept stages wild"
).split()
BUDGET_MISSED = 1  # exit status: the results were written


def find_suite(name: str) -> Suite:
    """Give a suite by its name.

    Raises:
        SystemExit: When there is no such suite.
    """
    if name not in SUITES:
        raise SystemExit(f"There is no suite {name!r}; choose one of {', '.join(SUITES)}.")
    suite: Suite = import_module(f"scripts.benchmarks.suites.{name}").SUITE
    return suite


def run_suite(suite: Suite, settings: Settings) -> list[Row]:
    """Measure the cases that the settings ask for; print and record each row as it arrives.

    Rows of cases that are not chosen stay in the results file.

    Raises:
        SystemExit: When no case matches.
    """
    cases = [case for case in suite.cases if case.is_chosen(settings)]
    if not cases:
        raise SystemExit(f"No case of {suite.name} matches {' '.join(settings.only)}.")
    resumed = earlier_rows(suite.name, settings.out, settings.older) if settings.resume else []
    done = {row["name"] for row in resumed}
    rows = earlier_rows(suite.name, settings.out, older=True) if settings.only else resumed
    for case in cases:
        if case.is_done(done):
            continue
        for row in measured(suite, case, settings):
            print(row, flush=True)
            rows = [other for other in rows if other["name"] != row["name"]] + [row]
        rows = suite.summarize(rows)
        write(suite.name, rows, settings.out, suite.threads)
    return rows


def measured(suite: Suite, case: Case, settings: Settings) -> list[Row]:
    """Measure one case; a failure in a process of its own is a row, too."""
    if not case.own_process:
        figures = case.measure(settings)
    else:
        spawn = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(1, spawn) as pool:
                figures = pool.submit(measure_by_name, suite.name, case.name, settings).result()
        except Exception as error:  # a crash of the process, or whatever the measurement raised
            return [case.failed((str(error) or type(error).__name__).splitlines()[-1])]
    every = [figures] if isinstance(figures, dict) else figures
    return [case.judge(figures) for figures in every]


def measure_by_name(suite: str, case: str, settings: Settings) -> Figures | list[Figures]:
    """Measure a case in the process that this is called in."""
    return find_suite(suite).case(case).measure(settings)


def convert(
    model: Any,
    example_input: object = None,
    *,
    progress: Callable[[str, float], None] | None = None,
    **values: Any,
) -> converter.Result:
    """Call ``converter.convert`` with options by their flat names; ``calib`` may be an array."""
    more: dict[str, Any] = {} if progress is None else {"progress": progress}
    if isinstance(values.get("calib"), np.ndarray):
        more["calib"] = values.pop("calib")
    options = converter.Options.of(**values)
    return converter.convert(model, example_input, options=options, **more)


def report_of(model: Any, example_input: object = None, **values: Any) -> dict[str, Any]:
    """Convert, and give the report as JSON values."""
    return convert(model, example_input, **values).report.to_dict()


def flatconv(
    *arguments: object, environment: Mapping[str, str] | None = None, root: Path = ROOT
) -> str:
    """Run the command line of a checkout and give what it prints; a missed budget is no failure.

    Raises:
        RuntimeError: With the last line on stderr, when the command fails.
    """
    command = [sys.executable, "-m", "converter", *map(str, arguments)]
    return run(command, environment, accepted=(0, BUDGET_MISSED), root=root)


def run(
    command: list[Any],
    environment: Mapping[str, str] | None = None,
    accepted: tuple[int, ...] = (0,),
    root: Path = ROOT,
) -> str:
    """Run a command in the root of a checkout and give what it prints.

    Raises:
        RuntimeError: With the last line of its output when it fails, or the signal that ended it.
    """
    ended = subprocess.run(
        list(map(str, command)),
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | dict(environment or {}),
    )
    if ended.returncode < 0:
        raise RuntimeError(f"It was ended by signal {-ended.returncode}.")
    if ended.returncode not in accepted:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or ["no message"]
        raise RuntimeError(lines[-1][:300])
    return ended.stdout


def flags(**values: Any) -> list[str]:
    """Write options by their flat names as arguments of the command line."""
    arguments: list[str] = []
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            several = value if isinstance(value, tuple) else (value,)
            arguments += [part for item in several for part in (f"--{option}", str(item))]
    return arguments


def convert_command(model: object, folder: Path, **values: Any) -> dict[str, Any]:
    """Run ``flatconv convert`` into ``folder`` and give the report.

    Raises:
        RuntimeError: When the command fails.
    """
    flatconv("convert", model, "-o", folder, "--quiet", *flags(**values))
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def compare(*paths: Path, **values: Any) -> list[dict[str, Any]]:
    """Run ``flatconv compare`` and give what it says of each network, in the order of ``paths``.

    Args:
        paths: ONNX files; the first is the original.
        values: ``data``, and options by their flat names.

    Raises:
        RuntimeError: When the command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "comparison.json"
        flatconv("compare", *paths, "--json", figures, "--quiet", *flags(**values))
        networks: list[dict[str, Any]] = json.loads(figures.read_text())["networks"]
    return networks
