"""The paper's own experiment: a trained network flattened, then fine-tuned for a few epochs.

The sample network on CIFAR-10 (``scripts/fetch_cifar10.py``); scored on the whole test set, timed
in onnxruntime at batch 1 on one thread and on all. First the headline, forms and ranks chosen by
measured time; then the paper's forms at given ranks, fine-tuned or not; each direction of the
flattened layers left out in turn; and what keeps their gradients alive left out. ``--fashion
FOLDER`` does the forms again on Fashion-MNIST (the files of Debian's ``dataset-fashion-mnist``,
padded to 32x32), on which it trains the network first. Last comes the headline at twice the
learning rate, and without labels. Trainings resume where they were interrupted; rows are written as
they come, and ``--resume`` keeps those there.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_results import ROOT, gather, resumable, table

sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn
from train_sample import load_split, save, train

import converter
from converter.evaluation.compare import compare_models
from converter.models.export import export
from converter.models.source import Source, examples, free_axes
from converter.pipeline import open_source
from converter.training.losses import Recipe
from converter.training.train import tune

MODEL = "sample_models.paper_cifar10:build"
EPOCHS, SPEEDUP, PARAMS_RATIO, POINTS = 10, 10.0, 10.0, 0.5
HEADLINE = f"--target-speedup {SPEEDUP:g}, {EPOCHS} epochs"
VARIANTS: dict[str, dict[str, Any]] = {"--lr 0.002": {"lr": 0.002}, "no labels": {"labels": False}}
PART_EPOCHS = 3  # on a part of the images
BOTH = {"0 epochs": 0, "1 epoch": 1}
RANKS = ("conv1=32", "conv2=64", "conv3=128")
FLATTENED: dict[str, Any] = {"form": ("flattened",), "rank": RANKS}
FORMS: dict[str, dict[str, Any]] = {
    "flattened, ranks 32/64/128": FLATTENED,
    "separable, ranks 32/64/128": {"form": ("separable",), "rank": RANKS},
    "lvh, one stage": {"form": ("lvh",)},
    "lvh, two stages": {"form": ("lvh",), "stages": 2},
}
# Denil et al. 2013 predict 95 % of the weights from the rest; Denton et al. 2014 are twice as fast
# and lose one point.
FEWER = {"form": ("flattened",), "rank": ("conv1=24", "conv2=48", "conv3=108")}
FEWER_RATIO, TWICE, TWICE_POINTS = 20.0, 2.0, 1.0
CONVS, STEPS = ("conv1", "conv2", "conv3"), ("lateral", "vertical", "horizontal")
FASHION, FASHION_EPOCHS = "Fashion-MNIST, ", 8
PART, KILLS, KILL_S = 4000, 4, (15.0, 40.0)


def config(options: argparse.Namespace, **how: Any) -> converter.Options:
    """Give the options that all conversions share."""
    return converter.Options.of(
        checkpoint=options.checkpoint,
        calib=str(options.data / "train.npz"),
        samples=2048,
        train=str(options.data / "train.npz"),
        eval=str(options.data / "test.npz"),
        precision="bfloat16",
        resume=bool(how.get("finetune")),
        **how,
    )


def convert(options: argparse.Namespace, **how: Any) -> tuple[dict[str, Any], converter.Result]:
    """Convert the network, train it, and take a row from its report."""
    start = time.perf_counter()
    result = converter.convert(MODEL, options=config(options, **how))
    report = result.report.to_dict()
    before, after = report["original"], report["converted"]
    every = {name: network for name, network in (("a", result.original), ("b", result.converted))}
    all_threads = compare_models(every, threads=os.cpu_count() or 1)
    return {
        "accuracy": after["accuracy"],
        "drop_points": report["drop_points"],
        "conv_params_ratio": conv_params(result.original) / conv_params(result.converted),
        "macs_ratio": before["macs"] / after["macs"],
        "speedup": report["speedup"]["median"],
        "speedup_all_threads": all_threads.networks[1].speedup.median,
        "minutes": (time.perf_counter() - start) / 60,
    }, result


def conv_params(network: Any) -> int:
    """Count the weights of a network's convolutions."""
    names = {str(node.inputs[1].name) for node in network.graph if node.op_type == "Conv"}
    return sum(network.graph.initializers[name].const_value.size for name in names)


def without(model: nn.Module, direction: str) -> nn.Module:
    """Leave one direction out of every flattened layer.

    Without the lateral one, each term sees one channel, in turn.
    """
    model = copy.deepcopy(model)
    for name in CONVS:
        chain = model.get_submodule(name)
        if direction == "lateral":
            R, I = chain[0].weight.shape[:2]
            seen = torch.eye(I)[torch.arange(R) % I].reshape(R, I, 1, 1)
            chain[0].weight = nn.Parameter(seen, requires_grad=False)
        else:
            chain[STEPS.index(direction)] = nn.Identity()
    return model


def unbalanced(model: nn.Module) -> nn.Module:
    """Give all filters but those of the last step norm 1, as CP decompositions come."""
    model = copy.deepcopy(model)
    for name in CONVS:
        *head, last = model.get_submodule(name)
        with torch.no_grad():
            for step in head:
                norms = step.weight.flatten(1).norm(dim=1)
                step.weight /= norms.reshape(-1, 1, 1, 1)
                last.weight *= norms.reshape(1, -1, 1, 1)
    return model


def trained(source: Source, student: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Train a network toward the original, and score and time it."""
    start = time.perf_counter()
    assert source.module is not None and source.train is not None
    model = tune(student, source.module, source.train, recipe).model
    network = export(model, examples(source, 0, 1), free_axes(source.inputs))
    every = {"original": source.network, "trained": network}
    one = compare_models(every, data=source.eval)
    original, found = one.networks
    return {
        "accuracy": found.accuracy,
        "drop_points": 100 * (original.accuracy - found.accuracy),
        "conv_params_ratio": conv_params(source.network) / conv_params(network),
        "macs_ratio": original.macs / found.macs,
        "speedup": found.speedup.median,
        "minutes": (time.perf_counter() - start) / 60,
    }


def ablation(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Leave out a direction; or what keeps the gradients alive."""
    recipe = Recipe(epochs=1, bfloat16=True)
    changes: dict[str, tuple[Any, Recipe]] = {
        f"flattened without its {direction} filters, 1 epoch": (
            lambda model, direction=direction: without(model, direction),
            recipe,
        )
        for direction in STEPS
    } | {
        "flattened, factors not balanced, 1 epoch": (unbalanced, recipe),
        "flattened, AdamW for matrices, too, 1 epoch": (
            lambda model: model,
            Recipe(epochs=1, bfloat16=True, orthogonal=False),
        ),
        "flattened, one learning rate, 1 epoch": (
            lambda model: model,
            Recipe(epochs=1, bfloat16=True, scaled_steps=False),
        ),
        "flattened, neither, 1 epoch": (
            unbalanced,
            Recipe(epochs=1, bfloat16=True, scaled_steps=False),
        ),
        "flattened, neither, AdamW for matrices, too, 1 epoch": (
            unbalanced,
            Recipe(epochs=1, bfloat16=True, scaled_steps=False, orthogonal=False),
        ),
    }
    if changes.keys() <= done:
        return
    source = open_source(MODEL, None, config(options, finetune=1), None)
    flattened = convert(options, keep=("linear",), **FLATTENED)[1].model
    for name, (change, how) in changes.items():
        if name not in done:
            yield {"name": name, **trained(source, change(flattened), how)}


def judged(row: dict[str, Any], target: str, met: bool) -> dict[str, Any]:
    """Add a target to a row."""
    return row | {"target": target, "met": met}


def headline(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Choose forms and ranks by measured time, and train."""
    if HEADLINE not in done:
        row, _ = convert(options, target_speedup=SPEEDUP, finetune=EPOCHS)
        met = (
            row["speedup"] >= SPEEDUP
            and row["conv_params_ratio"] >= PARAMS_RATIO
            and row["drop_points"] <= POINTS
        )
        target = f"{SPEEDUP:g}x, {PARAMS_RATIO:g}x fewer, {POINTS:g} points"
        yield judged({"name": HEADLINE, **row}, target, met)


def variants(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Do the same in other ways."""
    for title, how in VARIANTS.items():
        name = f"{HEADLINE}, {title}"
        if name not in done:
            row, _ = convert(options, target_speedup=SPEEDUP, finetune=EPOCHS, **how)
            yield {"name": name, **row}


def forms(
    options: argparse.Namespace, done: set[str], prefix: str = ""
) -> Iterator[dict[str, Any]]:
    """Convert by the paper's forms, and train."""
    for form, how in FORMS.items():
        for title, epochs in BOTH.items():
            name = f"{prefix}{form}, {title}"
            if name not in done:
                yield {
                    "name": name,
                    **convert(options, finetune=epochs, keep=("linear",), **how)[0],
                }


def anchors(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Convert to what two other papers promise."""
    name = "flattened, ranks 24/48/108, 1 epoch"
    if name not in done:
        row, _ = convert(options, finetune=1, keep=("linear",), **FEWER)
        met = row["conv_params_ratio"] >= FEWER_RATIO
        yield judged({"name": name, **row}, f"{FEWER_RATIO:g}x fewer", met)
    name = f"--target-speedup {TWICE:g}, 0 epochs"
    if name not in done:
        row, _ = convert(options, target_speedup=TWICE)
        met = row["speedup"] >= TWICE and row["drop_points"] <= TWICE_POINTS
        yield judged({"name": name, **row}, f"{TWICE:g}x, {TWICE_POINTS:g} point", met)


def processes(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Train a folder in one process, killed at random and resumed, and in two processes."""
    ways = ("as is", "killed", "two processes")
    names = [f"{PART} images, {PART_EPOCHS} epochs, {how}" for how in ways]
    if {*names} <= done:
        return
    folder = ROOT / "runs" / "processes"
    shutil.rmtree(folder, ignore_errors=True)
    convert(options, keep=("linear",), **FLATTENED)[1].save(folder / "start")
    with np.load(options.data / "train.npz") as data:
        np.savez(folder / "part.npz", x=data["x"][:PART], y=data["y"][:PART])
    tail = ["--train", folder / "part.npz", "--epochs", str(PART_EPOCHS), "--resume", "--quiet"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]
    weights, rng = {}, random.Random(0)
    for name in names:
        out = folder / name.split(", ")[-1].replace(" ", "_")
        shutil.copytree(folder / "start", out)
        head = launch if name == names[2] else ["-m"]
        command = [sys.executable, *head, "converter", "finetune", out, *tail]
        environment = os.environ | {"FLATCONV_CACHE": str(folder / f"{out.name}_cache")}
        kills, start = 0, time.perf_counter()
        while True:
            process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment)
            patience = rng.uniform(*KILL_S) if name == names[1] and kills < KILLS else None
            try:
                if process.wait(patience):
                    raise SystemExit(f"{name}: status {process.returncode}")
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        report = json.loads((out / "report.json").read_text())
        weights[name] = load_file(out / "model.safetensors")
        farthest = max(
            float(np.abs(tensor - weights[names[0]][key]).max(initial=0))
            for key, tensor in weights[name].items()
        )
        yield {
            "name": name,
            "accuracy": report["converted"]["accuracy"],
            "drop_points": report["drop_points"],
            "kills": kills,
            "farthest_weight": farthest,
            "minutes": (time.perf_counter() - start) / 60,
        }


def fashion(options: argparse.Namespace) -> argparse.Namespace:
    """Prepare Fashion-MNIST and a network trained on it."""
    data, path = ROOT / "data" / "fashion", ROOT / "runs" / "fashion" / "net.safetensors"
    data.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(options.fashion / f"{prefix}-images-idx3-ubyte.gz")
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, 3)
        labels = read_idx(options.fashion / f"{prefix}-labels-idx1-ubyte.gz")
        np.savez_compressed(data / f"{split}.npz", x=images, y=labels.astype(np.int64))
    if not path.exists():
        parts = (load_split(data, split) for split in ("train", "test"))
        (images, labels), test = parts
        save(train(images, labels, test, path.with_name("state.pt"), FASHION_EPOCHS), path)
    return argparse.Namespace(**vars(options) | {"data": data, "checkpoint": path})


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes in the IDX format of MNIST's files."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Measure every row that is not done yet."""
    yield from headline(options, done)
    if options.headline:
        return
    yield from forms(options, done)
    yield from anchors(options, done)
    yield from ablation(options, done)
    yield from processes(options, done)
    names = {f"{FASHION}{form}, {title}" for form in FORMS for title in BOTH}
    if options.fashion and not names <= done:
        yield from forms(fashion(options), done, FASHION)
    yield from variants(options, done)


def main() -> int:
    """Measure, print, and write ``scripts/results/paper.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10")
    parser.add_argument("--headline", action="store_true", help="the first row only")
    parser.add_argument("--fashion", type=Path, help="folder of Fashion-MNIST's four files")
    options = parser.parse_args()
    options.checkpoint = ROOT / "sample_models" / "paper_cifar10.safetensors"
    gather("paper", rows, options)
    print(table("paper"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
