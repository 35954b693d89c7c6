"""One training in one process, killed at random and resumed, and in two processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from scripts.benchmarks.models import SAMPLE
from scripts.benchmarks.results import ROOT
from scripts.benchmarks.run import convert
from scripts.benchmarks.suite import Case, Figures, Settings

IMAGES, EPOCHS = 4000, 3
KILLS, KILL_AFTER_S = 4, (15.0, 40.0)
PARALLEL = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
WAYS = ("as is", "killed", "two processes")


def finetune(out: Path, train: Path, way: str, rng: random.Random) -> int:
    """Train a folder by the command line, and start again after each kill.

    Returns:
        How often it was killed.

    Raises:
        RuntimeError: When the command fails.
    """
    launch = PARALLEL if way == "two processes" else []
    command = [sys.executable, *launch, "-m", "converter", "finetune", str(out)]
    command += ["--train", str(train), "--epochs", str(EPOCHS), "--resume", "--quiet"]
    environment = os.environ | {"FLATCONV_CACHE": str(out.with_name(f"{out.name}_cache"))}
    kills = 0
    while True:
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        timeout_s = rng.uniform(*KILL_AFTER_S) if way == "killed" and kills < KILLS else None
        try:
            if process.wait(timeout_s):
                raise RuntimeError(f"{way}: status {process.returncode}")
            return kills
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1


def measure(settings: Settings) -> list[Figures]:
    """Train the same folder in three ways, and compare the weights with the first."""
    rows: list[Figures] = []
    weights, rng = {}, random.Random(settings.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder, train = Path(scratch), settings.data / "train.npz"
        choices = {"form": ("flattened",), "rank": ("conv1=32", "conv2=64", "conv3=128")}
        values = SAMPLE.on(settings) | {"train": str(train), "precision": "bfloat16", **choices}
        convert(SAMPLE.model, **values, keep=("linear",)).save(folder / "start")
        with np.load(train) as data:
            np.savez(folder / "part.npz", x=data["x"][:IMAGES], y=data["y"][:IMAGES])
        for way, name in zip(WAYS, NAMES):
            out = folder / way.replace(" ", "_")
            shutil.copytree(folder / "start", out)
            start = time.perf_counter()
            kills = finetune(out, folder / "part.npz", way, rng)
            seconds = time.perf_counter() - start
            report = json.loads((out / "report.json").read_text())
            weights[way] = load_file(out / "model.safetensors")
            differences = [
                np.abs(tensor - weights[WAYS[0]][key]).max(initial=0)
                for key, tensor in weights[way].items()
            ]
            rows.append(
                {
                    "name": name,
                    "accuracy": report["converted"]["accuracy"],
                    "drop_points": report["drop_points"],
                    "kills": kills,
                    "farthest_weight": float(max(differences)),
                    "minutes": seconds / 60,
                }
            )
    return rows


NAMES = tuple(f"{IMAGES} images, {EPOCHS} epochs, {way}" for way in WAYS)
PROCESSES_CASE = Case(f"{IMAGES} images, {EPOCHS} epochs", measure, rows=NAMES)
