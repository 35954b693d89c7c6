"""``python bundle.zip``: time the layers of a network on the target machine.

``flatconv measure net.onnx --prepare bundle.zip`` copies this file and those that it imports into
the bundle. They need onnxruntime and numpy, and nothing else of flatconv.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from converter.runtime.layer_times import VERSION, time_layers
from converter.runtime.ort_session import NodeTime, cpu_model, open_session, profile_nodes
from converter.runtime.stopwatch import TimingSettings

BUNDLE_FORMAT = "flatconv-bundle"


def make_feeds(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Make inputs of given shapes and types: normal random numbers, or zeros for integer types."""
    rng = np.random.default_rng(0)
    feeds = {}
    for name, item in inputs.items():
        dtype, shape = np.dtype(item["dtype"]), item["shape"]
        numbers = rng.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[name] = numbers.astype(dtype)
    return feeds


def main(arguments: Sequence[str] | None = None, settings: TimingSettings | None = None) -> int:
    """Time the bundle that this file is in, and write the latency table."""
    parser = argparse.ArgumentParser(prog="timer.py", description="Time the layers of a network.")
    parser.add_argument("bundle", type=Path, nargs="?", default=Path(__file__).parents[2])
    parser.add_argument("-o", "--output", type=Path, default=Path("latency.json"))
    options = parser.parse_args(arguments)

    def read(name: str) -> bytes:
        if options.bundle.is_dir():
            return bytes((options.bundle / name).read_bytes())
        with zipfile.ZipFile(options.bundle) as archive:
            return archive.read(name)

    try:
        manifest = json.loads(read("manifest.json"))
        if (manifest["format"], manifest["version"]) != (BUNDLE_FORMAT, VERSION):
            raise ValueError(f"it is no {BUNDLE_FORMAT} of version {VERSION}")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        parser.error(f"{options.bundle} cannot be used: {error}.")
    threads, provider = manifest["threads"], manifest["provider"]
    if provider not in onnxruntime.get_available_providers():
        parser.error(f"Provider {provider!r} is not available here.")
    manifest |= {"cpu": cpu_model(), "onnxruntime": onnxruntime.__version__}
    feeds = make_feeds(manifest["inputs"])

    def open_network(name: str, profile: str | None = None) -> Any:
        return open_session(read(name), threads, provider, profile=profile)

    def profile_network(name: str, seconds: float) -> tuple[NodeTime, ...]:
        return profile_nodes(lambda file: open_network(name, file), feeds, seconds)

    def show(done: float) -> None:
        print(f"\rmeasuring {done:4.0%}", end="", file=sys.stderr, flush=True)

    table = time_layers(manifest, open_network, profile_network, feeds, settings, show)
    options.output.write_text(json.dumps(table, indent=1) + "\n")
    print(f"\n{len(table['layers'])} layers, {table['ms']:.3f} ms in all; wrote {options.output}")
    print(*table["warnings"], sep="\n", end="", file=sys.stderr)
    return 0
