"""Race and score ONNX networks and their int8 (by NNCF) in OpenVINO, one thread.

Run by ``scripts/bench_peers.py`` in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import nncf
import numpy as np
import openvino

ROUNDS, BLOCK_S = 40, 0.05
NORMAL_99 = 2.576


def main() -> int:
    """Print time, speedup with its 99 % interval and accuracy of each network as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("calib", type=Path, help=".npz of inputs")
    parser.add_argument("eval", type=Path, help=".npz of inputs, and labels_of_all")
    parser.add_argument("original", type=Path)
    parser.add_argument("flattened", type=Path)
    options = parser.parse_args()
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # bfloat16 where the CPU has it, otherwise
    with np.load(options.calib) as file:
        inputs = {name: file[name] for name in file.files}
    with np.load(options.eval) as file:
        scored = {name: file[name] for name in inputs}
        labels = file["labels_of_all"]
    count = len(next(iter(inputs.values())))
    examples = [{n: a[i : i + 1] for n, a in inputs.items()} for i in range(count)]
    compiled = {}
    for name, path in {"original": options.original, "flatconv": options.flattened}.items():
        model = core.read_model(path)
        model.reshape({n: list(a.shape) for n, a in examples[0].items()})
        compiled[name] = core.compile_model(model, "CPU", settings)
        int8 = nncf.quantize(model, nncf.Dataset(examples), subset_size=count)
        compiled[f"{name} int8"] = core.compile_model(int8, "CPU", settings)
    requests = {name: network.create_infer_request() for name, network in compiled.items()}
    times: dict[str, list[float]] = {name: [] for name in requests}
    for number in range(ROUNDS):
        order = list(requests)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            request = requests[name]
            request.infer(examples[number % count])  # the first of a block finds cold caches
            calls, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < BLOCK_S:
                request.infer(examples[number % count])
                calls += 1
            times[name].append(1e3 * passed / calls)
    found = {}
    for name, request in requests.items():
        ratios = np.sort(np.divide(times["original"], times[name]))
        off = int(np.ceil(NORMAL_99 * ROUNDS**0.5 / 2))  # ranks about the median
        low, high = ratios[ROUNDS // 2 - off], ratios[ROUNDS // 2 + off - 1]
        hits = 0
        for number, label in enumerate(labels):
            request.infer({n: a[number : number + 1] for n, a in scored.items()})
            hits += int(request.get_output_tensor(0).data.argmax()) == label
        found[name] = {
            "speedup": float(np.median(ratios)),
            "speedup_low": float(low),
            "speedup_high": float(high),
            "median_ms": statistics.median(times[name]),
            "accuracy": hits / len(labels),
        }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
