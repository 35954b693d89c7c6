"""The sample network in several forms, and a check of exactness, by the command line.

Scored on the whole CIFAR-10 test set and on the 2,000 images that come with the project. Batch 1,
one thread; original and converted network are raced in one process.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from scripts.benchmarks.models import CALIB, EVAL, SAMPLE, cifar_resnet
from scripts.benchmarks.rows import from_pair, from_report
from scripts.benchmarks.run import compare, convert_command
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

DEMO = "--max-drop 0.01 (scripts/demo.sh)"
FIGURES = (
    "params_ratio macs_ratio original_latency_ms latency_ms speedup speedup_low speedup_high "
    "accuracy drop_points"
)
SAMPLE_ACCURACY, EXACT_ACCURACY, EXACT_TOLERANCE = 0.87, 0.9173, 0.0002
FLATTENED: dict[str, Any] = {"form": "flattened", "rank": ("conv1=32", "conv2=64", "conv3=128")}
LVH: dict[str, Any] = {"form": "lvh"}
CONVERSIONS: dict[str, dict[str, Any]] = {
    "spatial, ranks -/96/112": {
        "form": "spatial",
        "rank": ("conv2=96", "conv3=112"),
        "keep": "conv1",
    },
    "flattened, ranks 32/64/128": FLATTENED,
    "flattened, R = O": {"form": "flattened", "rank": "1.0"},
    "lvh": LVH,
}
TUNED = {"flattened, ranks 32/64/128": FLATTENED, "lvh": LVH}
EPOCHS = 3


def sample(values: dict[str, Any], settings: Settings) -> list[Figures]:
    """Convert the sample network; the rows of original and converted network."""
    if "finetune" in values:
        values = values | {"train": settings.data / "train.npz"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        data = {"calib": CALIB, "eval": settings.data / "test.npz"}
        report = convert_command(SAMPLE.model, folder, **SAMPLE.options, **data, **values)
        files = (folder / "original.onnx", folder / "model.onnx")
        _, on_few = compare(*files, data=EVAL)
    original = from_pair(report["original"], {**report, **report["original"]}, FIGURES)
    original |= {"speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0}
    original |= {"drop_points": 0.0, "drop_points_of_2000": 0.0}
    original |= {
        "name": "original",
        "target": f"accuracy {SAMPLE_ACCURACY:g}",
        "met": original["accuracy"] >= SAMPLE_ACCURACY,
    }
    return [original, from_report(report, FIGURES) | {"drop_points_of_2000": on_few["drop_points"]}]


def converted_sample(values: dict[str, Any], settings: Settings) -> Figures:
    """Convert the sample network."""
    return sample(values, settings)[1]


def exactness(settings: Settings) -> Figures:
    """Convert ResNet-20 by Tucker at full rank, which must change nothing."""
    network = cifar_resnet(20, settings)
    with tempfile.TemporaryDirectory() as folder:
        values = {"eval": settings.data / "test.npz", "form": "tucker", "rank": "1.0"}
        values |= network.options
        report = convert_command(network.model, Path(folder) / "out", **values)
    return from_report(report, FIGURES)


SUITE = Suite(
    "numbers",
    [
        Case(
            DEMO,
            partial(sample, {"max_drop": 0.01}),
            Target(
                "3x, 1 point of 2,000 images",
                lambda row: row["speedup"] >= 3 and row["drop_points_of_2000"] <= 1,
            ),
            rows=("original", DEMO),
        ),
        *(Case(name, partial(converted_sample, how)) for name, how in CONVERSIONS.items()),
        *(
            Case(
                f"{name}, {EPOCHS} epochs of fine-tuning",
                partial(converted_sample, how | {"finetune": EPOCHS}),
            )
            for name, how in TUNED.items()
        ),
        Case(
            "ResNet-20, tucker at full rank",
            exactness,
            Target(
                f"accuracy {EXACT_ACCURACY:g} within {EXACT_TOLERANCE:g}",
                lambda row: abs(row["accuracy"] - EXACT_ACCURACY) <= EXACT_TOLERANCE,
            ),
        ),
    ],
    about="the sample network in several forms; exactness at full rank",
)
