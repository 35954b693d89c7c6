"""Faults that strike a command while it replaces an output folder.

Each function below starts a job again and again, lets one kind of fault strike at a random but
seeded moment, and says what the output folder holds afterwards: ``old`` or ``new``, which is the
complete result from before or after, or a sentence that says what is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psutil

import converter
from scripts.benchmarks.results import ROOT

TIMEOUT_S, CTRL_C_S, STARTUP_S = 600.0, 2.0, 2.0
FILES = ("model.onnx", "plan.json", "model.safetensors")
Outcomes: TypeAlias = tuple[list[str], dict[str, Any]]  # one per fault; further figures


@dataclass(frozen=True)
class Job:
    """A command that replaces an output folder.

    Attributes:
        command: Arguments of ``flatconv``.
        before: Folder with the old result.
        out: Folder that it replaces.
        cache: Its caches.
    """

    command: tuple[str, ...]
    before: Path
    out: Path
    cache: Path

    def reset(self) -> None:
        """Restore the old result, and empty the caches."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.restore()

    def restore(self) -> None:
        """Restore the old result."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.before, self.out)

    def start(self, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Start it on one thread; ``prepare`` runs in the new process first."""

        def begin() -> None:  # processes that a shell starts in the background ignore Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if prepare is not None:
                prepare()

        return subprocess.Popen(
            [sys.executable, "-m", "converter", *self.command],
            cwd=ROOT,
            text=True,
            env=os.environ | {"FLATCONV_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=begin,
        )


@dataclass(frozen=True)
class Setting:
    """A job without faults, and the random numbers that choose the moments.

    Attributes:
        job: The job.
        old: Digest of its output folder before.
        new: Digest of its output folder after.
        seconds: How long it takes.
        rng: Random numbers.
    """

    job: Job
    old: str
    new: str
    seconds: float
    rng: random.Random

    def content(self) -> str:
        """Say what the output folder holds: ``old``, ``new``, or what is wrong."""
        out = self.job.out
        try:
            digest = digest_of(out)
            converter.load(out)
            if (out / "report.json").stat().st_size == 0:
                return "an empty report"
        except (OSError, converter.ConverterError) as error:
            return f"damaged: {error}"
        return {self.old: "old", self.new: "new"}.get(digest, "neither old nor new")

    def outcome(self, process: subprocess.Popen[str], fine: Collection[int] = (0, 1, 2)) -> str:
        """Wait for a process, and say what the output folder holds unless it failed badly."""
        status, line = wait(process)
        return self.content() if status in fine else f"status {status}: {line}"

    def moment_s(self) -> float:
        """Choose a moment of the job."""
        return self.rng.uniform(0, 1.05 * self.seconds)


def digest_of(folder: Path) -> str:
    """Hash the files that the same command writes the same again; not the times of the report."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process.

    Returns:
        Its status, or -1 after an error that was not foreseen; the last line on stderr.
    """
    _, err = process.communicate(timeout=TIMEOUT_S)
    lines = err.strip().splitlines()
    foreseen = "Traceback" not in err and "unexpected" not in err
    return process.returncode if foreseen else -1, lines[-1] if lines else ""


def killed(setting: Setting, times: int) -> Outcomes:
    """Kill the job and all that it started."""
    outcomes = []
    for _ in range(times):
        setting.job.reset()
        process = setting.job.start()
        try:
            process.communicate(timeout=setting.moment_s())
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        outcomes.append(setting.content())
    return outcomes, {"seconds": setting.seconds}


def interrupted(setting: Setting, times: int) -> Outcomes:
    """Press Ctrl-C once it has begun."""
    outcomes, longest_s = [], 0.0
    for _ in range(times):
        setting.job.reset()
        process = setting.job.start()
        try:
            process.communicate(timeout=STARTUP_S + setting.moment_s())
        except subprocess.TimeoutExpired:
            start = time.perf_counter()
            os.killpg(process.pid, signal.SIGINT)
            # It ends by the signal itself if Python was about to exit.
            outcomes.append(setting.outcome(process, (0, 130, -signal.SIGINT)))
            longest_s = max(longest_s, time.perf_counter() - start)
        else:
            outcomes.append(setting.content())
    late = [f"{longest_s:.1f} s until it ended"] if longest_s > CTRL_C_S else []
    return outcomes + late, {"longest_s": longest_s}


def limited(kind: int, digits: tuple[float, float], setting: Setting, times: int) -> Outcomes:
    """Limit a resource of the process to ten to the power of a random number."""
    outcomes = []
    for _ in range(times):
        setting.job.reset()
        limit = int(10 ** setting.rng.uniform(*digits))
        process = setting.job.start(partial(resource.setrlimit, kind, (limit, limit)))
        outcomes.append(setting.outcome(process))
    return outcomes, {}


def read_only(setting: Setting, times: int) -> Outcomes:
    """Mount the output folder read-only, then the caches.

    Raises:
        RuntimeError: When this process may not mount.
    """
    outcomes = []
    for folder in (setting.job.out, setting.job.cache):
        setting.job.reset()
        folder.mkdir(exist_ok=True)
        mount = ("mount", "--bind", "-o", "ro", str(folder), str(folder))
        if subprocess.run(mount, check=False).returncode:
            raise RuntimeError("A read-only folder needs the right to mount one.")
        try:
            outcomes.append(setting.outcome(setting.job.start()))
        finally:
            subprocess.run(("umount", str(folder)), check=True)
    return outcomes, {}


def two_at_once(setting: Setting, times: int) -> Outcomes:
    """Run the job twice, on one folder and one cache."""
    outcomes = []
    for _ in range(times):
        setting.job.reset()
        pair = [setting.job.start() for _ in range(2)]
        outcomes += [setting.outcome(process, (0, 2)) for process in pair]
    return outcomes, {}


def cache_damaged(setting: Setting, times: int) -> Outcomes:
    """Flip bytes of every file of the caches, and cut some short."""
    job, rng = setting.job, setting.rng
    job.reset()
    wait(job.start())
    for path in sorted(p for p in job.cache.rglob("*") if p.is_file()):
        content = bytearray(path.read_bytes())
        for _ in range(8 if content else 0):
            content[rng.randrange(len(content))] ^= 255
        path.write_bytes(content[: rng.choice((len(content), len(content) // 2))])
    job.restore()
    return [setting.outcome(job.start(), (0,))], {}


def worker_killed(setting: Setting, times: int) -> Outcomes:
    """Kill one of the processes that solve layers, as the system does when memory is short."""
    outcomes, victims = [], 0
    for _ in range(times):
        setting.job.reset()
        process, struck = setting.job.start(), False
        while process.poll() is None and not struck:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
                workers = [c for c in children if "popen_loky" in " ".join(c.cmdline())]
                if workers:
                    time.sleep(setting.rng.uniform(0, 3))
                    setting.rng.choice(workers).kill()
                    struck = True
            time.sleep(0.05)
        victims += struck
        outcomes.append(setting.outcome(process))
    return outcomes, {"victims": victims}


Fault: TypeAlias = Callable[[Setting, int], Outcomes]
# Faults, and how often each strikes for one kill.
FAULTS: dict[str, tuple[Fault, float]] = {
    "killed": (killed, 1),
    "Ctrl-C": (interrupted, 0.2),
    "no space for a file": (partial(limited, resource.RLIMIT_FSIZE, (0, 7)), 0.2),
    "too little memory": (partial(limited, resource.RLIMIT_AS, (8.95, 9.4)), 0.2),
    "a folder read-only": (read_only, 0.1),
    "two at once": (two_at_once, 0.06),
    "every cache entry damaged": (cache_damaged, 0.02),
}
WORKER_FAULTS: dict[str, tuple[Fault, float]] = {"a worker killed": (worker_killed, 0.1)}
