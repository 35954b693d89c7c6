"""Other tools on the same checkpoints: accuracy without training and after it, and time.

The sample network, ResNet-20 and ResNet-56 on CIFAR-10: flatconv is given a budget, and every tool
the share of MACs that flatconv's network has left (unstructured pruning: the share of parameters;
AIMET: the lowest share that its search reaches, where that is more). All are trained alike for
three epochs, and raced together in onnxruntime, batch 1, one thread. ResNet-18 with random weights
for time alone. Each tool has a virtual environment of its own under ``runs/peers``.
``--openvino`` also measures original, flatconv's network and their int8 in OpenVINO. With
``--resume``, networks that were made and trained at this commit are used again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converter.errors import ConverterError
from scripts.benchmarks.distillation import (
    Recipe,
    Source,
    distill,
    export_network,
    open_source,
)
from scripts.benchmarks.models import SAMPLE, Network, cifar_resnet, noise
from scripts.benchmarks.results import ROOT, commit
from scripts.benchmarks.rows import from_pair
from scripts.benchmarks.run import compare, convert, run
from scripts.benchmarks.suite import Case, Figures, Settings, Suite
from scripts.peers.environments import interpreter
from scripts.peers.pruned import MODULE, load, without_masks

EPOCHS, IMAGES = 3, 32
FOLDER = ROOT / "runs" / "peers"
TOOLS = {
    "parafac": "parafac script",
    "tensorly-torch": "tensorly-torch, FactorizedConv (CP)",
    "aimet": "AIMET, spatial SVD",
    "torch-pruning": "Torch-Pruning, group norm",
    "l1": "unstructured L1 pruning",
}
BUDGETS: dict[str, dict[str, Any]] = {
    "sample network": {"target_speedup": 10.0},
    "ResNet-20": {"max_macs": 0.43},
    "ResNet-56": {"max_macs": 0.34},
}
RANDOM = "ResNet-18, random weights"
KEPT: dict[str, Any] = {"form": ("dense",), "keep": ("*",)}  # no layer is converted
States = dict[str, Path]  # "untuned" and, after training, "tuned": ONNX files


@dataclass(frozen=True)
class Bench:
    """One network that all tools make smaller.

    Attributes:
        network: The network, with its data.
        budget: flatconv's budget.
        epochs: Epochs of training.
        folder: Where networks are kept.
    """

    network: Network
    budget: dict[str, Any]
    epochs: int
    folder: Path

    def source(self) -> Source:
        """Open the original with its data."""
        return open_source(self.network.model, **self.network.options)


def bench_of(name: str, settings: Settings) -> Bench:
    """Set up the comparison on one network, in a folder of this commit."""
    folder = FOLDER / commit() / name.replace(" ", "_").replace(",", "")
    if not settings.resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if name == RANDOM:
        np.savez(folder / "images.npz", x=noise(IMAGES, 3, 224, 224))
        options = {"calib": str(folder / "images.npz")}
        network = Network("scripts.benchmarks.models:resnet18", options)
        return Bench(network, {"target_speedup": 3.0}, 0, folder)
    depth = name.rpartition("-")[2]
    plain = cifar_resnet(int(depth), settings) if depth.isdigit() else SAMPLE
    options = plain.on(settings) | {"train": str(settings.data / "train.npz")}
    return Bench(Network(plain.model, options), BUDGETS[name], EPOCHS, folder)


def by_flatconv(bench: Bench, source: Source) -> tuple[States, dict[str, float]]:
    """Convert by flatconv, and train.

    Returns:
        The files; the shares of MACs and of parameters that are left.
    """
    folder, shares = bench.folder / "flatconv", bench.folder / "shares.json"
    if not shares.exists():
        result = convert(bench.network.model, **bench.network.options, **bench.budget)
        result.save(folder)
        shutil.copy(folder / "original.onnx", bench.folder / "original.onnx")
        torch.save(result.model, folder / MODULE)
        report = result.report.to_dict()
        before, after = report["original"], report["converted"]
        shares.write_text(json.dumps({n: after[n] / before[n] for n in ("macs", "params")}))
    return trained(folder, bench, source), json.loads(shares.read_text())


def by_tool(tool: str, bench: Bench, source: Source, share: float) -> tuple[States, float]:
    """Let another tool make the network smaller, in an environment of its own, and train.

    Returns:
        The files; the share of parameters that is left, zeros not counted.

    Raises:
        RuntimeError: When the tool fails.
        ConverterError: When its network cannot be trained or exported.
    """
    folder = bench.folder / tool
    figures = folder / "figures.json"
    if not figures.exists():
        python = interpreter(tool, FOLDER / "venvs")
        options = {name: _plain(value) for name, value in bench.network.options.items()}
        command = [python, "-m", "scripts.peers.methods", tool, "--model", bench.network.model]
        run([*command, "--share", share, "--options", json.dumps(options), "--out", folder])
    return trained(folder, bench, source), json.loads(figures.read_text())["params_share"]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def trained(folder: Path, bench: Bench, source: Source) -> States:
    """Export the network of a folder as it was made and, if epochs are wanted, as trained."""
    states = {"untuned": folder / "untuned.onnx"}
    if not states["untuned"].exists():
        export_network(without_masks(load(folder)), source, states["untuned"])
    if bench.epochs:
        states["tuned"] = folder / "tuned.onnx"
        if not states["tuned"].exists():
            recipe = Recipe(bench.epochs)
            model, precision = distill(load(folder), source, recipe, folder / "training")
            (folder / "precision").write_text(precision)
            export_network(without_masks(model), source, states["tuned"])
    return states


def int8(states: States, bench: Bench, name: str) -> States:
    """Quantize networks."""
    quantized = {}
    for state, path in states.items():
        options = {k: v for k, v in bench.network.options.items() if k != "checkpoint"}
        result = convert(path, **options, **KEPT, int8=True)
        result.save(bench.folder / f"{name}_{state}")
        quantized[state] = bench.folder / f"{name}_{state}" / "original.int8.onnx"
    return quantized


def measure(name: str, settings: Settings) -> list[Figures]:
    """Make a network smaller by all tools, race the results, and give a row for each tool."""
    bench = bench_of(name, settings)
    source = bench.source()
    flatconv, shares = by_flatconv(bench, source)
    networks: dict[str, States] = {"flatconv": flatconv}
    failures: list[Figures] = []
    nonzero: dict[str, float] = {}  # share of parameters, where zeros are stored
    for tool, title in TOOLS.items():
        share = shares["params" if tool == "l1" else "macs"]
        try:
            networks[title], params_share = by_tool(tool, bench, source, share)
            if tool == "l1":
                nonzero[title] = params_share
        except (RuntimeError, ConverterError) as error:
            failures.append({"name": row_name(name, title), "reason": str(error)})
    original = bench.folder / "original.onnx"
    networks["onnxruntime int8"] = int8({"untuned": original}, bench, "original_int8")
    networks["flatconv + int8"] = int8(flatconv, bench, "flatconv_int8")
    paths = [original, *(path for states in networks.values() for path in states.values())]
    figures = dict(zip(paths, compare(*paths, **scoring(bench))))
    rows = [
        row_of(row_name(name, title), states, figures, original, nonzero.get(title))
        for title, states in networks.items()
    ]
    return rows + failures


def scoring(bench: Bench) -> dict[str, Any]:
    """Give the options of a comparison: labelled images, and how they are normalized."""
    options = bench.network.options
    data = options.get("eval") or options["calib"]
    return {"data": data} | {n: options[n] for n in ("mean", "std") if n in options}


def row_of(
    name: str,
    states: States,
    figures: dict[Path, dict[str, Any]],
    original: Path,
    params_share: float | None,
) -> Figures:
    """Make the row of one tool."""
    final = states.get("tuned", states["untuned"])
    row: Figures = {"name": name}
    names = "macs_share params_share speedup speedup_low speedup_high"
    row |= from_pair(figures[original], figures[final], names)
    if params_share is not None:
        row["params_share"] = params_share
    for state, path in states.items():
        if figures[path]["drop_points"] is not None:
            row[f"drop_points_{state}"] = figures[path]["drop_points"]
    precision = final.with_name("precision")
    return row | ({"trained_in": precision.read_text()} if precision.exists() else {})


def openvino(name: str, settings: Settings) -> list[Figures]:
    """Race original and flatconv's network, and their int8, in OpenVINO."""
    bench = bench_of(name, settings)
    source = bench.source()
    states, _ = by_flatconv(bench, source)
    assert source.calib is not None and source.eval is not None
    assert source.eval.labels is not None
    calib, scored = bench.folder / "calib.npz", bench.folder / "eval.npz"
    np.savez(
        calib, allow_pickle=False, **source.calib.read(np.arange(min(source.calib.count, 256)))
    )
    inputs = source.eval.read(np.arange(source.eval.count))
    inputs = inputs | {"labels_of_all": np.asarray(source.eval.labels)}
    np.savez(scored, allow_pickle=False, **inputs)
    python = interpreter("openvino", FOLDER / "venvs")
    script = ROOT / "scripts" / "peers" / "race_openvino.py"
    files = (calib, scored, bench.folder / "original.onnx", states["tuned"])
    networks = json.loads(run([python, script, *files]).splitlines()[-1])
    accuracy, rows = networks["original"]["accuracy"], []
    for title, figures in networks.items():
        state = "tuned" if title.startswith("flatconv") else "untuned"
        drop = 100 * (accuracy - figures.pop("accuracy"))
        named = {"name": row_name(name, f"OpenVINO, {title}"), **figures}
        rows.append(named | {f"drop_points_{state}": drop})
    return rows


def row_name(network: str, title: str) -> str:
    """Name a row."""
    return f"{network}, {title}" if network == RANDOM else f"{network}, {EPOCHS} epochs, {title}"


def tools_case(network: str) -> Case:
    """Declare the comparison of all tools on a network."""
    names = tuple(row_name(network, title) for title in ("flatconv", *TOOLS.values()))
    return Case(network, partial(measure, network), rows=names)


def openvino_case(network: str) -> Case:
    """Declare the comparison in OpenVINO."""
    rows = (row_name(network, "OpenVINO, original"),)
    measurement = partial(openvino, network)
    return Case(f"{network}, OpenVINO", measurement, rows=rows, requires="openvino")


SUITE = Suite(
    "peers",
    [*map(tools_case, BUDGETS), *map(openvino_case, BUDGETS), tools_case(RANDOM)],
    about="other compression tools on the same networks, trained and raced alike",
)
