"""The paper's own experiment: a trained network flattened, then fine-tuned for a few epochs.

The sample network on CIFAR-10 (``scripts/fetch_cifar10.py``); scored on the whole test set, timed
in onnxruntime at batch 1 on one thread and on all. First the headline, forms and ranks chosen by
measured time, with labels and without; then the paper's forms at given ranks. Trainings resume
where they were interrupted; rows are written as they come, and ``--resume`` keeps those there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_results import ROOT, gather, resumable

sys.path.insert(0, str(ROOT))

import converter

EPOCHS, SPEEDUP, PARAMS_RATIO, POINTS, LABELS_POINTS = 10, 10.0, 10.0, 0.5, 0.3
HEADLINE = f"--target-speedup {SPEEDUP:g}, {EPOCHS} epochs"
RANKS = ("conv1=32", "conv2=64", "conv3=128")
FORMS: dict[str, dict[str, Any]] = {
    "flattened, ranks 32/64/128": {"form": ("flattened",), "rank": RANKS},
    "separable, ranks 32/64/128": {"form": ("separable",), "rank": RANKS},
    "lvh, one stage": {"form": ("lvh",)},
}


def convert(options: argparse.Namespace, **how: Any) -> dict[str, Any]:
    """Convert the sample network, train it, and take a row from its report."""
    start = time.perf_counter()
    config = converter.ConvertConfig(
        checkpoint=ROOT / "sample_models" / "paper_cifar10.safetensors",
        calib=str(options.data / "train.npz"), samples=2048,
        train=str(options.data / "train.npz"), eval=str(options.data / "test.npz"),
        precision="bfloat16", resume=bool(how.get("finetune")), **how,
    )  # fmt: skip
    result = converter.convert("sample_models.paper_cifar10:build", config=config)
    report = result.report.to_dict()
    before, after = report["original"], report["converted"]
    every = {name: network for name, network in (("a", result.original), ("b", result.converted))}
    all_threads = converter.delivery.compare.compare_models(every, threads=os.cpu_count() or 1)
    return {
        "accuracy": after["accuracy"],
        "drop_points": report["drop_points"],
        "conv_params_ratio": conv_params(result.original) / conv_params(result.converted),
        "macs_ratio": before["macs"] / after["macs"],
        "speedup": report["speedup"]["median"],
        "speedup_all_threads": all_threads.networks[1].speedup.median,
        "minutes": (time.perf_counter() - start) / 60,
    }


def conv_params(network: Any) -> int:
    """Count the weights of a network's convolutions."""
    names = {str(node.inputs[1].name) for node in network.graph if node.op_type == "Conv"}
    return sum(network.graph.initializers[name].const_value.size for name in names)


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Measure every row that is not done yet."""
    if HEADLINE not in done:
        row = convert(options, target_speedup=SPEEDUP, finetune=EPOCHS)
        met = (
            row["speedup"] >= SPEEDUP
            and row["conv_params_ratio"] >= PARAMS_RATIO
            and row["drop_points"] <= POINTS
        )
        target = f"{SPEEDUP:g}x, {PARAMS_RATIO:g}x fewer, {POINTS:g} points"
        yield {"name": HEADLINE, **row, "target": target, "met": met}
    name = f"{HEADLINE}, no labels"
    if name not in done and not options.headline:
        row = convert(options, target_speedup=SPEEDUP, finetune=EPOCHS, labels=False)
        yield {"name": name, **row}
    if options.headline:
        return
    for form, how in FORMS.items():
        for epochs in (0, 3):
            name = f"{form}, {epochs} epochs"
            if name not in done:
                yield {"name": name, **convert(options, finetune=epochs, keep=("linear",), **how)}


def main() -> int:
    """Measure, print, and write ``scripts/results/paper.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10")
    parser.add_argument("--headline", action="store_true", help="the first row only")
    gather("paper", rows, parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
