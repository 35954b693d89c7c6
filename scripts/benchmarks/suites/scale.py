"""Time and memory over the size of a network, and work shared by several processes.

Residual networks of 3x3 convolutions as ONNX files, random weights, no sample inputs, empty caches,
by the command line. Networks of many convolutions are brought to half of their MACs; those of many
weights are split in space. Twice the network should take twice the time and memory: each row gives
its deviation from the straight line through all. Then one network is solved on this machine's cores
and on a local Dask cluster, and one is fitted to sample inputs by one process and by two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from scripts.benchmarks.memory import peak_memory
from scripts.benchmarks.onnx_files import write_convolutions
from scripts.benchmarks.results import Row
from scripts.benchmarks.run import flags, run
from scripts.benchmarks.suite import Case, Figures, Settings, Suite

MAX_DEVIATION = 0.25  # from the straight line
DEPTHS, NARROW, IMAGE = (125, 250, 500, 1000), 16, 32
MILLIONS, WIDE, SMALL = (125, 250, 500, 1000), 512, 8
KERNEL = 3
HALF: dict[str, Any] = {"max_macs": 0.5}
SPATIAL: dict[str, Any] = {"form": "spatial", "rank": 0.25}
FLATTENED: dict[str, Any] = {"form": "flattened", "rank": 0.5}
CLUSTER_DEPTH, WORKERS = 100, 2
SOLVED = {
    0: f"{CLUSTER_DEPTH} layers, flattened, this machine's cores",
    WORKERS: f"{CLUSTER_DEPTH} layers, flattened, Dask cluster of {WORKERS} processes",
}
SHARED_DEPTH, SAMPLES = 20, 512
SHARED = {
    1: f"{SHARED_DEPTH} layers fitted to {SAMPLES} inputs, one process of one thread",
    2: f"{SHARED_DEPTH} layers fitted to {SAMPLES} inputs, two of one thread each",
}
PARALLEL = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]


def measure(
    depth: int,
    channels: int,
    size: int,
    values: dict[str, Any],
    processes: int = 0,
    calib_count: int = 0,
) -> Figures:
    """Convert one network, and measure time and memory.

    Args:
        depth: Number of convolutions.
        channels: Channels of each.
        size: Height and width of the input.
        values: Options by their flat names.
        processes: Processes of one thread each; 0 for one process of all threads.
        calib_count: Random sample inputs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = write_convolutions(folder, depth, channels, kernel=KERNEL, size=size, residual=True)
        if calib_count:
            rng = np.random.default_rng(1)
            x = rng.standard_normal((calib_count, channels, size, size), dtype=np.float32)
            np.savez(folder / "calib.npz", x=x)
            values = values | {"calib": folder / "calib.npz"}
        launch = [*PARALLEL, "--num_processes", processes] if processes > 1 else []
        command = [sys.executable, *launch, "-m", "converter", "convert", path, "--quiet"]
        environment = {"FLATCONV_CACHE": str(folder / "cache")}
        environment |= {"OMP_NUM_THREADS": "1"} if processes else {}
        start = time.perf_counter()
        with peak_memory(own=False) as memory:
            arguments = [*command, "-o", folder / "out", *flags(cache=False, **values)]
            run(arguments, environment, accepted=(0, 1))
        seconds = time.perf_counter() - start
        report = json.loads((folder / "out" / "report.json").read_text())
        return {
            "convolutions": depth,
            "weights": depth * channels**2 * KERNEL**2,
            "converted": sum(layer["form"] is not None for layer in report["layers"]),
            "seconds": seconds,
            **memory,
            "sha256": weights_digest(folder / "out" / "model.onnx"),
        }


def weights_digest(path: Path) -> str:
    """Hash the weights of a network, one after the other."""
    digest = hashlib.sha256()
    model = onnx.load(path, load_external_data=False)
    for tensor in sorted(model.graph.initializer, key=lambda t: t.name):
        array = onnx.numpy_helper.to_array(tensor, str(path.parent))
        digest.update(tensor.name.encode() + array.tobytes())
    return digest.hexdigest()[:16]


def many_convolutions(depth: int, settings: Settings) -> Figures:
    """Convert a network of many narrow convolutions."""
    return measure(depth, NARROW, IMAGE, HALF)


def many_weights(millions: int, settings: Settings) -> Figures:
    """Convert a network of wide convolutions."""
    depth = round(millions * 1e6 / (WIDE * KERNEL) ** 2)
    return measure(depth, WIDE, SMALL, SPATIAL)


def solved(workers: int, settings: Settings) -> Figures:
    """Solve a network on local workers of one thread each, or (0) on this machine's cores."""
    with contextlib.ExitStack() as stack:
        values = FLATTENED
        if workers:
            from distributed import LocalCluster

            cluster = LocalCluster(workers, threads_per_worker=1, dashboard_address=None)
            address = stack.enter_context(cluster).scheduler_address
            values = FLATTENED | {"cluster": address}
        return measure(CLUSTER_DEPTH, NARROW, IMAGE, values)


def shared(processes: int, settings: Settings) -> Figures:
    """Fit a network to sample inputs that several processes share."""
    return measure(SHARED_DEPTH, NARROW, IMAGE, FLATTENED, processes, SAMPLES)


def compare_rows(rows: list[Row]) -> list[Row]:
    """Give the deviations from the straight lines, and whether shared work gave the same."""
    judged = []
    for size, ending in {"convolutions": " convolutions", "weights": " weights"}.items():
        family = [row for row in rows if row["name"].endswith(ending)]
        for row in family:
            deviations = {}
            for key in ("seconds", "peak_gib") if len(family) > 2 else ():
                line = np.polyfit([r[size] for r in family], [r[key] for r in family], 1)
                deviations[f"{key}_off_line"] = row[key] / float(np.polyval(line, row[size])) - 1
            met = bool(deviations) and max(map(abs, deviations.values())) <= MAX_DEVIATION
            target = {"target": f"within {MAX_DEVIATION:g} of a line", "met": met}
            judged.append(row | deviations | target)
    for names in (SOLVED, SHARED):
        pair = [row for row in rows if row["name"] in names.values()]
        same = len(pair) == len(names) and len({row["sha256"] for row in pair}) == 1
        judged += [row | {"target": "the same weights", "met": same} for row in pair]
    return judged


SUITE = Suite(
    "scale",
    [
        *(Case(f"{depth} convolutions", partial(many_convolutions, depth)) for depth in DEPTHS),
        *(Case(f"{n} million weights", partial(many_weights, n)) for n in MILLIONS),
        *(Case(name, partial(solved, workers)) for workers, name in SOLVED.items()),
        *(Case(name, partial(shared, processes)) for processes, name in SHARED.items()),
    ],
    summarize=compare_rows,
    about="time and memory over the size of a network; several processes, a cluster",
)
