"""A zoo of architectures, made 1.5 and 3 times faster: what is delivered, what is refused and why.

Random weights (time does not depend on them), no sample inputs, one thread, batch 1; pytorchcv and
monai. Each conversion runs in a process of its own. Rows are written as they come; ``--resume``
keeps those there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench_results import ROOT, earlier_rows, table, write

sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import nn

import converter
from converter.evaluation.compare import versions
from converter.runtime.ort import cpu_model

TARGETS = (1.5, 3.0)
WANTED = {1.5: 9, 3.0: 4}
MOST_OFF, SHARE_WITHIN = 0.10, 0.9


def _cv(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from pytorchcv.model_provider import get_model

        options = {"aux": False} if "voc" in name else {}
        return get_model(name, pretrained=False, **options)

    return build


def _monai(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(**options)

    return build


IMAGE = (1, 3, 224, 224)
ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "AlexNet": (_cv("alexnet"), IMAGE),
    "VGG-16": (_cv("vgg16"), IMAGE),
    "ResNet-18": (_cv("resnet18"), IMAGE),
    "ResNet-50": (_cv("resnet50"), IMAGE),
    "DenseNet-121": (_cv("densenet121"), IMAGE),
    "Inception-v3": (_cv("inceptionv3"), (1, 3, 299, 299)),
    "SqueezeNet 1.1": (_cv("squeezenet_v1_1"), IMAGE),
    "MobileNet": (_cv("mobilenet_w1"), IMAGE),
    "WRN-16-10": (_cv("wrn16_10_cifar10"), (1, 3, 32, 32)),
    "FCN-8s (ResNet-D-50b)": (_cv("fcn8sd_resnetd50b_voc"), (1, 3, 320, 320)),
    "U-Net": (
        _monai("BasicUNet", spatial_dims=2, in_channels=3, out_channels=2),
        (1, 3, 256, 256),
    ),
    "3-D U-Net": (
        _monai("BasicUNet", spatial_dims=3, in_channels=1, out_channels=2),
        (1, 1, 48, 48, 48),
    ),
    "video ResNet-18": (
        _monai("resnet18", spatial_dims=3, n_input_channels=3, num_classes=400),
        (1, 3, 16, 112, 112),
    ),
    "1-D ResNet-18": (
        _monai("resnet18", spatial_dims=1, n_input_channels=12, num_classes=9),
        (1, 12, 4096),
    ),
}


def convert(name: str, target: float) -> dict[str, Any]:
    """Convert one network and take a row from its report."""
    build, shape = ZOO[name]
    torch.manual_seed(0)
    start = time.perf_counter()
    example = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    config = converter.Options.of(target_speedup=target)
    try:
        result = converter.convert(build().eval(), example, config)
    except converter.ConverterError as error:
        return {"reason": str(error)}
    report = result.report.to_dict()
    speedup = report["speedup"]
    return {
        "original_ms": report["original"]["latency_ms"]["median"],
        "speedup": speedup["median"],
        "speedup_low": speedup["low"],
        "speedup_high": speedup["high"],
        "predicted_speedup": report["predicted_speedup"],
        "macs_share": report["converted"]["macs"] / report["original"]["macs"],
        "delivered": speedup["median"] >= target,
        "convert_s": time.perf_counter() - start,
        "reason": report["reason"],
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count what was delivered, what came out slower, and how far predictions were off."""
    found = []
    for target, wanted in WANTED.items():
        delivered = sum(bool(row.get("delivered")) for row in rows if row["times"] == target)
        found.append(
            {
                "name": f"delivered at {target:g}x",
                "count": delivered,
                "target": f"at least {wanted} of {len(ZOO)}",
                "met": delivered >= wanted,
            }
        )
    measured = [row for row in rows if row.get("predicted_speedup")]
    off = [abs(row["predicted_speedup"] / row["speedup"] - 1) for row in measured]
    share = sum(o <= MOST_OFF for o in off) / max(len(off), 1)
    slower = sum(row["speedup_high"] < 1 for row in rows if "speedup_high" in row)
    found.append(
        {
            "name": "predicted within 10 %",
            "count": share,
            "target": f"at least {SHARE_WITHIN:g}",
            "met": share >= SHARE_WITHIN,
        }
    )
    return [*found, {"name": "slower", "count": slower, "target": "none", "met": slower == 0}]


def main() -> int:
    """Measure, print, and write ``scripts/results/zoo.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--older", action="store_true", help="--resume rows of other commits, too")
    parser.add_argument("--only", nargs="+", choices=tuple(ZOO), default=list(ZOO))
    parser.add_argument("--one", nargs=2, metavar=("NAME", "TIMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(convert(options.one[0], float(options.one[1]))))
        return 0
    kept = earlier_rows("zoo", options.older) if options.resume else []
    rows = [row for row in kept if "times" in row]
    done = {row["name"] for row in rows}
    conditions = {"cpu": cpu_model(), "threads": 1, "versions": versions()}
    for name in options.only:
        for target in TARGETS:
            title = f"{name}, {target:g}x"
            if title in done:
                continue
            command = [sys.executable, __file__, "--one", name, str(target)]
            ended = subprocess.run(command, capture_output=True, text=True)
            found = (
                json.loads(ended.stdout.splitlines()[-1])
                if ended.returncode == 0
                else {"reason": f"it crashed: {ended.stderr.strip().splitlines()[-1]}"}
            )
            rows.append({"name": title, "times": target, **found})
            print(rows[-1], flush=True)
            write("zoo", conditions, [*rows, *summary(rows)])
    print(table("zoo"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
