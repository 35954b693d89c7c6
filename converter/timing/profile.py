"""The latency table: a network's layers timed in onnxruntime, in all forms, in their surroundings.

The time of a network does not depend on its weights, so that a handful of variants of the whole
network with zeros for weights tells all: variant n has each layer in its n-th option, and the
runtime's profile says what each layer took, with the fusions and layouts that it really gets.
Needs onnxruntime and numpy alone, and so runs on the machine that the network is meant for.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.form import Rank
from converter.decomposition.ranks import rank_grid
from converter.errors import ConverterError
from converter.graph import onnx_proto as light
from converter.graph.nodes import chain_nodes
from converter.runtime.ort import cpu_model, open_file, run
from converter.timing.latency import LatencyTable, LayerTimes, Timed
from converter.timing.sites import PREFIX, Site, find_sites, written

PROFILE_S, FEWEST_CALLS, MOST_CALLS = 0.25, 4, 60
# Races against the network as it is, of a few variants: blocks, and a pause before each.
RACED, ROUNDS, BLOCK_S, PAUSE_S = 4, 7, 0.03, 0.02
BLOCKS = (16, 8)
MOST_OFF = 1.25
TIMED = "_kernel_time"
TOKEN = re.compile(r"_token_\d+$")  # of the nodes that the runtime makes in int8


def measure(
    content: bytes,
    name: str,
    shapes: Mapping[str, Sequence[int]],
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    weights: Path | None = None,
    others: bool = True,
    only: Mapping[str, tuple[str, Rank]] | None = None,
    quantized: Callable[[bytes], bytes] | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> LatencyTable:
    """Time a network's layers, as they are and in other forms.

    Args:
        content: The network, an ONNX file.
        name: Of the file.
        shapes: Input shapes by name, batch included; what is left out is as the network says.
        threads: Of onnxruntime.
        provider: Its execution provider.
        weights: Folder of the files that hold weights, or None where ``content`` has them all.
        others: Whether other forms are timed too, which takes much longer.
        only: The form and rank of some layers, by the name of the output, that are timed and no
            others.
        quantized: Makes int8 of a network, to time that; None to time it in floating point.
        progress: Called with the share done.

    Raises:
        ConverterError: When the network cannot be read or run.
    """
    in_float = partial(open_file, threads=threads, provider=provider, weights=weights)

    def opened(content: bytes, **how: Any) -> onnxruntime.InferenceSession:
        return in_float(content if quantized is None else quantized(content), **how)

    model = light.parse(content, name, weights)
    feeds = _feeds(model, shapes)
    sites = find_sites(model, feeds, weights)
    block = find_block(provider)

    def timed(site: Site) -> list[tuple[str, Rank]]:
        if only is not None:
            return [only[site.output]] if site.output in only else []
        return rank_grid(site.conv, site.size, block) if others and site.conv is not None else []

    options = [timed(site) for site in sites]
    variants = [
        {n: ranks[number] for n, ranks in enumerate(options) if number < len(ranks)}
        for number in range(max(map(len, options), default=0))
    ]
    raced = np.linspace(0, len(variants) - 1, min(RACED, len(variants)), dtype=int)
    todo = 1 + len(variants) + len(raced)
    base = _Network.of(opened(written(model, sites, {})), feeds)
    profiles, base_s = [], []
    for number, variant in enumerate([{}, *variants]):
        base_s.append(base.seconds())
        profiles.append(_profile(opened, written(model, sites, variant), feeds))
        progress((number + 1) / todo)
    slow = np.array(base_s) / np.median(base_s)  # a shared machine has slow moments
    sums = [_by_site(profile, sites) / factor for profile, factor in zip(profiles, slow)]
    ratios = [1.0]
    for number in raced:
        other = _Network.of(opened(written(model, sites, variants[number])), feeds)
        ratios.append(_ratio(base, other))
        progress((len(profiles) + len(ratios) - 1) / todo)
    base_ms = 1e3 * float(np.median([base.seconds() for _ in range(ROUNDS)]))
    float_ms = None
    if quantized is not None:
        other = _Network.of(in_float(written(model, sites, {})), feeds)
        float_ms = base_ms * _ratio(base, other)
    profiled = np.array([sums[n].sum() for n in (0, *(raced + 1))])
    scale = _scale(profiled, base_ms * np.array(ratios))
    layers = [
        LayerTimes(
            site.output,
            site.kernel,
            site.geometry,
            scale * float(sums[0][n]),
            tuple(
                Timed(form, rank, scale * float(sums[1 + number][n]))
                for number, (form, rank) in enumerate(options[n])
            ),
        )
        for n, site in enumerate(sites)
    ]
    return LatencyTable(
        cpu=cpu_model(),
        onnxruntime=onnxruntime.__version__,
        provider=provider,
        threads=threads,
        input_shapes={name: array.shape for name, array in feeds.items()},
        block=block,
        ms=base_ms,
        layers=tuple(layers),
        float_ms=float_ms,
    )


@dataclass(frozen=True)
class NodeTime:
    """What a node takes that the runtime made of a network.

    Attributes:
        operator: Its kind.
        name: As the runtime calls it.
        ms: Milliseconds a call of the network.
    """

    operator: str
    name: str
    ms: float


def node_times(
    path: Path,
    shapes: Sequence[Sequence[int]],
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
) -> tuple[NodeTime, ...]:
    """Time the nodes of a network of any kind, in the order in which they run.

    Args:
        path: An ONNX file.
        shapes: Of its inputs, in order, batch included.
        threads: Of onnxruntime.
        provider: Its execution provider.

    Raises:
        ConverterError: When the network cannot be read or run.
    """
    content, folder = path.read_bytes(), path.resolve().parent
    model = light.parse(content, str(path), folder)
    feeds = _feeds(model, dict(zip(light.inputs(model), shapes)))
    opened = partial(open_file, threads=threads, provider=provider, weights=folder)
    found = _profile(opened, content, feeds)
    return tuple(NodeTime(operator, name, ms) for (operator, name), ms in found.items())


def find_block(provider: str) -> int:
    """Find out how many channels the runtime computes together: it pads kernels to that."""
    kernel = np.zeros((2, BLOCKS[0], 3, 3), np.float32)
    conv = Conv(kernel, None, (1, 1), ((1, 1), (1, 1)), (1, 1))
    model = light.MESSAGES["ModelProto"](ir_version=8)
    model.opset_import.add(version=13)
    node = model.graph.node.add(op_type="Identity")
    node.input.append("x")
    node.output.append("y")
    model.graph.name = "block"
    for values, name, sizes in (
        (model.graph.input, "x", (1, BLOCKS[0], 8, 8)),
        (model.graph.output, "y", (1, 2, 8, 8)),
    ):
        tensor = values.add(name=name).type.tensor_type
        tensor.elem_type = 1
        for size in sizes:
            tensor.shape.dim.add(dim_value=size)
    content = light.replaced(model, {"y": chain_nodes(Chain((conv,)), "x", "conv")}, {})
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        open_file(content, 1, provider, optimized=written)
        optimized = light.parse(written.read_bytes(), "The optimized network")
    found = max((t.dims[0] for t in optimized.graph.initializer if len(t.dims) == 4), default=0)
    return found if found in BLOCKS else BLOCKS[1]


@dataclass(frozen=True)
class _Network:
    """A network that is open and fed."""

    session: onnxruntime.InferenceSession
    feeds: Mapping[str, np.ndarray]
    calls: int

    @classmethod
    def of(cls, session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> _Network:
        run(session, feeds)
        start = time.perf_counter()
        run(session, feeds)
        seconds = time.perf_counter() - start
        return cls(session, feeds, int(np.clip(BLOCK_S / seconds, 1, MOST_CALLS)))

    def seconds(self) -> float:
        """Time of one call, in a block after a pause in which the threads of others fall asleep."""
        time.sleep(PAUSE_S)
        run(self.session, self.feeds)
        start = time.perf_counter()
        for _ in range(self.calls):
            run(self.session, self.feeds)
        return (time.perf_counter() - start) / self.calls


def _ratio(base: _Network, other: _Network) -> float:
    """Time of ``other`` over that of ``base``, in turn."""
    return float(np.median([other.seconds() / base.seconds() for _ in range(ROUNDS)]))


def _scale(profiled: np.ndarray, wall_ms: np.ndarray) -> float:
    """Least-squares factor from the changes of profiled time to those of real time.

    Held near that of the times themselves, from which only the noise of a busy machine leads far.
    """
    x, y = profiled - profiled[0], wall_ms - wall_ms[0]
    whole = float(np.median(wall_ms / profiled))
    found = float(x @ y / (x @ x)) if x.any() else whole
    return float(np.clip(found, whole / MOST_OFF, whole * MOST_OFF))


def _feeds(model: light.Message, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Make random inputs; zeros where the type is not a float."""
    rng = np.random.default_rng(0)
    feeds = {}
    for name, (shape, dtype) in light.inputs(model).items():
        wanted = shapes.get(name, [*(size or 1 for size in shape[:1]), *shape[1:]])
        sizes = [size for size in wanted if size is not None]
        if len(sizes) != len(shape):
            raise ConverterError(f"Input {name!r} has free sizes; give --input-shape {name}:...")
        numbers = rng.standard_normal(sizes) if dtype.kind == "f" else np.zeros(sizes)
        feeds[name] = numbers.astype(dtype)
    return feeds


def _profile(
    opened: Callable[..., onnxruntime.InferenceSession],
    content: bytes,
    feeds: Mapping[str, np.ndarray],
) -> dict[tuple[str, str], float]:
    """Profile a network: milliseconds a call, by operator and name of the node."""
    with tempfile.TemporaryDirectory() as folder:
        session = opened(content, profile=Path(folder) / "profile")
        time.sleep(PAUSE_S)
        calls, start = 0, time.perf_counter()
        while calls < FEWEST_CALLS or (
            calls < MOST_CALLS and time.perf_counter() - start < PROFILE_S
        ):
            run(session, feeds)
            calls += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(TIMED):
            key = (event["args"].get("op_name", ""), event["name"].removesuffix(TIMED))
            found[key].append(event["dur"] / 1e3)
    return {
        key: len(durations) / calls * float(np.median(durations[len(durations) // 4 :]))
        for key, durations in found.items()
    }


def _by_site(profile: Mapping[tuple[str, str], float], sites: Sequence[Site]) -> np.ndarray:
    """Add up a profile by site; what belongs to none comes last.

    A node in the blocked layout is called after its output, which may be that of an addition
    that two layers lead to: it is the one of which no other last step was found.
    """
    sums = np.zeros(len(sites) + 1)
    ended: dict[str, list[int]] = defaultdict(list)
    for n, site in enumerate(sites):
        for name in site.ends:
            ended[name].append(n)
    left: list[tuple[list[int], float]] = []
    done: set[int] = set()
    for (kind, name), ms in profile.items():
        name = TOKEN.sub("", name.removeprefix("fused ").removesuffix("_nchwc"))
        owner, _, step = name.removeprefix(PREFIX).partition(".")
        if name.startswith(PREFIX) and owner.isdigit():
            sums[int(owner)] += ms
            if not step:
                done.add(int(owner))
        elif name in ended and any(part in kind for part in ("Conv", "Gemm", "MatMul")):
            left.append((ended[name], ms))
        else:
            sums[-1] += ms
    for owners, ms in sorted(left, key=lambda item: len(item[0])):
        free = [n for n in owners if n not in done] or owners
        sums[free[0]] += ms
        done.add(free[0])
    return sums
