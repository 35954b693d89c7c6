"""Damaged and hostile files: checkpoints, ONNX files, plans and data, random but seeded.

Every input must be read, or refused by one sentence. Any other outcome is printed and counted:
another exception, a crash of the process, more than ten seconds, more than three GiB, a file
written. ``python -m scripts.tools.fuzz onnx 123`` reads a single input again.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scripts.benchmarks.results import ROOT
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

KINDS = ("checkpoint", "onnx", "plan", "data")
START_S, HANG_S = 60.0, 10.0


class Worker:
    """A process that reads inputs from a number on.

    Attributes:
        number: The input that is being read, or None.
        peak_gib: Memory that it took, once it has ended.
    """

    def __init__(self, kind: str, first: int, count: int, seed: int, folder: Path) -> None:
        """Start the process in ``folder``, which is all that it may write to."""
        self.number: int | None = None
        self.peak_gib = 0.0
        command = [sys.executable, "-m", "scripts.tools.fuzz", kind, str(first), str(count)]
        self._process = subprocess.Popen(
            [*command, "--seed", str(seed)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def outcomes(self) -> Iterator[tuple[int, str]]:
        """Give the number and the outcome of each input; the last may be a hang or a crash."""
        assert self._process.stdout is not None
        limit_s, rest = time.monotonic() + START_S, b""
        while True:
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                chunk = os.read(self._process.stdout.fileno(), 65536)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    mark, _, text = line.decode(errors="replace").partition(" ")
                    if mark == "@":
                        self.number, limit_s = int(text), time.monotonic() + HANG_S
                    elif mark == "=" and self.number is not None:
                        number, self.number = self.number, None
                        yield number, text
                    elif mark == "#":
                        self.peak_gib = float(text)
                if not chunk:
                    break
            if time.monotonic() > limit_s:
                break
        hangs = self._process.poll() is None and time.monotonic() > limit_s
        self._process.kill()
        status = self._process.wait()
        if self.number is not None:
            reason = f"it took more than {HANG_S:g} s" if hangs else f"status {status}"
            yield self.number, f"BUG {reason}"


def measure(kind: str, settings: Settings) -> Figures:
    """Have processes read many inputs of a kind.

    Raises:
        RuntimeError: When no input can be read at all.
    """
    outcomes: Counter[str] = Counter()
    start, peak_gib, number = time.perf_counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as scratch:
        while number < settings.inputs:
            first = number
            worker = Worker(kind, first, settings.inputs, settings.seed, Path(scratch))
            for number, outcome in worker.outcomes():
                outcomes[outcome.split()[0]] += 1
                if outcome.startswith("BUG"):
                    print(f"{kind} {number}: {outcome}", flush=True)
                number += 1
            if number == first:
                raise RuntimeError(f"No {kind} could be read.")
            peak_gib = max(peak_gib, worker.peak_gib)
        remaining = sorted(os.listdir(scratch))
    if remaining:
        print(f"{kind}: files were left behind: {remaining}", flush=True)
    return {
        "inputs": sum(outcomes.values()),
        "read": outcomes["read"],
        "refused": outcomes["refused"],
        "failed": outcomes["BUG"] + bool(remaining),
        "seconds": time.perf_counter() - start,
        "peak_gib": peak_gib,
    }


TARGET = Target("none fails", lambda row: not row["failed"])
SUITE = Suite(
    "fuzz",
    [Case(kind, partial(measure, kind), TARGET) for kind in KINDS],
    about="damaged and hostile checkpoints, ONNX files, plans and data",
)
