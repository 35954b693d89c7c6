"""The latency table: a network's layers timed in onnxruntime, in all forms, in their surroundings.

The time of a network does not depend on its weights, so that a handful of variants of the whole
network with zeros for weights tells all: variant n has each layer in its n-th option, and the
runtime's profile says what each layer took, with the fusions and layouts that it really gets.
Needs onnxruntime and numpy alone, and so runs on the machine that the network is meant for.
"""

from __future__ import annotations

import json
import math
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

from converter.errors import ConverterError
from converter.kernels.conv import Chain, Conv
from converter.kernels.form import Rank, skeleton
from converter.kernels.forms import find_form
from converter.networks import light
from converter.networks.nodes import (
    CONVOLUTIONS,
    PRODUCTS,
    Piece,
    chain_nodes,
    read_conv,
    read_linear,
)
from converter.networks.runtime import cpu_model, open_file, run
from converter.planning.ladder import ladder
from converter.planning.latency import LatencyTable, LayerTimes, Timed

PROFILE_S, FEWEST_CALLS, MOST_CALLS = 0.25, 4, 60
# Races against the network as it is, of a few variants: blocks, and a pause before each.
RACED, ROUNDS, BLOCK_S, PAUSE_S = 4, 7, 0.03, 0.02
BLOCKS = (16, 8)
MOST_OFF = 1.25
PREFIX, TIMED = "flatconv_", "_kernel_time"
TOKEN = re.compile(r"_token_\d+$")  # of the nodes that the runtime makes in int8
FUSED = ("Relu", "Add", "Sum", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "PRelu",
         "BatchNormalization", "Mul", "HardSwish")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A convolution or linear layer in a file.

    Attributes:
        output: Name of the tensor that it gives.
        source: Name of the tensor that it takes.
        conv: With zeros for weights; None where it has to stay.
        kernel: Shape of its kernel.
        size: Spatial size of its input.
        matrix: Whether its input has two axes.
        ends: Names that the runtime may give it: of its output, and of what is fused into it.
    """

    output: str
    source: str
    conv: Conv | None
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    matrix: bool
    ends: tuple[str, ...]

    @property
    def geometry(self) -> tuple[int, ...]:
        """Stride, dilation and groups, in a row; nothing where the layer has to stay."""
        return geometry(self.conv) if self.conv else ()


def geometry(conv: Conv) -> tuple[int, ...]:
    """Give stride, dilation and groups of a convolution, in a row."""
    return (*conv.stride, *conv.dilation, conv.groups)


def measure(
    content: bytes,
    name: str,
    shapes: Mapping[str, Sequence[int]],
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    weights: Path | None = None,
    others: bool = True,
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
    places = find_places(model, feeds, weights)
    block = find_block(provider)
    options = [
        ladder(place.conv, place.size, block) if others and place.conv is not None else []
        for place in places
    ]
    variants = [
        {n: ranks[number] for n, ranks in enumerate(options) if number < len(ranks)}
        for number in range(max(map(len, options), default=0))
    ]
    raced = np.linspace(0, len(variants) - 1, min(RACED, len(variants)), dtype=int)
    todo = 1 + len(variants) + len(raced)
    base = _Network.of(opened(_written(model, places, {})), feeds)
    profiles, base_s = [], []
    for number, variant in enumerate([{}, *variants]):
        base_s.append(base.seconds())
        profiles.append(_profile(opened, _written(model, places, variant), feeds))
        progress((number + 1) / todo)
    slow = np.array(base_s) / np.median(base_s)  # a shared machine has slow moments
    sums = [_by_place(profile, places) / factor for profile, factor in zip(profiles, slow)]
    ratios = [1.0]
    for number in raced:
        other = _Network.of(opened(_written(model, places, variants[number])), feeds)
        ratios.append(_ratio(base, other))
        progress((len(profiles) + len(ratios) - 1) / todo)
    base_ms = 1e3 * float(np.median([base.seconds() for _ in range(ROUNDS)]))
    float_ms = None
    if quantized is not None:
        other = _Network.of(in_float(_written(model, places, {})), feeds)
        float_ms = base_ms * _ratio(base, other)
    profiled = np.array([sums[n].sum() for n in (0, *(raced + 1))])
    scale = _scale(profiled, base_ms * np.array(ratios))
    layers = [
        LayerTimes(
            place.output,
            place.kernel,
            place.geometry,
            scale * float(sums[0][n]),
            tuple(
                Timed(form, rank, scale * float(sums[1 + number][n]))
                for number, (form, rank) in enumerate(options[n])
            ),
        )
        for n, place in enumerate(places)
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


def find_places(
    model: light.Message, feeds: Mapping[str, np.ndarray], weights: Path | None = None
) -> list[Place]:
    """List the convolutions and linear layers of a network whose weights are constants."""
    tensors = light.weights(model)
    nodes = [node for node in model.graph.node if _is_layer(node, tensors)]
    sizes = _shapes(model, [node.input[0] for node in nodes], feeds, weights)
    followers: dict[str, list[light.Message]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            followers[name].append(node)
    places = []
    for node in nodes:
        shape = sizes[node.input[0]]
        conv = _read(node, tensors, shape)
        ends = [node.output[0]]
        while len(after := followers[ends[-1]]) == 1 and after[0].op_type in FUSED:
            ends.append(after[0].output[0])
        linear = conv is not None and not conv.k
        places.append(
            Place(
                output=node.output[0],
                source=node.input[0],
                conv=conv,
                kernel=conv.kernel.shape if conv else tuple(tensors[node.input[1]].dims),
                size=(math.prod(shape[1:-1]),) if linear else tuple(shape[2:]),
                matrix=len(shape) == 2,
                ends=tuple(ends),
            )
        )
    return places


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


def _shapes(
    model: light.Message,
    names: Sequence[str],
    feeds: Mapping[str, np.ndarray],
    weights: Path | None,
) -> dict[str, tuple[int, ...]]:
    """Run a network once for the shapes of tensors."""
    copy = light.MESSAGES["ModelProto"]()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    wanted = list(dict.fromkeys(names))
    for number, name in enumerate(wanted):
        node = copy.graph.node.add(op_type="Shape", name=f"{PREFIX}shape_{number}")
        node.input.append(name)
        node.output.append(node.name)
        copy.graph.output.add(name=node.name).type.tensor_type.elem_type = 7
    if not wanted:
        return {}
    found = run(open_file(copy.SerializeToString(), weights=weights), feeds)
    return dict(zip(wanted, (tuple(map(int, shape)) for shape in found.values())))


def _is_layer(node: light.Message, tensors: Mapping[str, light.Message]) -> bool:
    """Tell a layer with constant weights from a product of two things that are computed."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type not in (*CONVOLUTIONS, *PRODUCTS) or node.input[0] in tensors:
        return False
    weight = tensors.get(node.input[1])
    return weight is not None and weight.data_type in light.FLOATS and len(weight.dims) > 1


def _read(
    node: light.Message, tensors: Mapping[str, light.Message], shape: Sequence[int]
) -> Conv | None:
    """Read a node with zeros for weights; None where it has to stay."""
    if any(name and name not in tensors for name in node.input[1:3]):
        return None
    weight, *biases = (
        np.broadcast_to(light.TYPES[tensors[n].data_type](0), tuple(tensors[n].dims))
        for n in node.input[1:3]
        if n
    )
    bias = biases[0] if biases else None
    try:
        if node.op_type in PRODUCTS:
            return read_linear(light.attributes(node), weight, bias)
        return read_conv(node.op_type, light.attributes(node), weight, bias, shape[2:])
    except ConverterError:
        return None


def _written(
    model: light.Message, places: Sequence[Place], variant: Mapping[int, tuple[str, Rank]]
) -> bytes:
    """Write a network with some layers in other forms, all layers named for the profile."""
    pieces: dict[str, Piece] = {}
    names = {}
    for n, place in enumerate(places):
        if n in variant and place.conv is not None:
            form, rank = variant[n]
            chain = skeleton(place.conv, find_form(form), rank)
            pieces[place.output] = chain_nodes(chain, place.source, f"{PREFIX}{n}", place.matrix)
        else:
            names[place.output] = f"{PREFIX}{n}"
    return light.replaced(model, pieces, names)


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


def _by_place(profile: Mapping[tuple[str, str], float], places: Sequence[Place]) -> np.ndarray:
    """Add up a profile by place; what belongs to none comes last.

    A node in the blocked layout is called after its output, which may be that of an addition
    that two layers lead to: it is the one of which no other last step was found.
    """
    sums = np.zeros(len(places) + 1)
    ended: dict[str, list[int]] = defaultdict(list)
    for n, place in enumerate(places):
        for name in place.ends:
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
