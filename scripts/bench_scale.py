"""Time and memory over the size of a network: many convolutions, many weights; and a cluster.

Residual networks of 3x3 convolutions as ONNX files, random weights, no sample inputs; each in a
process of its own with empty caches. Those of many convolutions are brought to half of their
multiply-accumulates, forms and ranks chosen by measured time; those of many weights are split in
space. Twice the network should take twice the time and twice the memory: each row says how far it
is off the straight line through all. Then one network is solved on this machine's cores and on a
local Dask cluster of processes, and one is fitted to sample inputs by one process and by two that
share them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_results import ROOT, gather, memory_watched, resumable, table

sys.path.insert(0, str(ROOT))

import numpy as np
import onnx
from onnx import TensorProto, helper

import converter
from converter.evaluation.compare import Progress
from converter.processes import process_group

MOST_OFF = 0.25  # of the straight line
DEPTHS, NARROW, IMAGE = (125, 250, 500, 1000), 16, 32
MILLIONS, WIDE, SMALL = (125, 250, 500, 1000), 512, 8
KERNEL = 9
HALF: dict[str, Any] = {"max_macs": 0.5}
SPATIAL: dict[str, Any] = {"form": ["spatial"], "rank": ["0.25"]}
FLATTENED: dict[str, Any] = {"form": ["flattened"], "rank": ["0.5"]}
CLUSTER_DEPTH, WORKERS = 100, 2
SOLVED = {
    None: f"{CLUSTER_DEPTH} layers, flattened, this machine's cores",
    WORKERS: f"{CLUSTER_DEPTH} layers, flattened, Dask cluster of {WORKERS} processes",
}
SHARED_DEPTH, SAMPLES = 20, 512
SHARED = {
    1: f"{SHARED_DEPTH} layers fitted to {SAMPLES} inputs, one process of one thread",
    2: f"{SHARED_DEPTH} layers fitted to {SAMPLES} inputs, two of one thread each",
}


def build(path: Path, depth: int, channels: int, size: int) -> None:
    """Write a residual network; its weights go to a file beside it."""
    rng, nodes, weights, value, offset = np.random.default_rng(0), [], [], "x", 0
    with path.with_suffix(".data").open("wb") as file:
        for n in range(depth):
            kernel = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32)
            kernel *= (2 / channels / KERNEL / depth) ** 0.5  # what is added up stays finite
            tensor = TensorProto(name=f"w{n}", dims=kernel.shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            place = {
                "location": file.name.rsplit("/", 1)[-1],
                "offset": offset,
                "length": kernel.nbytes,
            }
            for key, entry in place.items():
                tensor.external_data.add(key=key, value=str(entry))
            file.write(kernel.tobytes())
            offset += kernel.nbytes
            weights.append(tensor)
            nodes += [
                helper.make_node("Conv", [value, f"w{n}"], [f"c{n}"], f"conv{n}", pads=[1] * 4),
                helper.make_node("Relu", [f"c{n}"], [f"r{n}"]),
                helper.make_node("Add", [value, f"r{n}"], [f"a{n}"]),
            ]
            value = f"a{n}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
    shapes = {"x": [1, channels, size, size], "y": [1, channels, 1, 1]}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    graph = helper.make_graph(nodes, "scale", [x], [y], weights)
    opsets = [helper.make_opsetid("", 19)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def convert(
    depth: int, channels: int, size: int, samples: int = 0, **how: Any
) -> dict[str, Any] | None:
    """Convert one network, fitted to random inputs if asked to.

    Returns:
        What it took; None in processes that only run_worker.
    """
    config = converter.Options.of(cache=False, **how)
    calib = None
    if samples:
        rng = np.random.default_rng(1)
        calib = rng.standard_normal((samples, channels, size, size), dtype=np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "net.onnx"
        build(path, depth, channels, size)
        if process_group("cpu").rank:
            converter.run_worker(path, options=config, calib=calib)
            return None
        start = time.perf_counter()
        with memory_watched() as memory:
            result = converter.convert(path, options=config, calib=calib, progress=timed(start))
            result.save(Path(scratch) / "out")
        seconds = time.perf_counter() - start
        digest = hashlib.sha256()
        for name, value in sorted(result.converted.graph.initializers.items()):
            digest.update(name.encode() + value.const_value.tobytes())
        return {
            "convolutions": depth,
            "weights": depth * channels**2 * KERNEL,
            "converted": len(result.plan.chosen()),
            "seconds": seconds,
            **memory,
            "sha256": digest.hexdigest()[:16],
        }


def timed(start: float) -> Progress:
    """Tell on stderr when each stage begins, in seconds from ``start``."""
    seen = []

    def progress(stage: str, done: float) -> None:
        if seen[-1:] != [stage]:
            seen.append(stage)
            print(f"{time.perf_counter() - start:8.1f} s {stage}", file=sys.stderr, flush=True)

    return progress


def apart(depth: int, channels: int, size: int, processes: int = 0, **how: Any) -> dict[str, Any]:
    """Run ``convert`` in a process of its own, or in so many of one thread each."""
    asked = json.dumps({"depth": depth, "channels": channels, "size": size, **how})
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
    launch += ["--num_processes", str(processes)]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"FLATCONV_CACHE": cache}
        if processes:
            environment |= {"OMP_NUM_THREADS": "1"}
        found = subprocess.run(
            [sys.executable, *(launch if processes > 1 else []), __file__, "--one", asked],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=environment,
        ).stdout
    return dict(json.loads(found.splitlines()[-1]))


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Measure every row that is not done yet."""
    for depth in DEPTHS[: options.sizes]:
        if f"{depth} convolutions" not in done:
            yield {"name": f"{depth} convolutions", **apart(depth, NARROW, IMAGE, **HALF)}
    for millions in MILLIONS[: options.sizes]:
        name = f"{millions} million weights"
        if name not in done:
            depth = round(millions * 1e6 / (WIDE**2 * KERNEL))
            yield {"name": name, **apart(depth, WIDE, SMALL, **SPATIAL)}
    for workers, name in SOLVED.items():
        if name not in done:
            yield {"name": name, **on_cluster(workers)}
    for processes, name in SHARED.items():
        if name not in done:
            how = FLATTENED | {"samples": SAMPLES, "processes": processes}
            yield {"name": name, **apart(SHARED_DEPTH, NARROW, IMAGE, **how)}


def on_cluster(workers: int | None) -> dict[str, Any]:
    """Solve a network on local workers of one thread each, or (None) on the cores."""
    if workers is None:
        return apart(CLUSTER_DEPTH, NARROW, IMAGE, **FLATTENED)
    from distributed import LocalCluster

    with LocalCluster(workers, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        return apart(CLUSTER_DEPTH, NARROW, IMAGE, cluster=address, **FLATTENED)


def judged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say how far each row is off the straight lines, and whether the cluster gave the same."""
    families = {
        size: [row for row in found if row["name"].endswith(ending)]
        for size, ending in {"convolutions": " convolutions", "weights": " weights"}.items()
    }
    out = []
    for size, family in families.items():
        for row in family:
            off = {}
            for key in ("seconds", "peak_gib") if len(family) > 2 else ():
                line = np.polyfit([r[size] for r in family], [r[key] for r in family], 1)
                off[f"{key}_off_line"] = row[key] / float(np.polyval(line, row[size])) - 1
            met = bool(off) and max(map(abs, off.values())) <= MOST_OFF
            out.append(row | off | {"target": f"within {MOST_OFF:g} of a line", "met": met})
    for names in (SOLVED, SHARED):
        pair = [row for row in found if row["name"] in names.values()]
        same = len(pair) == len(names) and len({row["sha256"] for row in pair}) == 1
        out += [row | {"target": "the same weights", "met": same} for row in pair]
    return out


def main() -> int:
    """Measure, print, and write ``scripts/results/scale.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--sizes", type=int, default=len(DEPTHS), help="the smallest so many only")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        row = convert(**json.loads(options.one))
        if row is not None:
            print(json.dumps(row))
        return 0
    gather("scale", rows, options, judged)
    print(table("scale"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
