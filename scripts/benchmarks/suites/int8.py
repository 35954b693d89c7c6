"""int8 alone, and int8 of a converted network: one race of four networks, batch 1, one thread.

The sample network on CIFAR-10, its forms and ranks chosen by their times in int8 for a little more
than three times the speed of int8 alone, fine-tuned with the rounding of int8, then quantized;
scored on the whole test set. ResNet-18 with random weights and random images: time alone.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from scripts.benchmarks.models import SAMPLE, ZOO, noise
from scripts.benchmarks.results import earlier_rows
from scripts.benchmarks.rows import from_int8
from scripts.benchmarks.run import report_of
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

SAMPLE_GAIN, POINTS, EPOCHS = 3.0, 0.5, 20
REQUESTED_GAIN = 3.05  # races at different times differ by one or two percent
RESNET_SPEEDUP, RESNET_GAIN, IMAGES = 6.5, 1.8, 32
KEPT: dict[str, Any] = {"form": ("dense",), "keep": ("*",)}  # no layer is converted
RESNET: dict[str, dict[str, Any]] = {
    "ResNet-18, separable, R = O": {"form": ("separable",), "rank": ("1.0",), "keep": ("*init*",)},
    f"ResNet-18, --target-speedup {RESNET_SPEEDUP:g}": {"target_speedup": RESNET_SPEEDUP},
}


def requested_speedup(settings: Settings) -> float:
    """Give the speedup over the original that is ``REQUESTED_GAIN`` times that of int8 alone.

    It is the one of an earlier row on this CPU, if rows are kept, and measured otherwise.
    """
    if settings.resume:
        for row in earlier_rows("int8", settings.out, settings.older):
            if "target_speedup" in row and "cpu" not in row:
                return float(row["target_speedup"])
    report = report_of(SAMPLE.model, **SAMPLE.on(settings), int8=True, **KEPT)
    alone: float = report["int8"]["original"]["speedup"]["median"]
    return round(REQUESTED_GAIN * alone, 2)


def sample(epochs: int, settings: Settings) -> Figures:
    """Convert the sample network for its times in int8, and train it."""
    speedup, start = requested_speedup(settings), time.perf_counter()
    values = SAMPLE.on(settings) | {"precision": "bfloat16", "finetune": epochs}
    if epochs:
        values |= {"train": str(settings.data / "train.npz"), "resume": settings.resume}
    report = report_of(SAMPLE.model, **values, int8=True, target_speedup=speedup)
    minutes = (time.perf_counter() - start) / 60
    return from_int8(report) | {"target_speedup": speedup, "minutes": minutes}


def resnet(values: dict[str, Any], settings: Settings) -> Figures:
    """Convert ResNet-18 with random weights."""
    network = ZOO["ResNet-18"]
    calib = noise(IMAGES, *network.shape[1:])
    return from_int8(report_of(network.build(), calib=calib, int8=True, **values))


SUITE = Suite(
    "int8",
    [
        *(
            Case(
                name,
                partial(resnet, values),
                Target(f"gain {RESNET_GAIN:g}", lambda row: row["gain"] >= RESNET_GAIN),
            )
            for name, values in RESNET.items()
        ),
        Case("sample network, --int8, 0 epochs", partial(sample, 0)),
        Case(
            f"sample network, --int8, {EPOCHS} epochs",
            partial(sample, EPOCHS),
            Target(
                f"gain {SAMPLE_GAIN:g}, {POINTS:g} points between",
                lambda row: row["gain"] >= SAMPLE_GAIN and row["points_between"] <= POINTS,
            ),
        ),
    ],
    about="int8 alone against int8 of a converted network",
)
