"""How long conversions take, stage by stage: from empty caches, and again from full ones.

Whole commands in processes of their own, imports included. With ``--before``, each is run by
another checkout, too, from empty caches, just before. ``stages`` are those of the report:
seconds, and cores that the process used.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converter.graph import network as onnx_network
from converter.models.export import export
from scripts.benchmarks.memory import peak_memory
from scripts.benchmarks.models import CALIB, EVAL, SAMPLE, ZOO, cifar_resnet, noise
from scripts.benchmarks.results import ROOT, Row
from scripts.benchmarks.run import flags, flatconv
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target
from scripts.benchmarks.trained import FIT_SEED, NETWORKS

FOLDER = ROOT / "runs" / "stages"
IMAGES = 64
DETECTOR, DETECTOR_IMAGES = "text_boxes", 96
WARM_SHARE = 0.25  # of the time from empty caches
WARM = ", again"


@dataclass(frozen=True)
class Conversion:
    """One command.

    Attributes:
        name: Name of its row.
        most_s: Most seconds from empty caches.
        command: Settings -> the network, and the options by their flat names.
    """

    name: str
    most_s: float
    command: Callable[[Settings], tuple[object, dict[str, Any]]]


def demo(settings: Settings) -> tuple[object, dict[str, Any]]:
    """Give the command of scripts/demo.sh."""
    return SAMPLE.model, SAMPLE.options | {"calib": CALIB, "eval": EVAL, "max_drop": 0.01}


def resnet(depth: int, values: dict[str, Any], settings: Settings) -> tuple[object, dict[str, Any]]:
    """Give a CIFAR-10 ResNet, 2,048 sample images and the test set."""
    network = cifar_resnet(depth, settings)
    return network.model, network.on(settings) | values


def random_weights(
    name: str, values: dict[str, Any], settings: Settings
) -> tuple[object, dict[str, Any]]:
    """Export an architecture with random weights, and write random inputs."""
    architecture = ZOO[name]
    path, inputs = FOLDER / f"{name}.onnx", FOLDER / f"{name}.npz"
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not inputs.exists():
        example = noise(1, *architecture.shape[1:])
        exported = export(architecture.build(), {"x": example}, {})
        onnx_network.save(exported, path)
        np.savez(inputs, x=noise(IMAGES, *architecture.shape[1:]))
    return path, {"calib": inputs, **values}


def detector(settings: Settings) -> tuple[object, dict[str, Any]]:
    """Give a detector that others trained, and rendered images."""
    network = NETWORKS[DETECTOR]
    path = FOLDER / f"{DETECTOR}-{DETECTOR_IMAGES}.npz"
    calib = network.write(path, settings.networks, DETECTOR_IMAGES, False, FIT_SEED)
    options = {"calib": calib, "task": network.task, "max_drop": 0.01}
    return network.path(settings.networks), options


CONVERSIONS = [
    Conversion("demo", 30, demo),
    Conversion("ResNet-20, --max-drop 0.005", 50, partial(resnet, 20, {"max_drop": 0.005})),
    Conversion("ResNet-56, --max-macs 0.34", 200, partial(resnet, 56, {"max_macs": 0.34})),
    Conversion("ddddocr, finds text (YOLOX), --max-drop 0.01", 100, detector),
    Conversion(
        "ResNet-18, --max-error 0.2", 50, partial(random_weights, "ResNet-18", {"max_error": 0.2})
    ),
    Conversion(
        "VGG-16, --target-speedup 1.5",
        100,
        partial(random_weights, "VGG-16", {"target_speedup": 1.5}),
    ),
    Conversion(
        "FCN-8s (ResNet-D-50b), --target-speedup 1.5",
        200,
        partial(random_weights, "FCN-8s (ResNet-D-50b)", {"target_speedup": 1.5}),
    ),
    Conversion(
        "MobileNet, --max-error 0.1", 60, partial(random_weights, "MobileNet", {"max_error": 0.1})
    ),
]


def measure(conversion: Conversion, settings: Settings) -> list[Figures]:
    """Run a conversion by the checkout before, from empty caches, and again from full ones."""
    model, values = conversion.command(settings)
    figures = {}
    if settings.before is not None:
        before = timed(model, values, "before", settings.before)
        figures = {f"before_{name}": before[name] for name in ("whole_s", "speedup", "peak_gib")}
    cold = timed(model, values, "cold")
    warm = timed(model, values, "cold", fresh=False)
    share = {"share_of_cold": warm["whole_s"] / cold["whole_s"]}
    return [
        {"name": conversion.name, **figures, **cold},
        {"name": conversion.name + WARM, **warm, **share},
    ]


def timed(
    model: object, values: dict[str, Any], kind: str, root: Path = ROOT, fresh: bool = True
) -> Figures:
    """Run one command in a checkout; with ``fresh``, from empty caches."""
    cache, out = FOLDER / f"cache-{kind}", FOLDER / f"out-{kind}"
    if fresh:
        shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    command = ("convert", model, "-o", out, "--quiet", *flags(**values))
    with peak_memory(own=False) as memory:
        flatconv(*command, environment={"FLATCONV_CACHE": str(cache)}, root=root)
    report = json.loads((out / "report.json").read_text())
    return {
        "whole_s": time.perf_counter() - start,
        "stages": report.get("stages"),
        "speedup": report["speedup"]["median"],
        "drop_points": report.get("drop_points"),
        "rel_output_error": report["converted"].get("rel_output_error"),
        "reason": report["reason"],
        **memory,
    }


def case(conversion: Conversion) -> Case:
    """Declare a conversion."""
    return Case(
        conversion.name,
        partial(measure, conversion),
        Target(f"{conversion.most_s:g} s", lambda row: row["whole_s"] <= conversion.most_s),
        rows=(conversion.name, conversion.name + WARM),
    )


def summarize(rows: list[Row]) -> list[Row]:
    """Judge the rows of full caches."""
    text = f"{WARM_SHARE:.0%} of the time from empty caches"
    return [
        row | {"target": text, "met": row["share_of_cold"] <= WARM_SHARE}
        if "share_of_cold" in row
        else row
        for row in rows
    ]


SUITE = Suite(
    "stages",
    [case(conversion) for conversion in CONVERSIONS],
    summarize=summarize,
    about="how long conversions take, stage by stage, from empty caches and from full ones",
)
