"""ResNets without fine-tuning: accuracy over rank, and how long solving takes.

CIFAR-10 ResNets with public weights (github.com/akamaster/pytorch_resnet_cifar10, in
``--checkpoints``): every 3x3 convolution but the first, one rank for all, solved and corrected on
2,048 unlabelled training images; scored on the whole test set (``scripts/fetch_cifar10.py``);
batch 1, one thread. ImageNet-sized ResNets (pytorchcv, random weights): time and memory only, each
in a process of its own. Then the same networks, and the sample network, under budgets with nothing
chosen by hand. ``--curve`` adds the accuracy over rank of three ways to solve, and draws
``docs/accuracy_over_rank.svg`` and ``docs/frontier.svg``. Rows are written as they come;
``--resume`` keeps those there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_results import ROOT, gather, memory_watched, resumable

sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import converter

IMAGES = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}
# Accuracy wanted without fine-tuning; flattened may lose 1.5 points more than separable.
WANTED = {(20, 1.0): 0.885, (20, 2.0): 0.912, (56, 1.0): 0.905, (56, 2.0): 0.930}
SLACK = {"separable": 0.0, "flattened": 0.015}
SOLVE_S = {(20, "separable", 1.0): 30.0}
# Budgets: share of MACs left and points that may be lost (LC, CVPR 2020, lost 1.1, 1.2 and 0.9
# after about 750 epochs); and a share of accuracy that may be lost, with the speedup wanted.
CUTS = {20: (0.43, 0.5), 32: (0.39, 0.6), 56: (0.34, 0.8)}
DROPS = {20: (0.005, 1.4), 56: (0.005, 1.4)}
FRONTIERS = (20, 56)
SAMPLE_DROP, SAMPLE_SPEEDUP = 0.01, 6.0
SAMPLE_RANKS, SAMPLE_POINTS = (32, 64, 128), 2.5
BUDGET_S, WARM_S, BUDGET_GIB = 180.0, 45.0, 3.0
# After fine-tuning: share of MACs left; points that may be lost (published: 1.1, 4.5, 0.9, 1.8)
# and epochs, of which 10 are allowed.
TUNED = {
    (20, 0.43): (0.2, 10),
    (20, 0.23): (0.8, 10),
    (56, 0.34): (0.2, 5),
    (56, 0.24): (0.6, 10),
}
NO_LABELS, LABELS_POINTS = ", no labels", 0.3
LARGE = {"resnet18": (60.0, 3.0), "resnet50": (120.0, None)}
CURVE_RANKS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
WAYS: dict[str, dict[str, Any]] = {
    "weights alone": {"data": False},
    "data-aware": {"data": True, "correct": False},
    "corrected": {"data": True, "correct": True},
}


def convert(
    depth: int, form: str, rank: float, options: argparse.Namespace, way: str = "corrected"
) -> dict[str, Any]:
    """Convert one CIFAR-10 ResNet and take a row from its report."""
    how = dict(WAYS[way])
    moments: dict[str, float] = {}

    def progress(stage: str, done: float) -> None:
        if stage == "loading" and done == 1:
            moments["start"] = time.perf_counter()
        if stage == "solving":
            moments["end"] = time.perf_counter()

    calib = str(options.data / "train.npz") if how.pop("data") else None
    config = converter.Options.of(
        checkpoint=next(options.checkpoints.glob(f"resnet{depth}-*.th")),
        input_shape=("1,3,32,32",),
        calib=calib,
        samples=2048,
        eval=str(options.data / "test.npz"),
        form=(form,),
        rank=(str(rank),),
        keep=("conv1",),
        cache=False,
        **IMAGES,
        **how,
    )
    result = converter.convert(
        f"sample_models.resnet_cifar:resnet{depth}", options=config, progress=progress
    )
    report = result.report.to_dict()
    before, after = report["original"], report["converted"]
    return {
        "name": f"ResNet-{depth}, {form}, R = {rank:g} O"
        + ("" if way == "corrected" else f", {way}"),
        "accuracy": after["accuracy"],
        "drop_points": report["drop_points"],
        "macs_ratio": before["macs"] / after["macs"],
        "params_ratio": before["params"] / after["params"],
        "speedup": report["speedup"]["median"],
        "solve_s": moments["end"] - moments["start"],
    }


def budgeted(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """Take a row from the report of a conversion under a budget."""
    before, after = report["original"], report["converted"]
    return {
        "name": name,
        "accuracy": after["accuracy"],
        "drop_points": report["drop_points"],
        "macs_ratio": before["macs"] / after["macs"],
        "params_ratio": before["params"] / after["params"],
        "speedup": report["speedup"]["median"],
    }


def convert_resnet(depth: int, options: argparse.Namespace, **budget: Any) -> dict[str, Any]:
    """Convert one CIFAR-10 ResNet under a budget and give the report."""
    config = converter.Options.of(
        checkpoint=next(options.checkpoints.glob(f"resnet{depth}-*.th")),
        input_shape=("1,3,32,32",),
        calib=str(options.data / "train.npz"),
        samples=2048,
        eval=str(options.data / "test.npz"),
        **IMAGES,
        **budget,
    )
    model = f"sample_models.resnet_cifar:resnet{depth}"
    return converter.convert(model, options=config).report.to_dict()


def convert_sample(options: argparse.Namespace, **how: Any) -> dict[str, Any]:
    """Convert the sample network and give the report."""
    config = converter.Options.of(
        checkpoint=ROOT / "sample_models" / "paper_cifar10.safetensors",
        calib=str(options.data / "train.npz"),
        samples=2048,
        eval=str(options.data / "test.npz"),
        **how,
    )
    model = "sample_models.paper_cifar10:build"
    return converter.convert(model, options=config).report.to_dict()


def budget_rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Convert under budgets, nothing chosen by hand."""
    for depth, (share, points) in CUTS.items():
        name = f"ResNet-{depth}, --max-macs {share:g}"
        if name not in done:
            report = convert_resnet(depth, options, max_macs=share)
            met = report["met"] and report["drop_points"] <= points
            yield budgeted(name, report) | {"target": f"{points:g} points", "met": met}
    for depth, (drop, speedup) in DROPS.items():
        name = f"ResNet-{depth}, --max-drop {drop:g}"
        if name not in done:
            report = convert_resnet(depth, options, max_drop=drop, frontier=depth in FRONTIERS)
            row = budgeted(name, report)
            met = row["speedup"] >= speedup and row["drop_points"] <= 100 * drop
            for point in report["frontier"]:
                yield {
                    "name": f"ResNet-{depth}, frontier {point['name']}",
                    "frontier": depth,
                    "accuracy": point["accuracy"],
                    "drop_points": point["drop_points"],
                    "macs_ratio": report["original"]["macs"] / point["macs"],
                    "params_ratio": report["original"]["params"] / point["params"],
                    "speedup": point["speedup"]["median"],
                }
            yield row | {"target": f"{speedup:g}x", "met": met}
    name = f"sample network, --max-drop {SAMPLE_DROP:g}"
    if name not in done:
        row = budgeted(name, convert_sample(options, max_drop=SAMPLE_DROP))
        met = row["speedup"] >= SAMPLE_SPEEDUP and row["drop_points"] <= 100 * SAMPLE_DROP
        yield row | {"target": f"{SAMPLE_SPEEDUP:g}x", "met": met}
    for state, seconds in {"cold": BUDGET_S, "warm": WARM_S}.items():
        name = f"resnet18, 224x224, --max-error 0.2, whole conversion, caches {state}"
        if name not in done:
            folder = ROOT / "runs" / "bench_cache"
            if state == "cold":
                shutil.rmtree(folder, ignore_errors=True)
            command = [sys.executable, __file__, "--whole"]
            found = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"FLATCONV_CACHE": str(folder)},
            ).stdout
            row = {"name": name, **json.loads(found.splitlines()[-1])}
            met = row["whole_s"] <= seconds and row["peak_gib"] <= BUDGET_GIB
            yield row | {"target": f"{seconds:g} s, {BUDGET_GIB:g} GiB", "met": met}


def convert_whole() -> None:
    """Convert an ImageNet-sized ResNet-18 under a budget; print what it took as JSON."""
    from pytorchcv.model_provider import get_model

    images = np.random.default_rng(0).standard_normal((64, 3, 224, 224)).astype(np.float32)
    torch.manual_seed(0)
    start = time.perf_counter()
    with memory_watched() as memory:
        result = converter.convert(
            get_model("resnet18", pretrained=False).eval(),
            images[:1],
            converter.Options.of(max_error=0.2),
            calib=images,
        )
    seconds = time.perf_counter() - start
    row = {"speedup": result.comparison.networks[1].speedup.median, "whole_s": seconds}
    print(json.dumps(row | memory))


def tuned_rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Convert under budgets and fine-tune, with labels and without."""
    how = {"train": str(options.data / "train.npz"), "precision": "bfloat16", "resume": True}
    for (depth, share), (points, epochs) in TUNED.items():
        name = f"ResNet-{depth}, --max-macs {share:g}, {epochs} epochs"
        for labels in (True, False):
            title = name if labels else f"{name}{NO_LABELS}"
            if title in done or (not labels and (depth, share) != (20, 0.43)):
                continue
            if options.only and title not in options.only:
                continue
            start = time.perf_counter()
            report = convert_resnet(
                depth, options, max_macs=share, finetune=epochs, labels=labels, **how
            )
            minutes = (time.perf_counter() - start) / 60
            met = report["met"] and report["drop_points"] <= points
            row = budgeted(title, report) | {"minutes": minutes}
            yield row | {"target": f"{points:g} points", "met": met}


def beside_labels(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """LossEstimator rows without labels by the same row with them."""
    drops = {row["name"]: row["drop_points"] for row in found}
    target = f"{LABELS_POINTS:g} points more than with labels"
    return [
        row | {"target": target, "met": row["drop_points"] <= drops[named] + LABELS_POINTS}
        if (named := row["name"].removesuffix(NO_LABELS)) != row["name"] and named in drops
        else row
        for row in found
    ]


def judged(row: dict[str, Any], depth: int, form: str, rank: float) -> dict[str, Any]:
    """Add the target of a row, if it has one."""
    wanted = WANTED.get((depth, rank))
    if wanted is None:
        return row
    wanted -= SLACK[form]
    target, met = f"accuracy {wanted:.3f}", row["accuracy"] >= wanted
    seconds = SOLVE_S.get((depth, form, rank))
    if seconds:
        target, met = f"{target}, solved in {seconds:g} s", met and row["solve_s"] <= seconds
    return row | {"target": target, "met": met}


def solve_large(name: str) -> None:
    """Solve an ImageNet-sized ResNet for what it sees; print seconds and gibibytes as JSON.

    Calibration counts; correction is left out.
    """
    from pytorchcv.model_provider import get_model

    images = np.random.default_rng(0).standard_normal((64, 3, 224, 224)).astype(np.float32)
    times: dict[str, float] = {}

    def progress(stage: str, done: float) -> None:
        if stage == "loading" and done == 1:
            times["start"] = time.perf_counter()
        if stage == "solving" and done == 1:
            seconds = time.perf_counter() - times["start"]
            print(json.dumps({"solve_s": seconds} | memory))
            sys.exit(0)

    config = converter.Options.of(
        form=("separable",), rank=("1.0",), keep=("*init*",), cache=False, correct=False
    )
    model = get_model(name, pretrained=False).eval()
    with memory_watched() as memory:
        converter.convert(model, images[:1], config, calib=images, progress=progress)


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Measure every row that is not done yet."""
    for depth, rank in WANTED:
        for form in SLACK:
            if f"ResNet-{depth}, {form}, R = {rank:g} O" not in done:
                yield judged(convert(depth, form, rank, options), depth, form, rank)
    name = f"sample network, flattened, ranks {'/'.join(map(str, SAMPLE_RANKS))}"
    if name not in done:
        ranks = tuple(f"conv{n}={rank}" for n, rank in enumerate(SAMPLE_RANKS, start=1))
        row = budgeted(name, convert_sample(options, form=("flattened",), rank=ranks))
        met = row["drop_points"] <= SAMPLE_POINTS
        yield row | {"target": f"{SAMPLE_POINTS:g} points", "met": met}
    for name, (seconds, gib) in LARGE.items():
        title = f"{name}, 224x224, separable, R = O, random weights"
        if title in done:
            continue
        command = [sys.executable, __file__, "--solve-large", name]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row = {"name": title, **json.loads(found.splitlines()[-1])}
        target = f"{seconds:g} s" + (f", {gib:g} GiB" if gib else "")
        met = row["solve_s"] <= seconds and (gib is None or row["peak_gib"] <= gib)
        yield row | {"target": target, "met": met}
    yield from budget_rows(options, done)
    for way in WAYS if options.curve else ():
        for rank in CURVE_RANKS:
            row = {"name": f"ResNet-20, separable, R = {rank:g} O, {way}"}
            if row["name"] not in done:
                yield (
                    convert(20, "separable", rank, options, way) | row | {"way": way, "rank": rank}
                )


def draw_ranks(found: list[dict[str, Any]]) -> None:
    """Draw accuracy over rank, a line for each way."""
    figure, axes = canvas()
    for way in WAYS:
        points = sorted((r["rank"], 100 * r["accuracy"]) for r in found if r.get("way") == way)
        axes.plot(*zip(*points), marker="o", label=way)
    axes.axhline(91.73, color="gray", linestyle=":", label="original")
    axes.set(
        xlabel="rank, as a share of the output channels",
        ylabel="accuracy on the test set, %",
        title="ResNet-20 on CIFAR-10, every 3x3 convolution but the first, no fine-tuning",
    )
    save(figure, axes, "accuracy_over_rank.svg")


def draw_frontiers(found: list[dict[str, Any]]) -> None:
    """Draw speedup over accuracy lost, a line for each network."""
    figure, axes = canvas()
    for depth in FRONTIERS:
        points = sorted(
            (row["drop_points"], row["speedup"]) for row in found if row.get("frontier") == depth
        )
        axes.plot(*zip((0, 1), *points), marker="o", label=f"ResNet-{depth}")
    axes.set(
        xlabel="accuracy lost on the test set, points",
        ylabel="speedup in onnxruntime, one thread",
        title="CIFAR-10, nothing chosen by hand, no fine-tuning",
    )
    save(figure, axes, "frontier.svg")


def canvas() -> tuple[Any, Any]:
    """Make an empty drawing whose file depends on nothing but what is drawn."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "flatconv"
    return pyplot.subplots(figsize=(7, 4))


def save(figure: Any, axes: Any, name: str) -> None:
    """Write a drawing into docs/."""
    axes.grid(alpha=0.3)
    axes.legend()
    (ROOT / "docs").mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / name, metadata={"Date": None})


def main() -> int:
    """Measure, print, and write ``resnets_untuned.json`` or ``resnets_tuned.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--tuned", action="store_true", help="the rows with fine-tuning (hours)")
    parser.add_argument("--only", nargs="+", help="of the rows with fine-tuning, by name")
    parser.add_argument("--solve-large", choices=tuple(LARGE), help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.whole:
        convert_whole()
        return 0
    if options.solve_large:
        solve_large(options.solve_large)
        return 0
    if options.tuned:
        gather("resnets_tuned", tuned_rows, options, beside_labels)
        return 0
    found = gather("resnets_untuned", rows, options)
    if options.curve:
        draw_ranks(found)
        draw_frontiers(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
