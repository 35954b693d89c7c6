"""The README's figures: the sample network in several forms, and a check of exactness.

Scores on the whole CIFAR-10 test set (``scripts/fetch_cifar10.py``) beside the 2,000 embedded
images. Timing: batch 1, one thread, onnxruntime; original and converted race in one process.
Rows are written as they come; an interrupted run goes on with ``--resume``. ``--intervals`` asks
instead whether the intervals can be relied on: how often a network compared with itself is said to
differ, and what becomes of a ratio while another process takes half of a core.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bench_results import ROOT, earlier_rows, table, write

sys.path.insert(0, str(ROOT))

import numpy as np

import converter
from converter.evaluation.compare import compare_models, versions
from converter.graph import network as onnx_network
from converter.runtime.ort import cpu_model

DEMO = "--max-drop 0.01 (scripts/demo.sh)"
EXACT = "ResNet-20, tucker at full rank"
SAMPLE = "sample_models.paper_cifar10:build"
EMBEDDED = ROOT / "sample_models"
SELVES, CLAIMS_SHARE = 200, 0.05
BUSY_PAIRS, MOST_OFF = 10, 0.1
RESNET_IMAGES = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}


def convert(model: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Convert into ``folder`` and give the report."""
    result = converter.convert(model, config=converter.Options.of(**options))
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


def interval_rows(runs: Path, done: Collection[str]) -> Iterator[dict[str, Any]]:
    """Compare a network with itself, and with a converted one on a quiet and on a busy machine."""
    folder = runs / "intervals"
    name = f"{SELVES} comparisons of the sample network with itself"
    convert(
        SAMPLE,
        folder,
        checkpoint=EMBEDDED / "paper_cifar10.safetensors",
        input_shape=("1,3,32,32",),
        form=("separable",),
        rank=("0.5",),
    )
    original, other, converted = (
        onnx_network.load(folder / file)
        for file in ("original.onnx", "original.onnx", "model.onnx")
    )
    if name not in done:
        claims, widths = 0, []
        for _ in range(SELVES):
            found = compare_models({"one": original, "other": other}).networks[1]
            claims += found.verdict != "no difference"
            widths.append(found.speedup.high - found.speedup.low)
        row = {"name": name, "claims": claims, "median_width": float(np.median(widths))}
        met = claims <= CLAIMS_SHARE * SELVES
        yield row | {"target": f"at most {CLAIMS_SHARE:.0%} claim a difference", "met": met}
    name = f"{BUSY_PAIRS} pairs, quiet and beside half a core of other work"
    if name not in done:
        ratios: dict[bool, list[float]] = {False: [], True: []}
        for _, busy in itertools.product(range(BUSY_PAIRS), (False, True)):
            with other_work() if busy else contextlib.nullcontext():
                found = compare_models({"original": original, "converted": converted}).networks[1]
            ratios[busy].append(found.speedup.median)
        off = [busy / quiet - 1 for quiet, busy in zip(ratios[False], ratios[True])]
        row = {
            "name": name,
            "ratio_quiet": float(np.median(ratios[False])),
            "ratio_busy": float(np.median(ratios[True])),
            "most_off": max(map(abs, off)),
        }
        yield row | {"target": f"within {MOST_OFF:.0%}", "met": row["most_off"] <= MOST_OFF}


@contextlib.contextmanager
def other_work() -> Iterator[None]:
    """Keep half of a core busy, ten milliseconds of twenty."""
    code = (
        "import time\n"
        "while True:\n"
        "    end = time.perf_counter() + 0.01\n"
        "    while time.perf_counter() < end: pass\n"
        "    time.sleep(0.01)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


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
    parser.add_argument(
        "--intervals", action="store_true", help="the check of the intervals, nothing else"
    )
    options = parser.parse_args()
    if options.intervals:
        found = earlier_rows("intervals") if options.resume else []
        conditions = {"cpu": cpu_model(), "threads": 1, "versions": versions()}
        for row in interval_rows(options.runs, {row["name"] for row in found}):
            found.append(row)
            write("intervals", conditions, found)
        print(table("intervals"))
        return 0
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
