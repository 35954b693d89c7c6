"""Networks that others trained, under budgets of half a point, one point and two points.

The networks of scripts/fetch_networks.py; sample inputs without labels. Speed and loss are
measured on fresh inputs, made of other photographs, words and voices than the sample inputs, in one
race of the original, the converted network, and onnxruntime's static int8 of all nodes and of
convolutions alone. ``lost_points`` is measured without flatconv's code; ``told_fresh_points`` is
what ``flatconv compare`` says of the same inputs, and ``told_points`` what the conversion said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.results import ROOT, commit
from scripts.benchmarks.run import compare, convert_command
from scripts.benchmarks.static_int8 import write_int8
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target
from scripts.benchmarks.trained import (
    FIT_SEED,
    FRESH_SEED,
    NETWORKS,
    Arrays,
    TrainedNetwork,
    fresh_losses,
)

BUDGETS = (0.005, 0.01, 0.02)
FOLDER = ROOT / "runs" / "real"
INT8_EXAMPLES = 128
INT8: dict[str, tuple[str, ...]] = {"int8": (), "int8_conv": ("Conv",)}
DETECTOR, DETECTOR_F1, DETECTOR_SPEEDUP = "text_boxes", 0.98, 1.4


@dataclass(frozen=True)
class Bench:
    """One network with its inputs on disk.

    Attributes:
        network: The network.
        settings: Settings.
        folder: Where inputs and networks are kept.
    """

    network: TrainedNetwork
    settings: Settings
    folder: Path

    @property
    def original(self) -> Path:
        """The network's file."""
        return self.network.path(self.settings.networks)

    def count(self, fresh: bool) -> int:
        """Give the number of sample inputs, or of fresh ones."""
        return self.settings.examples or self.network.examples[fresh]

    def inputs(self, fresh: bool) -> Path:
        """Write the sample inputs, or the fresh ones."""
        count = self.count(fresh)
        seed = self.settings.seed + (FRESH_SEED if fresh else FIT_SEED)
        path = self.folder / f"{'fresh' if fresh else 'sample'}-{count}-{seed}.npz"
        return self.network.write(path, self.settings.networks, count, fresh, seed)

    def fresh_batches(self) -> Iterator[Arrays]:
        """Make the fresh inputs again, with their labels."""
        seed = self.settings.seed + FRESH_SEED
        return self.network.batches(self.settings.networks, self.count(True), True, seed)

    def feeds(self) -> Iterator[Arrays]:
        """Give sample inputs to quantize with, one example after another."""
        with np.load(self.inputs(fresh=False)) as data:
            arrays = {name: data[name] for name in data.files}
        axes, scalars = self.network.batch_axes, self.network.scalars
        count = min(len(a) for name, a in arrays.items() if name not in {*axes, *scalars})
        for n in range(min(count, INT8_EXAMPLES)):
            yield {
                name: array if name in scalars else array.take([n], axes.get(name, 0))
                for name, array in arrays.items()
            }

    def int8(self, name: str) -> Path:
        """Quantize by onnxruntime."""
        return write_int8(self.original, self.folder / f"{name}.onnx", self.feeds(), INT8[name])


def measure(name: str, budget: float, settings: Settings) -> Figures:
    """Convert a network under a budget, and judge it on fresh inputs beside int8."""
    network = NETWORKS[name]
    bench = Bench(network, settings, FOLDER / commit() / name)
    out, start = bench.folder / f"out-{budget:g}", time.perf_counter()
    report = convert_command(
        bench.original,
        out,
        calib=bench.inputs(fresh=False),
        task=network.task,
        max_drop=budget,
        seed=settings.seed,
    )
    convert_s = time.perf_counter() - start
    paths = {"original": bench.original, "": out / "model.onnx"}
    reasons = {}
    for kind in INT8:
        try:
            paths[kind] = bench.int8(kind)
        except Exception as error:  # whatever onnxruntime raises
            reasons[f"{kind}_reason"] = (str(error) or type(error).__name__).splitlines()[-1][:200]
    raced = compare(*paths.values(), data=bench.inputs(fresh=True), task=network.task)
    losses = fresh_losses(network.measure, paths, bench.fresh_batches(), network.run)
    figures = from_report(report) | {"unit": network.measure.unit, "convert_s": convert_s}
    figures |= {"examples": bench.count(fresh=True)}
    for kind, one in list(zip(paths, raced))[1:]:
        figures |= prefixed(kind, from_race(one) | losses[kind])
    return figures | {"original_ms": raced[0]["latency_ms"]["median"]} | reasons


def from_report(report: Mapping[str, Any]) -> Figures:
    """Take what a conversion claims from its report."""
    lost = report["lost"]
    return {
        "task": report["task"],
        "verdict": report["verdict"],
        "told_points": lost["points"],
        "told_low": lost["low"],
        "told_high": lost["high"],
        "told_examples": lost["examples"],
        "warnings": report["warnings"],
        "reason": report["reason"],
        "macs_share": report["converted"]["macs"] / report["original"]["macs"],
    }


def from_race(network: Mapping[str, Any]) -> Figures:
    """Take speed and loss from a comparison."""
    speedup, told = network["speedup"], network["drop_points_interval"]
    return {
        "speedup": speedup["median"],
        "speedup_low": speedup["low"],
        "speedup_high": speedup["high"],
        "told_fresh_points": told["median"],
        "told_fresh_low": told["low"],
        "told_fresh_high": told["high"],
    }


def prefixed(prefix: str, figures: Figures) -> Figures:
    """Put a prefix before the names of figures."""
    return {f"{prefix}_{name}" if prefix else name: value for name, value in figures.items()}


def is_honest(budget: float, row: Figures) -> bool:
    """Tell whether what the conversion claimed is so on fresh inputs, within their interval."""
    return bool(row["verdict"] != "kept" or row["told_fresh_low"] <= 100 * budget)


def is_fast_detector(row: Figures) -> bool:
    """Tell whether the detector is as fast as it must be, at no worse F1 than int8."""
    slower = row["speedup"] <= row.get("int8_conv_speedup", 0)
    if row["lost_points"] > 100 * (1 - DETECTOR_F1) or row["speedup"] < DETECTOR_SPEEDUP:
        return False
    return not (slower and row["int8_conv_lost_points"] <= row["lost_points"])


def case(network: TrainedNetwork, budget: float) -> Case:
    """Declare a conversion."""
    target = Target("no claim that fresh inputs refute", partial(is_honest, budget))
    if network.name == DETECTOR and budget == 0.01:
        text = f"F1 {DETECTOR_F1:g}, {DETECTOR_SPEEDUP:g}x, no worse than int8 of convolutions"
        target = Target(text, lambda row: is_honest(budget, row) and is_fast_detector(row))
    title = f"{network.title}, --max-drop {budget:g}"
    return Case(title, partial(measure, network.name, budget), target, own_process=True)


SUITE = Suite(
    "real",
    [case(network, budget) for network in NETWORKS.values() for budget in BUDGETS],
    about="networks that others trained, judged on fresh inputs beside int8",
)
