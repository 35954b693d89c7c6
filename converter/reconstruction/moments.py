"""Second moments of the input patches of layers, on sample data."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays, Data
from converter.decomposition.conv import Conv
from converter.decomposition.metric import FLOOR, Metric
from converter.graph.network import MAX_BATCH, compute_shapes, compute_values, inputs
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.positions import choose_positions, cut_patches
from converter.reconstruction.products import gram

MAX_IMAGES = 256
# A layer gets as many patches as PATCH_WORK multiplications allow, within bounds: many for a narrow
# layer, and few enough for a wide one that its moments take seconds.
PATCH_WORK, MIN_PER_WEIGHT, MAX_PATCHES = 2.5e11, 4, 40_000
MIN_PATCHES = 1024
COARSE_SHARE = 1 / 4  # of the patches, for Kronecker forms, which need fewer
FLOAT32_BYTES, FLOAT64_BYTES = 4, 8
# Copies of a full matrix of second moments (float64) that are alive while a layer is solved.
COPIES = 4
Metrics = dict[str, tuple[Metric, ...]]


def patch_size(conv: Conv) -> int:
    """Return the number of entries n = I/groups * prod(k) of an input patch of one group."""
    return conv.I // conv.groups * math.prod(conv.k)


def patch_count(n: int, memory_bytes: float) -> int:
    """Return how many patches of ``n`` entries to sample, within a quarter of the memory.

    At least ``MIN_PATCHES`` are sampled, even with little memory: fewer give no usable moments.
    """
    count = min(max(PATCH_WORK / n**2, MIN_PER_WEIGHT * n), MAX_PATCHES)
    return max(int(min(count, memory_bytes / (4 * FLOAT32_BYTES * n))), MIN_PATCHES)


def fits_in_memory(n: int, memory_bytes: float) -> bool:
    """Whether the memory is enough to solve a layer with full second moments (n, n)."""
    return COPIES * FLOAT64_BYTES * n**2 <= memory_bytes


def _channels_fit(conv: Conv, memory_bytes: float) -> bool:
    """Whether the memory is enough for the moments of the channels of one group."""
    return fits_in_memory(conv.I // conv.groups, memory_bytes)


def metric_from_patches(patches: np.ndarray, I: int, full: bool, floor: float) -> Metric:
    """Make the metric of patches (P, I K), in full or as a Kronecker product.

    ``floor`` is the share of the mean power that is added to the diagonal.
    """
    sums = _sums(patches, I, full)
    return _metric([total / len(patches) for total in sums], I, floor)


def second_moments(
    network: ir.Model,
    layers: Sequence[Layer],
    data: Data,
    resources: Resources = Resources(),
    *,
    coarse: bool = False,
) -> Metrics:
    """Estimate the second moments of the input patches of every layer.

    One pass over the data serves all layers whose inputs fit into the memory together. All
    processes of ``resources.group`` call this with the same arguments and share the batches.

    Args:
        network: The original network.
        layers: Its convolutions to sample.
        data: Sample inputs; at most ``MAX_IMAGES`` of them are used.
        resources: The moments of all layers share the memory; the largest layers get their
            Kronecker form if it is short.
        coarse: For estimates: Kronecker forms for all layers, of moments about the mean, because
            a bias corrects for the mean.

    Returns:
        By layer name, a metric for each group; nothing in processes other than the first, and
        nothing for layers of so many channels that not even their moments fit into memory.
    """
    memory, batch_size = resources.memory_bytes, inputs(network)[0].shape[0]
    count = max(MAX_IMAGES, batch_size or 1)
    images = data.sample(count, resources.seed).whole_batches(batch_size)
    layers = [layer for layer in layers if layer.conv and _channels_fit(layer.conv, memory)]
    convs = {layer.name: layer.conv for layer in layers if layer.conv is not None}
    full = set() if coarse else _fitting_in_full(convs, memory)
    totals: dict[str, _Totals] = {}
    first = images.read(np.arange(batch_size or 1))
    passes = _split_into_passes(network, layers, first, memory / 4)
    report = resources.stage("calibrating")
    for number, (group, size) in enumerate(passes):
        batches = list(resources.group.shard(images.batch_indices(batch_size or size)))
        names = list(dict.fromkeys(layer.source for layer in group))
        observed = compute_values(network, names, map(images.read, batches), resources.threads)
        for indices, tensors in zip(batches, observed):
            rng = np.random.default_rng((resources.seed, int(indices[0])))
            for layer in group:
                conv, values = convs[layer.name], tensors[layer.source]
                target_count = patch_count(patch_size(conv), memory) * len(values) / images.count
                target_count *= COARSE_SHARE if coarse else 1
                positions = choose_positions(conv, values.shape, math.ceil(target_count), rng)
                patches = cut_patches(values, conv, positions)
                batch = _Totals.of(patches, conv, layer.name in full, coarse)
                before = totals.get(layer.name)
                totals[layer.name] = batch if before is None else before.plus(batch)
            report((number + (int(indices[-1]) + 1) / images.count) / len(passes))
    metrics = {}
    for name, conv in convs.items():
        parts = resources.group.gather([totals.pop(name)] if name in totals else [])
        if parts:
            means = functools.reduce(_Totals.plus, parts).means()
            metrics[name] = tuple(_metric(mean, conv.I // conv.groups) for mean in means)
    return metrics


@dataclass(frozen=True)
class _Totals:
    """Sums over ``count`` patches, as ``_sums`` returns them, of each group."""

    groups: tuple[tuple[np.ndarray, ...], ...]
    count: int

    @classmethod
    def of(cls, patches: np.ndarray, conv: Conv, full: bool, coarse: bool) -> _Totals:
        """Sum over patches (groups, P, n), in float64: in float32 the error exceeds the floor."""
        sums = (
            _sums(part.astype(np.float64), conv.I // conv.groups, full, coarse) for part in patches
        )
        return cls(tuple(map(tuple, sums)), patches.shape[1])

    def plus(self, other: _Totals) -> _Totals:
        """Return the sums over the patches of both."""
        pairs = zip(self.groups, other.groups)
        sums = tuple(tuple(a + b for a, b in zip(mine, more)) for mine, more in pairs)
        return _Totals(sums, self.count + other.count)

    def means(self) -> list[list[np.ndarray]]:
        """Return the means over the patches."""
        return [[total / self.count for total in group] for group in self.groups]


def _split_into_passes(
    network: ir.Model, layers: Sequence[Layer], feeds: Arrays, memory_bytes: float
) -> list[tuple[list[Layer], int]]:
    """Split layers, in order, so that the inputs of each part together fit into memory.

    Returns:
        The parts, each with the number of examples that may run together.
    """
    names = list(dict.fromkeys(layer.source for layer in layers))
    shapes = compute_shapes(network, names, feeds)
    count = len(next(iter(feeds.values())))
    groups: list[list[Layer]] = []
    sizes: list[dict[str, int]] = []  # bytes of the inputs of each part, for ``feeds``
    for layer in layers:
        own = {layer.source: FLOAT32_BYTES * math.prod(shapes[layer.source])}
        if groups and sum((sizes[-1] | own).values()) <= memory_bytes:
            groups[-1].append(layer)
            sizes[-1] |= own
        else:
            groups.append([layer])
            sizes.append(own)
    fitting = [int(memory_bytes * count / max(sum(size.values()), 1)) for size in sizes]
    return list(zip(groups, (min(max(n, 1), MAX_BATCH) for n in fitting)))


def _fitting_in_full(convs: Mapping[str, Conv], memory_bytes: float) -> set[str]:
    """Choose the layers whose full moments fit into memory together, the smallest first."""
    chosen, free_bytes = set(), memory_bytes
    for name, conv in sorted(convs.items(), key=lambda item: patch_size(item[1])):
        free_bytes -= FLOAT64_BYTES * conv.groups * patch_size(conv) ** 2
        if free_bytes >= 0 and fits_in_memory(patch_size(conv), memory_bytes):
            chosen.add(name)
    return chosen


def _sums(patches: np.ndarray, I: int, full: bool, mean: bool = False) -> list[np.ndarray]:
    """Sum x x^T over patches (P, I K): (n, n); or channels (I, I), a mean, and window (K, K).

    With ``mean``, the sum of the patches comes last.
    """
    last = [patches.sum(0)] if mean else []
    if full:
        return [gram(patches), *last]
    blocks = patches.reshape(len(patches), I, -1)
    channels = gram(blocks.transpose(0, 2, 1).reshape(-1, I))
    window = gram(blocks.reshape(len(patches) * I, -1))
    return [channels / blocks.shape[2], window, *last]


def _metric(moments: Sequence[np.ndarray], I: int, floor: float = FLOOR) -> Metric:
    """Make a metric of the means of ``_sums``; about the mean patch if that is given."""
    if len(moments) == 1:
        return Metric.of(moments[0], I, floor)
    channels, window, *means = moments
    if not means:
        return Metric.kronecker(channels, window, floor)
    mean_channels, mean_window = _sums(means[0][None], I, full=False)
    metric = Metric.kronecker(channels - mean_channels, window - mean_window, floor)
    return replace(metric, mean=means[0])
