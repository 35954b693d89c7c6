"""Time the layers of a network, here or on the target machine.

The time of a network does not depend on its weights. A few variants of the whole network are
enough: variant n has each layer in its n-th option, and the runtime's profile gives the time of
each layer with the fusions and layouts that it gets there.

``flatconv measure net.onnx --prepare bundle.zip`` copies this file, ``ort_session.py`` and
``stopwatch.py`` into the bundle. They need onnxruntime and numpy, and nothing else of flatconv.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from converter.runtime import stopwatch
from converter.runtime.ort_session import NodeTime, cpu_model, open_session, profile_nodes
from converter.runtime.stopwatch import TimedSession, TimingSettings

FORMAT, BUNDLE_FORMAT, VERSION = "flatconv-latency", "flatconv-bundle", 1
PREFIX = "flatconv_"  # of the names of a layer's nodes; the layer's number follows
MAX_SCALE = 1.25
MAX_GAP = 0.15  # between the time of a network and the sum of its nodes, as a share
WARNING = (
    "The times of the nodes and of the whole network ({:.3f} ms) differ by {:.0%}; "
    "measure again when the machine is idle."
)


def attribute(nodes: Sequence[NodeTime], ends: Sequence[Sequence[str]]) -> np.ndarray:
    """Add up a profile by layer; the time of all other nodes comes last.

    A node in the blocked layout has the name of its output. That may be the output of an addition
    that two layers lead to: the node belongs to the layer whose last step has no other node.

    Args:
        nodes: The profile of a network whose layers' nodes are named by ``PREFIX``.
        ends: By layer, the tensors that its node may be named after: its output, and the outputs
            of what is fused into it.

    Returns:
        (layers + 1,) milliseconds.
    """
    sums = np.zeros(len(ends) + 1)
    ended: dict[str, list[int]] = defaultdict(list)
    for layer, names in enumerate(ends):
        for name in names:
            ended[name].append(layer)
    shared: list[tuple[list[int], float]] = []
    done: set[int] = set()
    for node in nodes:
        number, _, step = node.name[len(PREFIX) :].partition(".")
        if node.name.startswith(PREFIX) and number.isdigit():
            sums[int(number)] += node.ms
            if not step:
                done.add(int(number))
        elif node.name in ended and any(k in node.operator for k in ("Conv", "Gemm", "MatMul")):
            shared.append((ended[node.name], node.ms))
        else:
            sums[-1] += node.ms
    for owners, ms in sorted(shared, key=lambda item: len(item[0])):
        free = [layer for layer in owners if layer not in done] or owners
        sums[free[0]] += ms
        done.add(free[0])
    return sums


def time_layers(
    manifest: Mapping[str, Any],
    open_network: Callable[[str], Any],
    profile_network: Callable[[str, float], Sequence[NodeTime]],
    settings: TimingSettings | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Any]:
    """Time the variants of a network, and give the latency table as JSON values.

    Args:
        manifest: Describes the variants and the conditions.
        open_network: Opens a network of the manifest, by name.
        profile_network: Profiles a network of the manifest, by name, for some seconds.
        settings: How long and how often, if not the default.
        progress: Called with the share done.
    """
    settings = settings or stopwatch.DEFAULT_SETTINGS
    feeds, names = make_feeds(manifest["inputs"]), manifest["networks"]
    ends = [layer["ends"] for layer in manifest["layers"]]
    raced = np.linspace(1, len(names) - 1, min(settings.variants, len(names) - 1), dtype=int)
    base = TimedSession.of(open_network(names[0]), feeds, settings)
    base_s, profiles = [], []
    for number, name in enumerate(names):
        base_s.append(base.seconds())
        profiles.append(attribute(profile_network(name, settings.profile_s), ends))
        progress((number + 1) / (len(names) + len(raced)))
    slow = np.array(base_s) / np.median(base_s)  # a shared machine has slow moments
    sums = np.array(profiles) / slow[:, None]

    def race() -> tuple[float, float, float]:
        """Return what profile and clock differ by, the time of the network, and the scale."""
        ratios = [1.0]
        for number in raced:
            variant = TimedSession.of(open_network(names[number]), feeds, settings)
            ratios.append(variant.ratio_to(base))
            progress((len(names) + len(ratios) - 1) / (len(names) + len(raced)))
        ms = 1e3 * float(np.median([base.seconds() for _ in range(settings.rounds)]))
        scale = _scale(sums[[0, *raced]].sum(1), ms * np.array(ratios))
        return abs(1 - scale * float(sums[0].sum()) / ms), ms, scale

    gap, ms, scale = race()
    if gap > MAX_GAP:
        sums[0] = attribute(profile_network(names[0], settings.profile_s), ends)
        gap, ms, scale = race()
    float_ms = None
    if manifest.get("float") is not None:
        in_float = TimedSession.of(open_network(manifest["float"]), feeds, settings)
        float_ms = ms * in_float.ratio_to(base)
    layers = []
    for layer, (layer_ms, *options_ms) in zip(manifest["layers"], (scale * sums.T).tolist()):
        known = {key: layer[key] for key in ("name", "output", "kernel", "geometry")}
        options = [{**option, "ms": t} for option, t in zip(layer["options"], options_ms)]
        layers.append({**known, "ms": layer_ms, "options": options})
    conditions = ("cpu", "onnxruntime", "provider", "threads", "block")
    return {
        "format": FORMAT,
        "version": VERSION,
        **{key: manifest[key] for key in conditions},
        "input_shapes": {name: list(array.shape) for name, array in feeds.items()},
        "ms": ms,
        "float_ms": float_ms,
        "layers": layers,
        "warnings": [WARNING.format(ms, gap)] if gap > MAX_GAP else [],
    }


def _scale(profiled: np.ndarray, wall_ms: np.ndarray) -> float:
    """Least-squares factor from changes of the profiled time to changes of the real time.

    It stays near the ratio of the times themselves; only noise leads far from that.
    """
    x, y = profiled - profiled[0], wall_ms - wall_ms[0]
    whole = float(np.median(wall_ms / profiled))
    slope = float(x @ y / (x @ x)) if x.any() else whole
    return float(np.clip(slope, whole / MAX_SCALE, whole * MAX_SCALE))


def make_feeds(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Make random inputs of given shapes and types; zeros where the type is no float."""
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
    given = parser.parse_args(arguments)

    def read(name: str) -> bytes:
        if given.bundle.is_dir():
            return bytes((given.bundle / name).read_bytes())
        with zipfile.ZipFile(given.bundle) as archive:
            return archive.read(name)

    try:
        manifest = json.loads(read("manifest.json"))
        if (manifest["format"], manifest["version"]) != (BUNDLE_FORMAT, VERSION):
            raise ValueError(f"it is no {BUNDLE_FORMAT} of version {VERSION}")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        parser.error(f"{given.bundle} cannot be used: {error}.")
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

    table = time_layers(manifest, open_network, profile_network, settings, show)
    given.output.write_text(json.dumps(table, indent=1) + "\n")
    print(f"\n{len(table['layers'])} layers, {table['ms']:.3f} ms in all; wrote {given.output}")
    print(*table["warnings"], sep="\n", end="", file=sys.stderr)
    return 0
