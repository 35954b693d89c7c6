"""Race and score ONNX networks and their int8 (by NNCF) in OpenVINO, one thread.

The suite ``peers`` runs this in an environment of its own, which has OpenVINO and NNCF only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino

ROUNDS, BLOCK_S = 40, 0.05
NORMAL_99 = 2.576
SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",  # OpenVINO takes bfloat16 by default if the CPU has it
}
Feeds = dict[str, np.ndarray]


def compiled(paths: dict[str, Path], examples: list[Feeds]) -> dict[str, Any]:
    """Open each network and its int8; requests by name."""
    core, requests = openvino.Core(), {}
    for name, path in paths.items():
        model = core.read_model(path)
        model.reshape({n: list(a.shape) for n, a in examples[0].items()})
        requests[name] = core.compile_model(model, "CPU", SETTINGS).create_infer_request()
        int8 = nncf.quantize(model, nncf.Dataset(examples), subset_size=len(examples))
        requests[f"{name} int8"] = core.compile_model(int8, "CPU", SETTINGS).create_infer_request()
    return requests


def race(requests: dict[str, Any], examples: list[Feeds]) -> dict[str, list[float]]:
    """Time networks in turns; milliseconds by name, one a round."""
    times_ms: dict[str, list[float]] = {name: [] for name in requests}
    names = list(requests)
    for number in range(ROUNDS):
        feeds, first = examples[number % len(examples)], number % len(names)
        for name in names[first:] + names[:first]:
            requests[name].infer(feeds)  # the first call of a block has cold caches
            calls, start = 0, time.perf_counter()
            while (passed_s := time.perf_counter() - start) < BLOCK_S:
                requests[name].infer(feeds)
                calls += 1
            times_ms[name].append(1e3 * passed_s / calls)
    return times_ms


def accuracy(request: Any, inputs: Feeds, labels: np.ndarray) -> float:
    """Score a network."""
    hits = 0
    for number, label in enumerate(labels):
        request.infer({n: a[number : number + 1] for n, a in inputs.items()})
        hits += int(request.get_output_tensor(0).data.argmax()) == label
    return hits / len(labels)


def main() -> int:
    """Print time, speedup with its 99 % interval and accuracy of each network as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("calib", type=Path, help=".npz of inputs")
    parser.add_argument("eval", type=Path, help=".npz of inputs, and labels_of_all")
    parser.add_argument("original", type=Path)
    parser.add_argument("converted", type=Path)
    options = parser.parse_args()
    with np.load(options.calib) as file:
        inputs = {name: file[name] for name in file.files}
    with np.load(options.eval) as file:
        scored, labels = {name: file[name] for name in inputs}, file["labels_of_all"]
    count = len(next(iter(inputs.values())))
    examples = [{n: a[i : i + 1] for n, a in inputs.items()} for i in range(count)]
    requests = compiled({"original": options.original, "flatconv": options.converted}, examples)
    times_ms = race(requests, examples)
    offset = int(np.ceil(NORMAL_99 * ROUNDS**0.5 / 2))  # ranks about the median
    figures = {}
    for name, request in requests.items():
        ratios = np.sort(np.divide(times_ms["original"], times_ms[name]))
        figures[name] = {
            "speedup": float(np.median(ratios)),
            "speedup_low": float(ratios[ROUNDS // 2 - offset]),
            "speedup_high": float(ratios[ROUNDS // 2 + offset - 1]),
            "median_ms": statistics.median(times_ms[name]),
            "accuracy": accuracy(request, scored, labels),
        }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
