"""The README's figures: the sample network in several forms, and a check of exactness.

Scores on the whole CIFAR-10 test set (``scripts/fetch_cifar10.py``) beside the 2,000 embedded
images. Timing: batch 1, one thread, onnxruntime; original and converted race in one process.
Rows are written as they come; an interrupted run goes on with ``--resume``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bench_results import ROOT, earlier_rows, table, write

sys.path.insert(0, str(ROOT))

import converter

DEMO = "--max-drop 0.01 (scripts/demo.sh)"
EXACT = "ResNet-20, tucker at full rank"
SAMPLE = "sample_models.paper_cifar10:build"
EMBEDDED = ROOT / "sample_models"
RESNET_IMAGES = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}


def convert(model: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Convert into ``folder`` and give the report."""
    result = converter.convert(model, config=converter.ConvertConfig(**options))
    result.save(folder)
    return result.report.to_dict()


def figures(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """Take a row from a report; both latencies are those of its own race."""
    before, after = report["original"], report["converted"]
    return {
        "name": name,
        "params_ratio": before["params"] / after["params"],
        "macs_ratio": before["macs"] / after["macs"],
        "original_latency_ms": before["latency_ms"]["median"],
        "latency_ms": after["latency_ms"]["median"],
        "speedup": report["speedup"]["median"],
        "speedup_low": report["speedup"]["low"],
        "speedup_high": report["speedup"]["high"],
        "accuracy": after["accuracy"],
        "drop_points": report["drop_points"],
    }


def sample_rows(
    data: Path, runs: Path, tune: bool, done: Collection[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Convert the sample network in each way that the README tells of, but for those ``done``.

    Yields:
        Row and report, as each is measured.
    """
    chosen: dict[str, dict[str, Any]] = {
        DEMO: {"max_drop": 0.01},
        "spatial, ranks -/96/112": {
            "form": ("spatial",),
            "rank": ("conv2=96", "conv3=112"),
            "keep": ("conv1",),
        },
        "flattened, ranks 32/64/128": {
            "form": ("flattened",),
            "rank": ("conv1=32", "conv2=64", "conv3=128"),
        },
        "flattened, R = O": {"form": ("flattened",), "rank": ("1.0",)},
        "lvh": {"form": ("lvh",)},
    }
    tuned = {"finetune": 3, "train": str(data / "train.npz")}
    for name in ("flattened, ranks 32/64/128", "lvh") if tune else ():
        chosen[f"{name}, 3 epochs of fine-tuning"] = chosen[name] | tuned
    for number, (name, options) in enumerate(chosen.items()):
        if name in done:
            continue
        folder = runs / f"sample_{number}"
        report = convert(
            SAMPLE,
            folder,
            checkpoint=EMBEDDED / "paper_cifar10.safetensors",
            calib=str(EMBEDDED / "cifar10_calib.npz"),
            eval=str(data / "test.npz"),
            **options,
        )
        few = converter.compare(
            folder / "original.onnx",
            folder / "model.onnx",
            data=str(EMBEDDED / "cifar10_eval.npz"),
        ).networks[1]
        if number == 0 and "original" not in done:
            accuracy = report["original"]["accuracy"]
            original = figures("original", report | {"converted": report["original"]})
            original |= {"speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0}
            target = {"target": "accuracy 0.87", "met": accuracy >= 0.87}
            yield original | {"drop_points": 0.0, "drop_points_of_2000": 0.0} | target, report
        row = figures(name, report)
        row["drop_points_of_2000"] = few.drop_points.median if few.drop_points else None
        if name == DEMO:
            row["target"] = "3x, 1 point of 2,000 images"
            row["met"] = row["speedup"] >= 3 and row["drop_points_of_2000"] <= 1.0
        yield row, report


def exactness_rows(
    checkpoint: Path | None, data: Path, runs: Path, done: Collection[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Convert ResNet-20 by Tucker at full rank, which must change nothing.

    Yields:
        Row and report; nothing without a checkpoint or where it is ``done``.
    """
    if checkpoint is None or EXACT in done:
        return
    report = convert(
        "sample_models.resnet_cifar:resnet20",
        runs / "resnet20_exact",
        checkpoint=checkpoint,
        input_shape=("1,3,32,32",),
        eval=str(data / "test.npz"),
        form=("tucker",),
        rank=("1.0",),
        **RESNET_IMAGES,
    )
    row = figures(EXACT, report)
    row["target"] = "accuracy 0.9173 within 0.0002"
    row["met"] = abs(row["accuracy"] - 0.9173) <= 0.0002
    yield row, report


def main() -> int:
    """Measure, write ``scripts/results/numbers.json``, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10")
    parser.add_argument("--resnet20", type=Path, help="resnet20-12fca82f.th, for its row")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench_numbers")
    parser.add_argument("--tuned", action="store_true", help="also rows with fine-tuning (long)")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows measured at this commit"
    )
    options = parser.parse_args()
    rows = earlier_rows("numbers") if options.resume else []
    done = {row["name"] for row in rows}
    for row, report in itertools.chain(
        sample_rows(options.data, options.runs, options.tuned, done),
        exactness_rows(options.resnet20, options.data, options.runs, done),
    ):
        rows.append(row)
        write("numbers", report, rows)
        print(row, flush=True)
    print(table("numbers"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
