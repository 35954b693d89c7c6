"""What goes wrong while flatconv works: kills, full disks, damaged caches, two runs at once.

The sample network is converted, and a converted folder trained, again and again, each time with a
fault at a random but seeded moment. After every fault the output folder must hold the complete
old or the complete new result, and at the end the command must go through and give what it gives
without faults. Rows are written as they come; ``--resume`` keeps those there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench_results import ROOT, gather, resumable, table

sys.path.insert(0, str(ROOT))

import numpy as np
import psutil

import converter
from converter.errors import ConverterError

KILLS, LONGEST_S, CTRL_C_S, BEGUN_S = 50, 600.0, 2.0, 2.0
JOBS = ("convert", "search", "finetune")
IMAGES, EPOCHS = 500, 3
SAMPLE = ROOT / "sample_models" / "paper_cifar10.safetensors"
CALIB = ROOT / "sample_models" / "cifar10_calib.npz"
FILES = ("model.onnx", "plan.json", "model.safetensors")


@dataclass(frozen=True)
class Job:
    """A command that replaces an output folder.

    Attributes:
        name: Of the rows.
        command: After ``python -m converter``.
        before: Folder with the old result.
        out: Folder that it works on.
        cache: Its caches.
        workers: Whether it has processes that solve layers.
    """

    name: str
    command: tuple[str, ...]
    before: Path
    out: Path
    cache: Path
    workers: bool = False

    def reset(self) -> None:
        """Put the old result back, and forget what was solved and trained."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.again()

    def again(self) -> None:
        """Put the old result back."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.before, self.out)

    def start(self, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Start it, with one thread, since two at once would wait for each other's."""

        def begin() -> None:  # what starts in the background of a shell ignores Ctrl-C
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


def digest(folder: Path) -> str:
    """Hash what the same command gives again: not the times in the report."""
    found = hashlib.sha256()
    for name in FILES:
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def state(job: Job, old: str, new: str) -> str:
    """Say what the output folder holds: ``old``, ``new``, or what is wrong."""
    try:
        held = digest(job.out)
        converter.load(job.out)
        if (job.out / "report.json").stat().st_size == 0:
            return "an empty report"
    except (OSError, ConverterError) as error:
        return f"damaged: {error}"
    return {old: "old", new: "new"}.get(held, "neither old nor new")


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process.

    Returns:
        Its status, -1 where it failed in a way that was not foreseen; the last line on stderr.
    """
    _, err = process.communicate(timeout=LONGEST_S)
    lines = err.strip().splitlines()
    foreseen = "Traceback" not in err and "unexpected" not in err
    return process.returncode if foreseen else -1, lines[-1] if lines else ""


@dataclass(frozen=True)
class Setting:
    """A job, what its output folder holds before and after, and how long it takes."""

    job: Job
    old: str
    new: str
    seconds: float
    rng: random.Random

    def held(self) -> str:
        """Say what the output folder holds."""
        return state(self.job, self.old, self.new)

    def told(self, process: subprocess.Popen[str], fine: Collection[int] = (0, 1, 2)) -> str:
        """Wait for a process; say what the output folder holds, unless it failed unforeseen."""
        status, line = finished(process)
        return self.held() if status in fine else f"status {status}: {line}"

    def moment_s(self) -> float:
        """Choose a moment of the job."""
        return self.rng.uniform(0, 1.05 * self.seconds)


Observed = tuple[list[str], dict[str, Any]]  # what the folder held after each fault; more columns


def killed(at: Setting, times: int) -> Observed:
    """Kill it and all that it started."""
    seen = []
    for _ in range(times):
        at.job.reset()
        process = at.job.start()
        try:
            process.communicate(timeout=at.moment_s())
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seen.append(at.held())
    return seen, {"seconds": at.seconds}


def no_space(at: Setting, times: int) -> Observed:
    """Let no file grow beyond a size, as on a disk that is full."""
    return limited(at, times, resource.RLIMIT_FSIZE, (0, 7)), {}


def no_memory(at: Setting, times: int) -> Observed:
    """Let it, and what it starts, have few gigabytes of addresses."""
    return limited(at, times, resource.RLIMIT_AS, (8.95, 9.4)), {}


def limited(at: Setting, times: int, kind: int, digits: tuple[float, float]) -> list[str]:
    """Limit a resource to ten to the power of a random number."""
    seen = []
    for _ in range(times):
        at.job.reset()
        most = int(10 ** at.rng.uniform(*digits))
        seen.append(at.told(at.job.start(partial(resource.setrlimit, kind, (most, most)))))
    return seen


def read_only(at: Setting, times: int) -> Observed:
    """Let the output folder, and the caches, be on what cannot be written."""
    seen = []
    for folder in (at.job.out, at.job.cache):
        at.job.reset()
        folder.mkdir(exist_ok=True)
        mount = ("mount", "--bind", "-o", "ro", str(folder), str(folder))
        if subprocess.run(mount, check=False).returncode:
            raise SystemExit("A read-only folder needs the rights to mount one.")
        try:
            seen.append(at.told(at.job.start()))
        finally:
            subprocess.run(("umount", str(folder)), check=True)
    return seen, {}


def interrupted(at: Setting, times: int) -> Observed:
    """Press Ctrl-C once it has begun."""
    seen, longest_s = [], 0.0
    for _ in range(times):
        at.job.reset()
        process = at.job.start()
        try:
            process.communicate(timeout=BEGUN_S + at.moment_s())
        except subprocess.TimeoutExpired:
            start = time.perf_counter()
            os.killpg(process.pid, signal.SIGINT)
            # By the signal itself where all was done and Python was ending.
            seen.append(at.told(process, (0, 130, -signal.SIGINT)))
            longest_s = max(longest_s, time.perf_counter() - start)
        else:
            seen.append(at.held())
    late = [f"{longest_s:.1f} s until it ended"] if longest_s > CTRL_C_S else []
    return seen + late, {"longest_s": longest_s}


def two_at_once(at: Setting, times: int) -> Observed:
    """Run it twice, in one folder and on one cache."""
    seen = []
    for _ in range(times):
        at.job.reset()
        pair = [at.job.start() for _ in range(2)]
        seen += [at.told(process, (0, 2)) for process in pair]
    return seen, {}


def damaged(at: Setting, times: int) -> Observed:
    """Turn bytes of every file of the caches over, and cut some short."""
    at.job.reset()
    finished(at.job.start())
    for path in sorted(p for p in at.job.cache.rglob("*") if p.is_file()):
        content = bytearray(path.read_bytes())
        for _ in range(8):
            if content:
                content[at.rng.randrange(len(content))] ^= 255
        path.write_bytes(content[: at.rng.choice((len(content), len(content) // 2))])
    at.job.again()
    return [at.told(at.job.start(), (0,))], {}


def worker_killed(at: Setting, times: int) -> Observed:
    """Kill one of the processes that solve layers, as for lack of memory."""
    seen, victims = [], 0
    for _ in range(times):
        at.job.reset()
        process, found = at.job.start(), False
        while process.poll() is None and not found:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
                workers = [c for c in children if "popen_loky" in " ".join(c.cmdline())]
                if workers:
                    time.sleep(at.rng.uniform(0, 3))
                    at.rng.choice(workers).kill()
                    found = True
            time.sleep(0.05)
        victims += found
        seen.append(at.told(process))
    return seen, {"victims": victims}


# Faults, and how often each of them strikes for one kill.
KINDS: dict[str, tuple[Callable[[Setting, int], Observed], float]] = {
    "killed": (killed, 1),
    "Ctrl-C": (interrupted, 0.2),
    "no space for a file": (no_space, 0.2),
    "too little memory": (no_memory, 0.2),
    "a folder read-only": (read_only, 0.1),
    "two at once": (two_at_once, 0.06),
    "every cache entry damaged": (damaged, 0.02),
}


def faults(job: Job, options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Give a row for each kind of fault that is not ``done``."""
    kinds = {"a worker killed": (worker_killed, 0.1)} if job.workers else KINDS
    todo = {f"{job.name}, {kind}": how for kind, how in kinds.items()}
    if todo.keys() <= done:
        return
    old = digest(job.before)
    job.reset()
    start = time.perf_counter()
    status, line = finished(job.start())
    if status:
        raise SystemExit(f"{job.name} fails without a fault: {line}")
    seconds, new = time.perf_counter() - start, digest(job.out)
    for name, (strike, share) in todo.items():
        if name in done:
            continue
        at = Setting(job, old, new, seconds, random.Random(f"{options.seed} {name}"))
        seen, more = strike(at, max(round(share * options.kills), 1))
        wrong = [text for text in seen if text not in ("old", "new")]
        for text in wrong:
            print(f"{name}: {text}", flush=True)
        job.again()
        goes_on = finished(job.start())[0] == 0 and digest(job.out) == new
        yield {
            "name": name,
            "times": len(seen),
            "old": seen.count("old"),
            "new": seen.count("new"),
            "wrong": len(wrong),
            "goes_on": goes_on,
            **more,
            "target": "old or new, and goes on",
            "met": not wrong and goes_on,
        }


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Prepare old results, and let faults strike."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / "train.npz", x=images)
        convert = ["convert", "sample_models.paper_cifar10:build", "--checkpoint", str(SAMPLE)]
        convert += ["--calib", str(CALIB), "--quiet", "-o"]
        by_hand = ["--form", "separable", "--rank", "0.5", "--keep", "linear", "--samples", "64"]
        before, trained, out = folder / "before", folder / "trained", folder / "out"
        for made, more in ((before, ["--form", "channel", "--keep", "linear"]), (trained, by_hand)):
            command = [sys.executable, "-m", "converter", *convert, str(made), *more]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times = str(folder / "latency.json")
        command = [sys.executable, "-m", "converter", "measure", str(before / "original.onnx")]
        subprocess.run([*command, "-o", times], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        cache = folder / "cache"
        tune = ("finetune", str(out), "--train", str(folder / "train.npz"), "--epochs", str(EPOCHS))
        search = ("--max-macs", "0.5", "--latency", times)
        for job in (
            Job("convert", (*convert, str(out), *by_hand), before, out, cache),
            Job("search", (*convert, str(out), *search), before, out, cache, workers=True),
            Job("finetune", (*tune, "--resume", "--quiet"), trained, out, cache),
        ):
            if job.name in options.only:
                yield from faults(job, options, done)
        left = sorted(p.name for p in folder.iterdir() if p.name.startswith("."))
        print("left behind:", left or "nothing", flush=True)


def main() -> int:
    """Let faults strike, print what went wrong, and write ``scripts/results/faults.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS)
    found = gather("faults", rows, parser.parse_args())
    print(table("faults"))
    return int(not all(row["met"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
