"""Read damaged inputs: ``python -m scripts.tools.fuzz KIND NUMBER [--seed N]`` reads one again.

Every input must be read, or refused by one sentence (``ConverterError``). The suite ``fuzz`` starts
this module in processes of its own, so that a crash costs one input.
"""

from __future__ import annotations

import argparse
import functools
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from converter.data.inputs import Input
from converter.errors import ConverterError
from converter.graph.canonicalize import canonicalize
from converter.graph.survey import survey
from converter.job import list_layers
from converter.models.checkpoint import load_states
from converter.models.datasets import read_data as read_samples
from converter.models.source import open_source
from converter.models.state_dict import load_into
from converter.options import LayerOptions, Options
from converter.search.manual import make_plan
from scripts.tools.fuzz_inputs import MAKE
from scripts.tools.fuzz_onnx import network

MEMORY_GIB = 3.0
HOSTILE = (Path("hostile_ran"), Path("/tmp/flatconv_hostile"), Path("../../hostile"))
BEGIN, END, PEAK = "@", "=", "#"  # what the lines of ``work`` start with


def read_checkpoint(path: Path) -> None:
    """Read weights as ``convert --checkpoint`` does."""
    model = nn.Sequential(*(nn.Conv2d(3, 4, 3, bias=False) for _ in range(3)))
    load_into(model, load_states(path), path)


def read_network(path: Path) -> None:
    """Read a network and list its layers, as ``inspect`` does."""
    options = Options.of(cache=False)
    list_layers(open_source(path, None, options), options.resources.seed)


def read_plan(path: Path) -> None:
    """Replay a plan on a network."""
    make_plan(_layers(), LayerOptions(plan=path), {"x": (1, 3, 8, 8)}, 0)


@functools.cache
def _layers() -> tuple[Any, ...]:
    model = canonicalize(ir.from_proto(network()))
    return tuple(survey(model, {"x": np.zeros((1, 3, 8, 8), np.float32)}))


def read_data(path: Path) -> None:
    """Read sample inputs as ``--calib`` does."""
    inputs = (Input("x", (None, 3, 8, 8), np.dtype(np.float32)),)
    data = read_samples(str(path), inputs, Options())
    data.read(np.arange(min(data.count, 4)))


READ: dict[str, Callable[[Path], None]] = {
    "checkpoint": read_checkpoint,
    "onnx": read_network,
    "plan": read_plan,
    "data": read_data,
}


def attempt(kind: str, number: int, seed: int) -> str:
    """Make an input and read it.

    Returns:
        ``read``, ``refused``, or what is wrong, beginning with ``BUG``.
    """
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = MAKE[kind](random.Random(f"{seed} {kind} {number}"), Path(folder))
        before = set(Path(folder).rglob("*"))
        try:
            READ[kind](path)
            outcome = "read"
        except ConverterError as error:
            outcome = "refused" if str(error).strip() else "BUG an empty message"
        written = set(Path(folder).rglob("*")) - before
        if written or any(path.exists() for path in HOSTILE):
            return f"BUG it wrote {sorted(map(str, written))}"
        return outcome


def work(kind: str, first: int, last: int, seed: int) -> None:
    """Read inputs one after the other under a limit of memory, and print the outcome of each."""
    torch.set_num_threads(1)
    attempt(kind, -1, seed)  # the limit counts from what the libraries take
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(MEMORY_GIB * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(first, last):
        print(f"\n{BEGIN} {number}", flush=True)
        try:
            outcome = attempt(kind, number, seed)
        except BaseException as error:
            outcome = f"BUG {type(error).__name__}: {str(error).splitlines()[:1]}"
        print(f"\n{END} {outcome}", flush=True)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{PEAK} {peak_gib:.3f}", flush=True)


def main() -> int:
    """Read one input here, with its traceback; or, with LAST, all from NUMBER on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("kind", choices=tuple(READ))
    parser.add_argument("number", type=int)
    parser.add_argument("last", type=int, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.last is None:
        print(attempt(options.kind, options.number, options.seed))
    else:
        work(options.kind, options.number, options.last, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
