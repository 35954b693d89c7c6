"""Race ONNX networks and their int8 (by NNCF) in OpenVINO, one thread; run by bench_peers.py."""

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


def main() -> int:
    """Print the median milliseconds a call of each network as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calib", type=Path, help=".npz of inputs")
    parser.add_argument("original", type=Path)
    parser.add_argument("flattened", type=Path)
    options = parser.parse_args()
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # bfloat16 where the CPU has it, otherwise
    with np.load(options.calib) as file:
        inputs = {name: file[name] for name in file.files}
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
        for name, request in requests.items():
            calls, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < BLOCK_S:
                request.infer(examples[number % count])
                calls += 1
            times[name].append(1e3 * passed / calls)
    print(json.dumps({name: statistics.median(found) for name, found in times.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
