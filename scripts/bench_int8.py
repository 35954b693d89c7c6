"""int8 alone, and on top of a flattened network: one run of four networks, batch 1, one thread.

The sample network on CIFAR-10 (``scripts/fetch_cifar10.py``), forms and ranks chosen by their times
in int8 for a little more than three times int8 alone, fine-tuned with the rounding of int8, then
quantized; scored on the whole test set. ResNet-18 (pytorchcv, random weights, random images): time
alone, at R = O and chosen for a speedup. Rows are written as they come; ``--resume`` keeps those
there, asks for the speedup that they were asked for, and goes on with trainings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_results import ROOT, earlier_rows, gather, resumable, table

sys.path.insert(0, str(ROOT))

import numpy as np
from bench_zoo import ZOO
from converter.evaluation.verify import as_int8

import converter
from converter.evaluation.compare import compare_models
from converter.pipeline import open_source

SAMPLE_MODEL = "sample_models.paper_cifar10:build"
SAMPLE_GAIN, POINTS, EPOCHS = 3.0, 0.5, 20
ASKED_GAIN = 3.05  # a race of other minutes differs by one or two percent
RESNET_SPEEDUP, RESNET_GAIN, IMAGES = 6.5, 1.8, 32
RESNET: dict[str, dict[str, Any]] = {
    "ResNet-18, separable, R = O": {"form": ("separable",), "rank": ("1.0",), "keep": ("*init*",)},
    f"ResNet-18, --target-speedup {RESNET_SPEEDUP:g}": {"target_speedup": RESNET_SPEEDUP},
}


def row(name: str, result: converter.Result) -> dict[str, Any]:
    """Take a row from a report."""
    report = result.report.to_dict()
    int8 = report["int8"]
    alone, both = int8["original"], int8["converted"]
    found = {
        "name": name,
        "original_ms": report["original"]["latency_ms"]["median"],
        "int8_speedup": alone["speedup"]["median"],
        "flattened_speedup": report["speedup"]["median"],
        "both_speedup": both["speedup"]["median"],
        "gain": int8["gain"]["median"],
        "gain_low": int8["gain"]["low"],
        "gain_high": int8["gain"]["high"],
        "macs_share": both["macs"] / report["original"]["macs"],
    }
    if both["accuracy"] is not None:
        found |= {
            "accuracy": report["original"]["accuracy"],
            "int8_accuracy": alone["accuracy"],
            "flattened_accuracy": report["converted"]["accuracy"],
            "both_accuracy": both["accuracy"],
            "points_between": round(100 * (alone["accuracy"] - both["accuracy"]), 4),
        }
    return found


def sample_config(options: argparse.Namespace) -> converter.Options:
    """Say what the conversions of the sample network have in common."""
    return converter.Options.of(
        checkpoint=ROOT / "sample_models" / "paper_cifar10.safetensors",
        calib=str(options.data / "train.npz"),
        samples=2048,
        eval=str(options.data / "test.npz"),
        precision="bfloat16",
    )


def asked_speedup(options: argparse.Namespace) -> float:
    """Measure what speedup over the original is ``ASKED_GAIN``; rows that are kept know it."""
    kept = earlier_rows("int8", options.older) if options.resume else []
    for other in kept:
        if "target_speedup" in other and "cpu" not in other:
            return other["target_speedup"]
    config = sample_config(options)
    source = open_source(SAMPLE_MODEL, None, config)
    int8 = as_int8(source.network, source, config)
    raced = compare_models({"original": source.network, "int8": int8}, data=source.calib)
    return round(ASKED_GAIN * raced.networks[1].speedup.median, 2)


def sample(options: argparse.Namespace, epochs: int, speedup: float) -> converter.Result:
    """Convert the sample network for its times in int8, and train it."""
    config = replace(
        sample_config(options),
        int8=True,
        target_speedup=speedup,
        finetune=epochs,
        train=str(options.data / "train.npz") if epochs else None,
        resume=options.resume and epochs > 0,
    )
    return converter.convert(SAMPLE_MODEL, options=config)


def resnet(how: dict[str, Any]) -> converter.Result:
    """Convert ResNet-18 with random weights."""
    make, shape = ZOO["ResNet-18"]
    images = np.random.default_rng(0).standard_normal((IMAGES, *shape[1:])).astype(np.float32)
    config = converter.Options.of(int8=True, **how)
    return converter.convert(make().eval(), None, config, calib=images)


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Measure every row that is not done yet."""
    for name, how in RESNET.items():
        if name not in done:
            found = row(name, resnet(how))
            yield found | {"target": f"gain {RESNET_GAIN:g}", "met": found["gain"] >= RESNET_GAIN}
    tried = {f"sample network, --int8, {epochs} epochs": epochs for epochs in (0, EPOCHS)}
    missing = {
        name: epochs
        for name, epochs in tried.items()
        if name not in done and (options.tuned or not epochs)
    }
    if not missing:
        return
    speedup = asked_speedup(options)
    for name, epochs in missing.items():
        start = time.perf_counter()
        found = row(name, sample(options, epochs, speedup)) | {"target_speedup": speedup}
        found["minutes"] = (time.perf_counter() - start) / 60
        met = found["gain"] >= SAMPLE_GAIN and found["points_between"] <= POINTS
        target = f"gain {SAMPLE_GAIN:g}, {POINTS:g} points between"
        yield found | ({"target": target, "met": met} if epochs else {})


def main() -> int:
    """Measure, print, and write ``scripts/results/int8.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10")
    parser.add_argument("--tuned", action="store_true", help="also the row that trains")
    gather("int8", rows, parser.parse_args())
    print(table("int8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
