"""What a layer really sees: the second moments of its input patches on sample data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays, Data
from converter.decomposition.conv import Conv
from converter.decomposition.metric import FLOOR, Metric
from converter.graph.network import MAX_BATCH, compute_shapes, compute_values
from converter.graph.survey import Layer
from converter.processes import SINGLE_PROCESS, ProcessGroup

IMAGES = 256
# Patches: as many as this much arithmetic buys (multiplications), within bounds, so that a narrow
# layer is known well and a wide one in seconds.
WORK, FEWEST_PER_WEIGHT, MOST_PATCHES = 2.5e11, 4, 40_000
FEWEST_PATCHES = 1024
BYTES = 4  # of a number that a layer takes
# Copies of a full matrix of second moments (float64) that are alive while a layer is solved.
COPIES = 4


@dataclass(frozen=True)
class Positions:
    """Where a layer was looked at.

    Attributes:
        images: (P,) indices into the batch; of a linear layer into all rows of its inputs.
        outputs: (P,) positions of the output, one array for each axis.
    """

    images: np.ndarray
    outputs: tuple[np.ndarray, ...]

    def read(self, values: np.ndarray) -> np.ndarray:
        """Read a tensor (N, C, *output size), or (..., C), at the positions: (P, C)."""
        if not self.outputs:
            return np.asarray(values.reshape(-1, values.shape[-1])[self.images])
        where: tuple[np.ndarray | slice, ...] = (self.images, slice(None), *self.outputs)
        return np.asarray(values[where])


def choose_positions(
    conv: Conv,
    shape: Sequence[int],
    count: int,
    rng: np.random.Generator,
    window: tuple[int, ...] | None = None,
) -> Positions:
    """Choose output positions at random, with repetition; all of them, once, if there are no more.

    Args:
        conv: The layer.
        shape: (N, I, *size) of its input; (..., I) of a linear layer's.
        count: How many, at least; whole windows are chosen.
        rng: Of the choice.
        window: Positions come in windows of this size, one after the other; single if left out.
    """
    window = window or (1,) * len(conv.k)
    area = math.prod(window)
    if conv.k:
        tiles = [size // w for size, w in zip(conv.output_size(shape[2:]), window)]
        grid = (shape[0], *tiles)
    else:
        grid = (math.prod(shape[:-1]),)
    wanted, there = -(-count // area), math.prod(grid)
    chosen = rng.integers(0, there, wanted) if wanted < there else np.arange(there)
    images, *corners = np.unravel_index(chosen, grid)
    outputs = [
        (corner[:, None] * window[axis] + np.indices(window)[axis].ravel()).ravel()
        for axis, corner in enumerate(corners)
    ]
    return Positions(np.repeat(images, area), tuple(outputs))


def cut_patches(inputs: np.ndarray, conv: Conv, at: Positions) -> np.ndarray:
    """Cut the patches that a layer sees.

    Args:
        inputs: (N, I, *size); of a linear layer (..., I).
        conv: Zero padding; a transposed one sees its inputs with zeros between them.
        at: Positions of its output.

    Returns:
        (groups, P, I/groups * prod(k)), float32, in the order of the kernel's entries.
    """
    if not conv.k:
        inputs = inputs.reshape(-1, conv.I)
    axes, count = len(conv.k), len(at.images)
    places, inside = [], np.ones(())
    for axis, chosen in enumerate(at.outputs):
        start, stride = chosen[:, None], conv.stride[axis]
        taps = conv.dilation[axis] * np.arange(conv.k[axis])
        if conv.transposed:
            place = start + conv.padding[axis][0] - taps  # (P, K), among the zeros
            inserted, place = place % stride != 0, place // stride
        else:
            place = start * stride - conv.padding[axis][0] + taps
            inserted = np.zeros(place.shape, bool)
        shape = [count, *[1] * axes]
        shape[1 + axis] = conv.k[axis]
        size = inputs.shape[2 + axis]
        inside = inside * ((place >= 0) & (place < size) & ~inserted).reshape(shape)
        places.append(place.clip(0, size - 1).reshape(shape))
    last = np.moveaxis(inputs, 1, -1)  # (N, *size, I)
    where = (at.images.reshape(-1, *[1] * axes), *places)
    patches = last[where] * inside[..., None].astype(np.float32)  # (P, *k, I)
    by_channel = np.moveaxis(patches, -1, 1).reshape(count, conv.groups, -1)
    return np.ascontiguousarray(by_channel.swapaxes(0, 1), np.float32)


def patch_count(n: int, memory: float) -> int:
    """Say how many patches of ``n`` entries to look at, within a quarter of ``memory`` bytes.

    Fewer than ``FEWEST_PATCHES`` would say nothing, whatever the memory.
    """
    wanted = min(max(WORK / n**2, FEWEST_PER_WEIGHT * n), MOST_PATCHES)
    return max(int(min(wanted, memory / (4 * 4 * n))), FEWEST_PATCHES)


def fits(n: int, memory: float) -> bool:
    """Say whether the full second moments of ``n`` entries can be worked with."""
    return COPIES * 8 * n**2 <= memory


def metric_of(patches: np.ndarray, I: int, full: bool, floor: float) -> Metric:
    """Make the metric of patches (P, I K), in full or as a Kronecker product."""
    sums = _sums(patches, I, full)
    return _metric([total / len(patches) for total in sums], I, floor)


def second_moments(
    network: ir.Model,
    layers: Sequence[Layer],
    data: Data,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    memory: float = 2.0**31,
    threads: int = 1,
    coarse: bool = False,
    place: ProcessGroup = SINGLE_PROCESS,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, tuple[Metric, ...]]:
    """Estimate what every layer sees, in one pass over the data.

    In several passes, each for some of the layers, where the inputs of all of them take too much
    memory even for one example.

    Args:
        network: The original network.
        layers: Its convolutions to look at.
        data: Sample inputs; at most ``IMAGES`` of them are used.
        batch_size: The batch size that the network insists on, or None.
        seed: Of the choice of images and positions.
        memory: Bytes that the moments of all layers may take; the largest get their Kronecker
            form where that would be more.
        threads: Of onnxruntime.
        coarse: For estimates: Kronecker forms for all layers, of moments about the mean, since
            a bias makes up for what the mean does.
        place: Several processes share the batches; all call this with the same arguments.
        progress: Called with the share done.

    Returns:
        By layer name, a metric for each group; nothing in processes other than the first.
    """
    least = batch_size or 1
    images = data.sample(max(IMAGES, least), seed).filled(least)
    if images.count % least:
        images = images.take(np.arange(images.count - images.count % least))
    convs = {layer.name: layer.conv for layer in layers if layer.conv is not None}
    full = set() if coarse else _those_that_fit(convs, memory)
    sums: dict[str, _Totals] = {}
    groups = _groups(network, layers, images.read(np.arange(least)), memory / 4)
    for number, (group, size) in enumerate(groups):
        spans = list(place.shard(images.spans(batch_size or size)))
        names = list(dict.fromkeys(layer.source for layer in group))
        passes = compute_values(network, names, map(images.read, spans), threads)
        for span, seen in zip(spans, passes):
            rng = np.random.default_rng((seed, int(span[0])))
            for layer in group:
                conv, inputs = convs[layer.name], seen[layer.source]
                wanted = patch_count(patch_size(conv), memory) * len(inputs) / images.count
                at = choose_positions(conv, inputs.shape, math.ceil(wanted), rng)
                I, in_full = conv.I // conv.groups, layer.name in full
                found = tuple(  # in float64: float32 errs by more than the metric's floor
                    tuple(_sums(part.astype(np.float64), I, in_full, coarse))
                    for part in cut_patches(inputs, conv, at)
                )
                more = _Totals(found, len(at.images))
                before = sums.get(layer.name)
                sums[layer.name] = more if before is None else before.added(more)
            progress((number + (int(span[-1]) + 1) / images.count) / len(groups))
    metrics = {}
    for name, conv in convs.items():
        parts = place.gather([sums.pop(name)] if name in sums else [])
        if parts:
            means = functools.reduce(_Totals.added, parts).means()
            metrics[name] = tuple(_metric(mean, conv.I // conv.groups) for mean in means)
    return metrics


@dataclass(frozen=True)
class _Totals:
    """Sums over ``count`` patches, as ``_sums`` gives them, of each group."""

    groups: tuple[tuple[np.ndarray, ...], ...]
    count: int

    def added(self, other: _Totals) -> _Totals:
        """Sum over the patches of both."""
        pairs = zip(self.groups, other.groups)
        together = tuple(tuple(a + b for a, b in zip(old, new)) for old, new in pairs)
        return _Totals(together, self.count + other.count)

    def means(self) -> list[list[np.ndarray]]:
        """Means over the patches."""
        return [[total / self.count for total in group] for group in self.groups]


def patch_size(conv: Conv) -> int:
    """Entries n = I/groups * prod(k) of one input patch of one group."""
    return conv.I // conv.groups * math.prod(conv.k)


def _groups(
    network: ir.Model, layers: Sequence[Layer], feeds: Arrays, memory: float
) -> list[tuple[list[Layer], int]]:
    """Part layers, in order, so that the inputs of each part together fit into memory.

    Returns:
        The parts, each with the examples that may run together.
    """
    names = list(dict.fromkeys(layer.source for layer in layers))
    shapes = compute_shapes(network, names, feeds)
    count = len(next(iter(feeds.values())))
    groups: list[list[Layer]] = []
    sizes: list[dict[str, int]] = []  # bytes of the inputs of each part, for ``feeds``
    for layer in layers:
        own = {layer.source: BYTES * math.prod(shapes[layer.source])}
        if groups and sum((sizes[-1] | own).values()) <= memory:
            groups[-1].append(layer)
            sizes[-1] |= own
        else:
            groups.append([layer])
            sizes.append(own)
    fitting = [int(memory * count / max(sum(size.values()), 1)) for size in sizes]
    return list(zip(groups, (min(max(n, 1), MAX_BATCH) for n in fitting)))


def _those_that_fit(convs: Mapping[str, Conv], memory: float) -> set[str]:
    """Choose the layers whose full moments fit into memory together, the smallest first."""
    chosen, left = set(), memory
    for name, conv in sorted(convs.items(), key=lambda item: patch_size(item[1])):
        left -= 8 * conv.groups * patch_size(conv) ** 2
        if left >= 0 and fits(patch_size(conv), memory):
            chosen.add(name)
    return chosen


def _sums(patches: np.ndarray, I: int, full: bool, mean: bool = False) -> list[np.ndarray]:
    """Sum x x^T over patches (P, I K): (n, n); or channels (I, I), a mean, and window (K, K).

    With ``mean``, the sum of the patches comes last.
    """
    last = [patches.sum(0)] if mean else []
    if full:
        return [_squares(patches), *last]
    blocks = patches.reshape(len(patches), I, -1)
    channels = _squares(blocks.transpose(0, 2, 1).reshape(-1, I))
    window = _squares(blocks.reshape(len(patches) * I, -1))
    return [channels / blocks.shape[2], window, *last]


def _squares(rows: np.ndarray) -> np.ndarray:
    """X^T X; products in the type of the rows, sums in float64."""
    total = np.zeros((rows.shape[1],) * 2)
    for part in np.array_split(rows, max(len(rows) // 8192, 1)):
        total += part.T @ part
    return total


def _metric(found: Sequence[np.ndarray], I: int, floor: float = FLOOR) -> Metric:
    """Make a metric of means that ``_sums`` gave; about the mean patch where that is there."""
    if len(found) == 1:
        return Metric.of(found[0], I, floor)
    channels, window, *means = found
    if not means:
        return Metric.kronecker(channels, window, floor)
    still_channels, still_window = _sums(means[0][None], I, full=False)
    metric = Metric.kronecker(channels - still_channels, window - still_window, floor)
    return replace(metric, mean=means[0])
