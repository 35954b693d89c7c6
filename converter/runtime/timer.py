"""Time the layers of a network, here or on the target machine.

The time of a network does not depend on its weights, and a profile gives the time of every layer.
So a few variants of the whole network are enough: variant n has each layer in its n-th option.
Layers are timed inside the network because fusion and memory layout depend on the neighbours.

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
MAX_SCALE = 1.25  # factor by which the scale may differ from the ratio of wall time to profile
MAX_GAP = 0.15  # relative difference between the time of a network and the sum over its nodes
WARNING = (
    "The times of the nodes and of the whole network ({:.3f} ms) differ by {:.0%}; "
    "measure again when the machine is idle."
)


def attribute(nodes: Sequence[NodeTime], ends: Sequence[Sequence[str]]) -> np.ndarray:
    """Add up a profile by layer.

    Most nodes are named by ``PREFIX`` and the number of their layer. onnxruntime names a node in
    the blocked layout (NCHWc) after its output. This may be the output of an addition of two
    layers: the node then belongs to the layer for whose last step there is no other node.

    Args:
        nodes: The profile of a network whose layers' nodes are named by ``PREFIX``.
        ends: By layer, the tensors that its nodes may be named after: the layer's output, and the
            outputs of the operators that are fused into it.

    Returns:
        Milliseconds (layers + 1,); the last entry is the time of all other nodes.
    """
    sums = np.zeros(len(ends) + 1)
    layers_by_end: dict[str, list[int]] = defaultdict(list)
    for layer, names in enumerate(ends):
        for name in names:
            layers_by_end[name].append(layer)
    shared: list[tuple[list[int], float]] = []
    done: set[int] = set()
    for node in nodes:
        number, _, step = node.name[len(PREFIX) :].partition(".")
        if node.name.startswith(PREFIX) and number.isdigit():
            sums[int(number)] += node.ms
            if not step:
                done.add(int(number))
        elif node.name in layers_by_end and any(
            operator in node.operator for operator in ("Conv", "Gemm", "MatMul")
        ):
            shared.append((layers_by_end[node.name], node.ms))
        else:
            sums[-1] += node.ms
    for candidates, ms in sorted(shared, key=lambda item: len(item[0])):  # unambiguous ones first
        owner = next((layer for layer in candidates if layer not in done), candidates[0])
        sums[owner] += ms
        done.add(owner)
    return sums


def time_layers(
    manifest: Mapping[str, Any],
    open_network: Callable[[str], Any],
    profile_network: Callable[[str, float], Sequence[NodeTime]],
    settings: TimingSettings | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Any]:
    """Time the variants of a network.

    Args:
        manifest: The variants and the conditions, as JSON values.
        open_network: Opens a network of the manifest, by name.
        profile_network: Profiles a network of the manifest, by name, for some seconds.
        settings: How long and how often networks are timed; ``DEFAULT_SETTINGS`` if left out.
        progress: Called with the fraction that is done.

    Returns:
        The latency table as JSON values; ``LatencyTable.from_document`` reads it.
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
    # The original is timed before each profile, to correct for changes in the machine's speed.
    slowness = np.array(base_s) / np.median(base_s)
    sums = np.array(profiles) / slowness[:, None]

    def race() -> tuple[float, float, float]:
        """Return the gap between profile and clock, the network's milliseconds, and the scale."""
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
        identity = {key: layer[key] for key in ("name", "output", "kernel", "geometry")}
        options = [{**option, "ms": t} for option, t in zip(layer["options"], options_ms)]
        layers.append({**identity, "ms": layer_ms, "options": options})
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
    """Return the least-squares factor from changes of the profiled time to changes of wall time.

    The factor is clipped to near the ratio of the times themselves, since only noise leads far
    from it.
    """
    x, y = profiled - profiled[0], wall_ms - wall_ms[0]
    ratio = float(np.median(wall_ms / profiled))
    slope = float(x @ y / (x @ x)) if x.any() else ratio
    return float(np.clip(slope, ratio / MAX_SCALE, ratio * MAX_SCALE))


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

    table = time_layers(manifest, open_network, profile_network, settings, show)
    options.output.write_text(json.dumps(table, indent=1) + "\n")
    print(f"\n{len(table['layers'])} layers, {table['ms']:.3f} ms in all; wrote {options.output}")
    print(*table["warnings"], sep="\n", end="", file=sys.stderr)
    return 0
