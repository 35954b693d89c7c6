"""Faults while flatconv works: kills, full disks, damaged caches, two runs at once.

The sample network is converted, and a converted folder trained, again and again, each time with a
fault at a random but seeded moment. After every fault the output folder must hold the complete old
or the complete new result; at the end the command must succeed and give what it gives without
faults.
"""

from __future__ import annotations

import atexit
import functools
import random
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from scripts.benchmarks.models import CALIB, SAMPLE, SAMPLE_CHECKPOINT
from scripts.benchmarks.run import flatconv
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target
from scripts.tools.faults import FAULTS, WORKER_FAULTS, Fault, Job, Setting, digest_of, wait

IMAGES, EPOCHS = 500, 3
CONVERT = (
    *("convert", SAMPLE.model, "--checkpoint", str(SAMPLE_CHECKPOINT)),
    *("--calib", str(CALIB), "--quiet", "-o"),
)
BY_HAND = ("--form", "separable", "--rank", "0.5", "--keep", "linear", "--samples", "64")
JOBS = {"convert": FAULTS, "search": WORKER_FAULTS, "finetune": FAULTS}


@functools.cache
def scratch() -> Path:
    """Make a folder with old results, images and a latency table; it is removed at the end."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = Path(folder.name)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    np.savez(path / "train.npz", x=images)
    flatconv(*CONVERT, path / "before", "--form", "channel", "--keep", "linear")
    flatconv(*CONVERT, path / "trained", *BY_HAND)
    flatconv("measure", path / "before" / "original.onnx", "-o", path / "latency.json")
    return path


def job(name: str) -> Job:
    """Give a job by its name."""
    folder = scratch()
    out, cache = folder / "out", folder / "cache"
    if name == "convert":
        return Job((*CONVERT, str(out), *BY_HAND), folder / "before", out, cache)
    if name == "search":
        budget = ("--max-macs", "0.5", "--latency", str(folder / "latency.json"))
        return Job((*CONVERT, str(out), *budget), folder / "before", out, cache)
    train = ("--train", str(folder / "train.npz"), "--epochs", str(EPOCHS), "--resume", "--quiet")
    return Job(("finetune", str(out), *train), folder / "trained", out, cache)


@functools.cache
def without_faults(name: str) -> tuple[str, str, float]:
    """Run a job once; digests of its output folder before and after, and seconds.

    Raises:
        RuntimeError: When it fails.
    """
    run = job(name)
    run.reset()
    start = time.perf_counter()
    status, line = wait(run.start())
    if status:
        raise RuntimeError(f"{name} fails without a fault: {line}")
    return digest_of(run.before), digest_of(run.out), time.perf_counter() - start


def measure(name: str, kind: str, fault: Fault, share: float, settings: Settings) -> Figures:
    """Let one kind of fault strike a job."""
    rng = random.Random(f"{settings.seed} {name}, {kind}")
    setting = Setting(job(name), *without_faults(name), rng)
    outcomes, more = fault(setting, max(round(share * settings.faults), 1))
    wrong = [text for text in outcomes if text not in ("old", "new")]
    for text in wrong:
        print(f"{name}, {kind}: {text}", flush=True)
    setting.job.restore()
    goes_on = wait(setting.job.start())[0] == 0 and digest_of(setting.job.out) == setting.new
    return {
        "times": len(outcomes),
        "old": outcomes.count("old"),
        "new": outcomes.count("new"),
        "wrong": len(wrong),
        "goes_on": goes_on,
        **more,
    }


TARGET = Target("old or new, and goes on", lambda row: not row["wrong"] and row["goes_on"])
SUITE = Suite(
    "faults",
    [
        Case(f"{name}, {kind}", partial(measure, name, kind, fault, share), TARGET)
        for name, faults in JOBS.items()
        for kind, (fault, share) in faults.items()
    ],
    about="kills, full disks, damaged caches and two runs at once",
)
