"""Whether the intervals of a race can be relied on.

A network is compared with itself 200 times, and with a converted one on a quiet machine and beside
a process that takes half of a core.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.models import SAMPLE
from scripts.benchmarks.run import compare, convert
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

COMPARISONS, MAX_CLAIMS = 200, 0.015
PAIRS, MAX_DEVIATION = 10, 0.1
HALF_A_CORE = """
import time
while True:
    end = time.perf_counter() + 0.01
    while time.perf_counter() < end:
        pass
    time.sleep(0.01)
"""


@contextlib.contextmanager
def converted_files() -> Iterator[tuple[Path, Path]]:
    """Convert the sample network; the files of original and converted network."""
    with tempfile.TemporaryDirectory() as folder:
        choices: dict[str, Any] = {
            "form": ("separable",),
            "rank": ("0.5",),
            "input_shape": ("1,3,32,32",),
        }
        convert(SAMPLE.model, **SAMPLE.options, **choices).save(folder)
        yield Path(folder) / "original.onnx", Path(folder) / "model.onnx"


def compare_with_itself(settings: Settings) -> Figures:
    """Count how often a network compared with itself is said to differ."""
    claims, widths = 0, []
    with converted_files() as (original, _), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.onnx"
        copy.write_bytes(original.read_bytes())
        for _ in range(COMPARISONS):
            _, network = compare(original, copy)
            claims += network["verdict"] != "no difference"
            widths.append(network["speedup"]["high"] - network["speedup"]["low"])
    return {"claims": claims, "median_width": float(np.median(widths))}


def compare_beside_work(settings: Settings) -> Figures:
    """Measure a speedup on a quiet and on a busy machine."""
    ratios: dict[bool, list[float]] = {False: [], True: []}
    with converted_files() as files:
        for _, busy in itertools.product(range(PAIRS), (False, True)):
            with other_work() if busy else contextlib.nullcontext():
                ratios[busy].append(compare(*files)[1]["speedup"]["median"])
    deviations = np.divide(ratios[True], ratios[False]) - 1
    return {
        "ratio_quiet": float(np.median(ratios[False])),
        "ratio_busy": float(np.median(ratios[True])),
        "most_off": float(np.abs(deviations).max()),
    }


@contextlib.contextmanager
def other_work() -> Iterator[None]:
    """Keep half of a core busy, ten milliseconds of twenty."""
    process = subprocess.Popen([sys.executable, "-c", HALF_A_CORE])
    try:
        yield
    finally:
        process.kill()
        process.wait()


SUITE = Suite(
    "intervals",
    [
        Case(
            f"{COMPARISONS} comparisons of the sample network with itself",
            compare_with_itself,
            Target(
                f"at most {MAX_CLAIMS:.1%} claim a difference",
                lambda row: row["claims"] <= MAX_CLAIMS * COMPARISONS,
            ),
        ),
        Case(
            f"{PAIRS} pairs, quiet and beside half a core of other work",
            compare_beside_work,
            Target(f"within {MAX_DEVIATION:.0%}", lambda row: row["most_off"] <= MAX_DEVIATION),
        ),
    ],
    about="how often a race claims a difference that is not there",
)
