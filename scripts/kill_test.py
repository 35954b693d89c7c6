"""What goes wrong while flatconv works: kills, full disks, damaged caches, two runs at once.

The sample network is converted, and a converted folder trained, again and again, each time with a
fault at a random but seeded moment. After every fault the output folder must hold the complete
old or the complete new result, and at the end the command must go through and give what it gives
without faults.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench_results import ROOT, write

sys.path.insert(0, str(ROOT))

import numpy as np
import psutil

import converter
from converter.delivery.compare import versions
from converter.errors import ConverterError
from converter.networks.runtime import cpu_model

KILLS, LONGEST_S, CTRL_C_S = 50, 600.0, 2.0
IMAGES, EPOCHS = 1000, 3
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
    """

    name: str
    command: tuple[str, ...]
    before: Path
    out: Path
    cache: Path

    def reset(self) -> None:
        """Put the old result back, and forget what was solved and trained."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.again()

    def again(self) -> None:
        """Put the old result back."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.before, self.out)

    def start(self, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Start it, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "converter", *self.command], cwd=ROOT, text=True,
            env=os.environ | {"FLATCONV_CACHE": str(self.cache)}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=prepare,
        )  # fmt: skip


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


def limited(most: int) -> None:
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def killed(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def faults(job: Job, kills: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Give a row for each kind of fault."""
    old = digest(job.before)
    job.reset()
    start = time.perf_counter()
    status, line = finished(job.start())
    if status:
        raise SystemExit(f"{job.name} fails without a fault: {line}")
    seconds, new = time.perf_counter() - start, digest(job.out)

    def through() -> bool:
        job.again()
        return finished(job.start())[0] == 0 and digest(job.out) == new

    def row(name: str, seen: list[str], **more: Any) -> dict[str, Any]:
        wrong = [text for text in seen if text not in ("old", "new")]
        for text in wrong:
            print(f"{job.name}, {name}: {text}", flush=True)
        went_on = through()
        return {
            "name": f"{job.name}, {name}", "times": len(seen), "old": seen.count("old"),
            "new": seen.count("new"), "wrong": len(wrong), "goes_on": went_on, **more,
            "target": "old or new, and goes on", "met": not wrong and went_on,
        }  # fmt: skip

    seen = []
    for _ in range(kills):
        job.reset()
        process = job.start()
        try:
            process.communicate(timeout=rng.uniform(0, 1.05 * seconds))
        except subprocess.TimeoutExpired:
            killed(process)
        seen.append(state(job, old, new))
    yield row("killed", seen, seconds=seconds)

    seen = []
    for _ in range(max(kills // 5, 1)):
        job.reset()
        process = job.start(partial(limited, int(10 ** rng.uniform(0, 7))))
        status, line = finished(process)
        told = state(job, old, new)
        seen.append(told if status in (0, 1, 2) else f"status {status}: {line}")
    yield row("no space for a file", seen)

    seen, longest = [], 0.0
    for _ in range(max(kills // 5, 1)):
        job.reset()
        process = job.start()
        try:
            process.communicate(timeout=rng.uniform(2.0, seconds))
        except subprocess.TimeoutExpired:
            begun = time.perf_counter()
            os.killpg(process.pid, signal.SIGINT)
            status, line = finished(process)
            longest = max(longest, time.perf_counter() - begun)
            if status not in (0, 130):
                seen.append(f"status {status}: {line}")
        seen.append(state(job, old, new))
    found = row("Ctrl-C", seen, longest_s=longest)
    yield found | {"target": f"{CTRL_C_S:g} s", "met": found["met"] and longest <= CTRL_C_S}

    seen = []
    for _ in range(max(kills // 10, 1)):
        job.reset()
        processes = [job.start() for _ in range(2)]
        lines = [finished(process) for process in processes]
        seen.append(state(job, old, new))
        seen += [f"status {status}: {line}" for status, line in lines if status not in (0, 2)]
    yield row("two at once", seen)

    seen = []
    job.reset()
    finished(job.start())
    for path in sorted(p for p in job.cache.rglob("*") if p.is_file()):
        content = bytearray(path.read_bytes())
        for _ in range(8):
            if content:
                content[rng.randrange(len(content))] ^= 255
        path.write_bytes(content[: rng.choice((len(content), len(content) // 2))])
    job.again()
    status, line = finished(job.start())
    seen.append(state(job, old, new) if status == 0 else f"status {status}: {line}")
    yield row("every cache entry damaged", seen)

    seen, victims = [], 0
    for _ in range(max(kills // 10, 1)):
        job.reset()
        process, killed_one = job.start(), False
        while process.poll() is None and not killed_one:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
                workers = [c for c in children if "popen_loky" in " ".join(c.cmdline())]
                if workers:
                    rng.choice(workers).kill()  # as the kernel does to what takes too much memory
                    killed_one = True
            time.sleep(0.05)
        victims += killed_one
        status, line = finished(process)
        told = state(job, old, new)
        seen.append(told if status in (0, 1, 2) else f"status {status}: {line}")
    if victims:
        yield row("a worker killed", seen, victims=victims)


def main() -> int:
    """Run all faults, print what went wrong, and write ``scripts/results/faults.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, rows = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / "train.npz", x=images)
        convert = ["convert", "sample_models.paper_cifar10:build", "--checkpoint", str(SAMPLE)]
        convert += ["--calib", str(CALIB), "--quiet", "-o"]
        by_hand = ["--form", "separable", "--rank", "0.5", "--keep", "linear"]
        before, trained = folder / "before", folder / "trained"
        for out, more in ((before, ["--form", "channel", "--keep", "linear"]), (trained, by_hand)):
            command = [sys.executable, "-m", "converter", *convert, str(out), *more]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        out, cache = folder / "out", folder / "cache"
        tune = ("finetune", str(out), "--train", str(folder / "train.npz"), "--epochs", str(EPOCHS))
        jobs = (
            Job("convert", (*convert, str(out), *by_hand), before, out, cache),
            Job("finetune", (*tune, "--resume", "--quiet"), trained, out, cache),
        )
        for job in jobs:
            for row in faults(job, options.kills, rng):
                print(row, flush=True)
                rows.append(row)
        left = sorted(p.name for p in folder.iterdir() if p.name.startswith("."))
    print("left behind:", left or "nothing")
    write("faults", {"cpu": cpu_model(), "threads": 1, "versions": versions()}, rows)
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
