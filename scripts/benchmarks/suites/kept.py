"""How often a budget that was "kept" is kept on fresh inputs, and how often nothing is decided.

Conversions of cheap networks under several budgets, from 64 to 4,096 sample inputs of several
kinds. The loss of each is measured again, without flatconv's code, on the whole test set of
CIFAR-10, on what is left of it where its images were sample inputs, or on 8,000 rendered inputs.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from scripts.benchmarks import task_losses
from scripts.benchmarks.models import SAMPLE, Network, cifar_resnet
from scripts.benchmarks.results import Row
from scripts.benchmarks.run import convert_command
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target
from scripts.benchmarks.task_losses import Measure
from scripts.benchmarks.trained import FRESH_SEED, NETWORKS, Arrays, Run, fresh_losses

BUDGETS, SIZES = (0.005, 0.01, 0.02), (64, 256, 1024, 4096)
RENDERED_EXAMPLES = 8000
MAX_LABELLED = 2000  # of the test set, so that 8,000 images are left
MIN_TRUE, MAX_EXCESS, MIN_DECIDED = 0.95, 0.5, 1024
BATCH = 500
IMAGES = ("training images", "test images", "training images, labelled test images")


@dataclass(frozen=True)
class Conversion:
    """One conversion.

    Attributes:
        network: ``sample network``, ``ResNet-20``, or a name of ``trained.NETWORKS``.
        kind: Kind of the sample inputs: one of ``IMAGES``, or the number of a rendered set.
        size: Number of sample inputs.
        budget: Points that may be lost, as a fraction.
    """

    network: str
    kind: str
    size: int
    budget: float

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"{self.network}, {self.size} {self.kind}, --max-drop {self.budget:g}"


@dataclass(frozen=True)
class Prepared:
    """What a conversion is called with, and what it is judged on.

    Attributes:
        model: The network, as the command line takes it.
        options: By flat name.
        measure: How the loss is measured.
        batches: Fresh inputs by name, labels as ``y``.
        run: Runs the network on a batch.
        examples: Number of fresh inputs.
    """

    model: object
    options: dict[str, Any]
    measure: Measure
    batches: Iterator[Arrays]
    run: Run
    examples: int


def cifar(conversion: Conversion, folder: Path, settings: Settings) -> Prepared:
    """Prepare a network of CIFAR-10.

    Args:
        conversion: The conversion.
        folder: Where sample inputs are written.
        settings: Settings.
    """
    network = SAMPLE if conversion.network == "sample network" else cifar_resnet(20, settings)
    rng = np.random.default_rng(settings.seed)
    images = {name: read(settings.data / f"{name}.npz") for name in ("train", "test")}
    order = {name: rng.permutation(len(y)) for name, (_, y) in images.items()}
    options, held_out = dict(network.options), order["test"]
    source = "test" if conversion.kind == IMAGES[1] else "train"
    chosen = order[source][: conversion.size]
    np.savez(folder / "sample.npz", x=images[source][0][chosen])
    options |= {"calib": folder / "sample.npz", "samples": conversion.size, "task": "classify"}
    if source == "test":
        held_out = held_out[conversion.size :]
    if conversion.kind == IMAGES[2]:
        count = min(conversion.size, MAX_LABELLED)
        x, y = (array[held_out[:count]] for array in images["test"])
        np.savez(folder / "labelled.npz", x=x, y=y)
        options["eval"], held_out = folder / "labelled.npz", held_out[count:]
    held_out = held_out[: settings.examples or None]
    batches = normalised(network, *(array[held_out] for array in images["test"]))
    measure, count = task_losses.CLASSES, len(held_out)
    return Prepared(network.model, options, measure, batches, run_images, count)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images (N, H, W, C) of bytes and labels."""
    with np.load(path) as data:
        return data["x"], data["y"]


def normalised(network: Network, x: np.ndarray, y: np.ndarray) -> Iterator[Arrays]:
    """Give batches of images as a network of CIFAR-10 takes them."""
    mean, std = (
        np.array(network.options.get(name, default).split(","), np.float32)
        for name, default in (("mean", "0,0,0"), ("std", "1,1,1"))
    )
    for start in range(0, len(x), BATCH):
        images = (x[start : start + BATCH].astype(np.float32) / 255 - mean) / std
        yield {
            "x": np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
            "y": y[start : start + BATCH],
        }


def rendered(conversion: Conversion, folder: Path, settings: Settings) -> Prepared:
    """Prepare a network that others trained, with rendered inputs."""
    network = NETWORKS[conversion.network]
    seed = settings.seed + 100 + int(conversion.kind.removeprefix("rendered inputs, set "))
    sample = folder / "sample.npz"
    network.write(sample, settings.networks, conversion.size, False, seed)
    options = {"calib": sample, "samples": conversion.size, "task": network.task}
    count = settings.examples or RENDERED_EXAMPLES
    seed = settings.seed + FRESH_SEED
    batches = network.batches(settings.networks, count, True, seed)
    model = network.path(settings.networks)
    return Prepared(model, options, network.measure, batches, network.run, count)


def run_images(session: onnxruntime.InferenceSession, arrays: Arrays) -> list[np.ndarray]:
    """Run a network of CIFAR-10."""
    (item,) = session.get_inputs()
    outputs: list[np.ndarray] = session.run(None, {item.name: arrays["x"]})
    return outputs


def measure(conversion: Conversion, settings: Settings) -> Figures:
    """Convert a network, and measure what it loses on fresh inputs."""
    prepare = rendered if conversion.network in NETWORKS else cifar
    with tempfile.TemporaryDirectory() as folder:
        prepared, out = prepare(conversion, Path(folder), settings), Path(folder) / "out"
        start = time.perf_counter()
        budget = {"max_drop": conversion.budget, "seed": settings.seed}
        report = convert_command(prepared.model, out, **budget, **prepared.options)
        convert_s = time.perf_counter() - start
        paths = {name: out / f"{name}.onnx" for name in ("original", "model")}
        figures = fresh_losses(prepared.measure, paths, prepared.batches, prepared.run)["model"]
    excess = max(figures["lost_points"] / (100 * conversion.budget) - 1, 0.0)
    return {
        "size": conversion.size,
        "budget_points": 100 * conversion.budget,
        "verdict": report["verdict"],
        "told_points": report["lost"]["points"],
        "told_low": report["lost"]["low"],
        "told_high": report["lost"]["high"],
        "speedup": report["speedup"]["median"],
        "convert_s": convert_s,
        "excess_share": excess,
        "examples": prepared.examples,
        **figures,
    }


def summarize(rows: list[Row]) -> list[Row]:
    """Put rows about all conversions, those of each kind and of each size, behind the rows."""
    single = [row for row in rows if "excess_share" in row or "failed" in row.get("reason", "")]
    measured = [row for row in single if "excess_share" in row]
    if not measured:
        return single
    sizes = sorted({row["size"] for row in measured})
    kinds = {c.name: f"{c.network}, {c.kind}" for c in CONVERSIONS}
    by_kind: dict[str, list[Row]] = {}
    for row in measured:
        if kind := kinds.get(row["name"]):
            by_kind.setdefault(kind, []).append(row)
    met = claims("all", measured)
    share, worst = met["share_true"], met["worst_excess_share"] or 0
    met |= {
        "target": f"{MIN_TRUE:.0%} true, none off by more than {MAX_EXCESS:.0%} of its budget",
        "met": share is not None and share >= MIN_TRUE and worst <= MAX_EXCESS,
    }
    each = (claims(kind, rows) for kind, rows in by_kind.items())
    return [*single, met, *each, *(undecided(measured, size) for size in sizes)]


def claims(name: str, rows: list[Row]) -> Row:
    """Say how many claims were true, and how far the others were off."""
    excess = np.array([row["excess_share"] for row in rows if row["verdict"] == "kept"])
    share = float((excess == 0).mean()) if len(excess) else None
    worst = float(excess.max()) if len(excess) else None
    return {
        "name": f"claims: {name}",
        "conversions": len(rows),
        "kept": len(excess),
        "share_true": share,
        "worst_excess_share": worst,
    }


def undecided(rows: list[Row], size: int) -> Row:
    """Say how often nothing was decided with so many sample inputs."""
    verdicts = [row["verdict"] for row in rows if row["size"] == size]
    share = verdicts.count("undecided") / len(verdicts)
    row = {"name": f"undecided with {size}", "conversions": len(verdicts), "share": share}
    if size < MIN_DECIDED:
        return row
    return row | {"target": "none", "met": share == 0}


def is_true(row: Figures) -> bool:
    """Tell whether a claim is true, or off by no more than it may."""
    return bool(row["verdict"] != "kept" or row["excess_share"] <= MAX_EXCESS)


CONVERSIONS = [
    Conversion(network, kind, size, budget)
    for networks, kinds, sizes, budgets in (
        (("sample network",), IMAGES, SIZES, BUDGETS),
        (("ResNet-20",), IMAGES[:2], SIZES, BUDGETS[:2]),
        (("speech_embedding",), ("rendered inputs, set 0",), SIZES, BUDGETS),
        (("orientation",), ("rendered inputs, set 0",), SIZES[:3], BUDGETS[:2]),
    )
    for network, kind, size, budget in itertools.product(networks, kinds, sizes, budgets)
]
SUITE = Suite(
    "kept",
    [
        Case(
            conversion.name,
            partial(measure, conversion),
            Target(f"off by at most {MAX_EXCESS:.0%} of the budget", is_true),
            own_process=True,
        )
        for conversion in CONVERSIONS
    ],
    summarize=summarize,
    about="how often a budget that was kept is kept on fresh inputs",
)
