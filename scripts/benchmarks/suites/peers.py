"""Other tools on the same checkpoints: accuracy without training and after it, and time.

The sample network, ResNet-20 and ResNet-56 on CIFAR-10 (``scripts/fetch_cifar10.py``;
``--checkpoints``): flatconv is given a budget, and every tool the share of multiply-accumulates
that flatconv's network has left (unstructured pruning: the share of parameters; AIMET: the least
that its search goes to, where that is more). The others take the statistics of BatchNorm anew, on
the images that flatconv solves for. All are trained alike, by ``converter.tuning`` for three
epochs, and raced together in onnxruntime, batch 1, one thread. ResNet-18 (pytorchcv, random
weights) for time alone. Every package has a virtual environment of its own under ``runs/peers``.
``--openvino`` also times the original, flatconv's network and their int8 in OpenVINO. Rows are
written as they come; ``--resume`` keeps those there. What was built and trained stays under
``runs/peers`` and is found again, until code, options or data change.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench_results import ROOT, gather, resumable, table

sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import nn
from train_peer import STUDENT, TUNED, made, trained, trained_in, write

import converter
from converter.errors import ConverterError
from converter.evaluation.compare import compare_models
from converter.graph import network as onnx_network
from converter.models.source import Source
from converter.pipeline import open_source
from converter.quantization.int8 import as_int8

EPOCHS, SAMPLES, IMAGES = 3, 2048, 32
FOLDER = ROOT / "runs" / "peers"
ROOMS = ("converter", "sample_models")  # whose code networks follow from
REQUIREMENTS = {
    "tensorly-torch": ["tensorly-torch==0.5.0"],
    "aimet": ["aimet-torch==2.42.0"],
    "torch-pruning": ["torch-pruning==1.6.1"],
    "openvino": ["openvino==2026.4.1", "nncf==3.4.0"],
}
TOOLS = {
    "parafac": "parafac script",
    "tensorly-torch": "tensorly-torch, FactorizedConv (CP)",
    "aimet": "AIMET, spatial SVD",
    "torch-pruning": "Torch-Pruning, group norm",
    "l1": "unstructured L1 pruning",
}
RESNET = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}
NETWORKS: dict[str, dict[str, Any]] = {
    "sample network": {"model": "sample_models.paper_cifar10:build", "target_speedup": 10.0},
    "ResNet-20": {"model": "sample_models.resnet_cifar:resnet20", "max_macs": 0.43, **RESNET},
    "ResNet-56": {"model": "sample_models.resnet_cifar:resnet56", "max_macs": 0.34, **RESNET},
}
TIMED = "ResNet-18, random weights"
UNTUNED = "untuned.onnx"
Networks = dict[str, Path]


def interpreter(tool: str) -> Path:
    """Make the virtual environment of a tool, if there is none, and give its Python."""
    if tool not in REQUIREMENTS:
        return Path(sys.executable)
    folder = FOLDER / "venvs" / tool
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists() or stamp.read_text() != requirements(tool):
        run([sys.executable, "-m", "venv", "--clear", folder])
        own = [] if tool == "openvino" else ["-e", f"{ROOT}[tune]", "pytorchcv==0.0.67"]
        pip = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
        run([*pip, *own, *REQUIREMENTS[tool]])
        stamp.write_text(requirements(tool))
    return python


def requirements(tool: str) -> str:
    """Say what the virtual environment of a tool has, and in which versions."""
    return "\n".join([*REQUIREMENTS.get(tool, []), (ROOT / "constraints.txt").read_text()])


def run(command: list[Any]) -> str:
    """Run a command for what it prints.

    Raises:
        RuntimeError: With the last line it wrote, when it fails; or that it was killed.
    """
    found = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if found.returncode < 0:
        raise RuntimeError(f"It was killed by signal {-found.returncode}, as where memory ends.")
    if found.returncode:
        lines = (found.stderr or found.stdout).strip().splitlines() or ["it failed"]
        raise RuntimeError(lines[-1][:300])
    return found.stdout


def digest(model: str, config: converter.Options, *others: object) -> str:
    """Sum up what a network follows from: code, options, what the files named hold, and more."""
    code = [p.read_text() for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]
    given = config.to_json().items()
    options = {name: content(v) if isinstance(v, str) else v for name, v in given}
    parts = [torch.__version__, model, options, *code, *others]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


@functools.cache
def content(option: str) -> str:
    """Sum up the file that an option names; give back what names none."""
    path = Path(option)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else option


def known(figures: Path, made_of: str) -> dict[str, Any]:
    """Read the figures of a network; none where it is another."""
    found = json.loads(figures.read_text()) if figures.exists() else {}
    return found if found.get("made_of") == made_of else {}


def by_flatconv(model: str, config: converter.Options, folder: Path) -> dict[str, float]:
    """Convert by flatconv, without training.

    Returns:
        The shares of multiply-accumulates and of parameters that are left.
    """
    made_of = digest(model, config)
    figures = folder / "figures.json"
    if not (shares := known(figures, made_of)):
        figures.unlink(missing_ok=True)
        result = converter.convert(model, options=config)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(result.model, folder / STUDENT)
        onnx_network.save(result.converted, folder / UNTUNED)
        onnx_network.save(result.original, folder.parent / "original.onnx")
        report = result.report.to_dict()
        before, after = report["original"], report["converted"]
        shares = {name: after[name] / before[name] for name in ("macs", "params")}
        figures.write_text(json.dumps(shares | {"made_of": made_of}))
    return shares


def by_tool(
    tool: str, model: str, config: converter.Options, share: float, folder: Path
) -> dict[str, Any]:
    """Have another tool make the network smaller, in an environment of its own.

    Returns:
        The ``params_share`` that is left, other than zero.

    Raises:
        RuntimeError: When it cannot.
        ConverterError: When what it made cannot be exported.
    """
    script = ROOT / "scripts" / "build_peer.py"
    made_of = digest(model, config, tool, share, script.read_text(), requirements(tool))
    figures = folder / "figures.json"
    if not known(figures, made_of):
        figures.unlink(missing_ok=True)
        command = [interpreter(tool), script, tool, "--model", model, "--share", share]
        command += ["--config", json.dumps(config.to_json()), "--out", folder]
        run([*command, "--made-of", made_of])
    write(made(folder), open_source(model, None, config, None), folder / UNTUNED)
    return known(figures, made_of)


def states(folder: Path, source: Source, epochs: int) -> Networks:
    """Give the files of a network as it was made and, of some epochs, as trained.

    Raises:
        ConverterError: When it cannot be trained or exported.
    """
    found = {"untuned": folder / UNTUNED}
    if epochs:
        found["tuned"] = folder / "tuned.onnx"
        write(trained(folder, source, epochs), source, found["tuned"])
    return found


def race(networks: Mapping[str, Path], data: Any) -> dict[str, Any]:
    """Score and time networks together, by name; the first is the original."""
    models = {name: onnx_network.load(path) for name, path in networks.items()}
    return {figures.name: figures for figures in compare_models(models, data=data).networks}


def peers(
    name: str, model: str, config: converter.Options, epochs: int
) -> Iterator[dict[str, Any]]:
    """Give a row for each tool."""
    folder = place(name)
    networks: dict[str, Networks] = {}
    failed: dict[str, str] = {}
    left: dict[str, float] = {}  # share of parameters that are not zero, where zeros are stored
    shares = by_flatconv(model, config, folder / "flatconv")
    plain = config.changed(target_speedup=None, max_macs=None)
    source = open_source(model, None, plain, None)
    networks["flatconv"] = states(folder / "flatconv", source, epochs)
    for tool, title in TOOLS.items():
        share = shares["params" if tool == "l1" else "macs"]
        try:
            figures = by_tool(tool, model, plain, share, folder / tool)
            networks[title] = states(folder / tool, source, epochs)
            if tool == "l1":
                left[title] = figures["params_share"]
        except (RuntimeError, ConverterError) as error:
            failed[title] = str(error)
    original = folder / "original.onnx"
    for title, path in {"onnxruntime int8": original, "flatconv + int8": None}.items():
        base = {"untuned": path} if path else networks["flatconv"]
        networks[title] = {}
        for state, float_path in base.items():
            int8 = as_int8(onnx_network.load(float_path), source, plain)
            networks[title][state] = folder / f"{title.replace(' ', '_')}_{state}.onnx"
            onnx_network.save(int8, networks[title][state])
    every = {"original": original} | {
        f"{title}, {state}": path
        for title, states in networks.items()
        for state, path in states.items()
    }
    seen_of = race(every, source.eval)
    whole = seen_of["original"]
    for title in networks:
        untuned, tuned = (seen_of.get(f"{title}, {state}") for state in ("untuned", "tuned"))
        shown = tuned or untuned
        row: dict[str, Any] = {
            "name": named(name, epochs, title),
            "macs_share": shown.macs / whole.macs,
            "params_share": left.get(title, shown.params / whole.params),
            "speedup": shown.speedup.median,
            "speedup_low": shown.speedup.low,
            "speedup_high": shown.speedup.high,
        }
        for state, seen in (("untuned", untuned), ("tuned", tuned)):
            if seen is not None and seen.accuracy is not None:
                row[f"drop_points_{state}"] = 100 * (whole.accuracy - seen.accuracy)
        if (weights := networks[title]["untuned"].with_name(TUNED)).exists() and tuned:
            row["trained_in"] = trained_in(weights.parent)
        yield row
    for title, reason in failed.items():
        yield {"name": named(name, epochs, title), "reason": reason}


def place(name: str) -> Path:
    """Name the folder of a network."""
    return FOLDER / name.replace(" ", "_").replace(",", "")


def named(name: str, epochs: int, title: str) -> str:
    """Name a row."""
    return f"{name}, {epochs} epochs, {title}" if epochs else f"{name}, {title}"


def expected(name: str, epochs: int) -> set[str]:
    """Name the rows that a network has when it is done."""
    return {named(name, epochs, title) for title in ("flatconv", *TOOLS.values())}


def openvino(
    name: str, model: str, config: converter.Options, epochs: int
) -> Iterator[dict[str, Any]]:
    """Time and score original and flatconv's network, and their int8, in OpenVINO."""
    folder = place(name)
    by_flatconv(model, config, folder / "flatconv")
    source = open_source(model, None, config.changed(target_speedup=None, max_macs=None), None)
    ours = states(folder / "flatconv", source, epochs)["tuned" if epochs else "untuned"]
    assert source.calib is not None and source.eval is not None
    calib, scored = folder / "calib.npz", folder / "eval.npz"
    np.savez(calib, **source.calib.read(np.arange(min(source.calib.count, 256))))
    every = source.eval.read(np.arange(source.eval.count))
    assert source.eval.labels is not None
    np.savez(scored, **every, labels_of_all=source.eval.labels)
    try:
        command = [interpreter("openvino"), ROOT / "scripts" / "race_openvino.py", calib, scored]
        found = json.loads(run([*command, folder / "original.onnx", ours]).splitlines()[-1])
    except RuntimeError as error:
        yield {"name": named(name, epochs, "OpenVINO, original"), "reason": str(error)}
        return
    whole = found["original"]["accuracy"]
    for title, seen in found.items():
        state = "tuned" if epochs and title.startswith("flatconv") else "untuned"
        drop = 100 * (whole - seen.pop("accuracy"))
        row = {"name": named(name, epochs, f"OpenVINO, {title}"), **seen}
        yield row | {f"drop_points_{state}": drop}


def resnet18() -> nn.Module:
    """Build ResNet-18 with random weights, the same each time."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    return get_model("resnet18", pretrained=False)


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Measure every network that is not done yet."""
    train = str(options.data / "train.npz")
    for name, how in NETWORKS.items():
        if options.only and name not in options.only:
            continue
        model, budget = how["model"], {k: v for k, v in how.items() if k != "model"}
        number = model.rpartition("resnet")[2]
        checkpoint = ROOT / "sample_models" / "paper_cifar10.safetensors"
        if number.isdigit():
            checkpoint = next(options.checkpoints.glob(f"resnet{number}-*.th"), None)
            if checkpoint is None:
                raise SystemExit(f"{options.checkpoints} holds no resnet{number}-*.th.")
        config = converter.Options.of(
            checkpoint=checkpoint,
            calib=train,
            samples=SAMPLES,
            train=train,
            eval=str(options.data / "test.npz"),
            **budget,
        )
        if not expected(name, options.epochs) <= done:
            start = time.perf_counter()
            yield from peers(name, model, config, options.epochs)
            print(f"{name}: {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
        if options.openvino and named(name, options.epochs, "OpenVINO, original") not in done:
            yield from openvino(name, model, config, options.epochs)
    wanted = not options.only or TIMED in options.only
    if wanted and not expected(TIMED, 0) <= done:
        images = np.random.default_rng(0).standard_normal((IMAGES, 3, 224, 224))
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / "images.npz"
        if not path.exists():  # written again it would differ: it holds the time of day
            np.savez(path, x=images.astype(np.float32))
        config = converter.Options.of(target_speedup=3.0, calib=str(path))
        yield from peers(TIMED, "scripts.bench_peers:resnet18", config, 0)


def main() -> int:
    """Measure, print, and write ``scripts/results/peers.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--only", nargs="+", choices=(*NETWORKS, TIMED), help="these networks")
    gather("peers", rows, parser.parse_args())
    print(table("peers"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
