"""Samples of a layer: its inputs in the converted network, its outputs in the original."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.data.data import Arrays
from converter.decomposition.conv import Conv
from converter.graph.consumers import Consumers
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.moments import MIN_PATCHES, patch_count, patch_size
from converter.reconstruction.positions import Positions, choose_positions, cut_patches
from converter.reconstruction.products import product

FLOAT32_BYTES, INT64_BYTES = 4, 8


@dataclass(frozen=True)
class LayerSample:
    """A layer at random positions, in the original and in the converted network.

    Attributes:
        patches: (groups, P, n), its input patches in the converted network.
        target: (P, O), its output in the original network. With a shortcut: the original's sum
            less the converted shortcut.
        shortcut: (P, O), the converted shortcut, or zeros.
        consumers: Operations after the sum of both; the P positions are whole windows of the
            pooling.
    """

    patches: np.ndarray
    target: np.ndarray
    shortcut: np.ndarray
    consumers: Consumers

    @classmethod
    def concatenated(cls, parts: Sequence[LayerSample]) -> LayerSample:
        """Concatenate the samples of all batches."""
        return cls(
            np.concatenate([part.patches for part in parts], axis=1),
            np.concatenate([part.target for part in parts]),
            np.concatenate([part.shortcut for part in parts]),
            parts[0].consumers,
        )

    @property
    def one_sided(self) -> bool:
        """Whether a ReLU or a max pooling masks a part of the output."""
        return self.consumers.rectified or math.prod(self.consumers.pool) > 1

    def one_sided_target(self, response: np.ndarray) -> np.ndarray:
        """Return the target, relaxed where ReLU and pooling mask the original's output.

        Where the original is masked, a response that is masked, too, is its own target; for a
        larger response, the target is the bound of the mask.

        Args:
            response: (P, O), the output of the converted layer.
        """
        original, converted = self.target + self.shortcut, response + self.shortcut
        bound = np.repeat(self._after_consumers(original), math.prod(self.consumers.pool), axis=0)
        target = np.where(original >= bound, original, np.minimum(converted, bound))
        return np.asarray(target - self.shortcut)

    def error(self, response: np.ndarray) -> float:
        """Return the relative error of a response (P, O), after ReLU and pooling if they follow."""
        original = self._after_consumers(self.target + self.shortcut)
        converted = self._after_consumers(response + self.shortcut)
        return float(np.linalg.norm(converted - original) / (np.linalg.norm(original) or 1.0))

    def _after_consumers(self, sums: np.ndarray) -> np.ndarray:
        """Apply pooling and ReLU: (P, O) -> (P / window, O)."""
        pooled = sums.reshape(-1, math.prod(self.consumers.pool), sums.shape[1]).max(1)
        return np.asarray(np.maximum(pooled, 0) if self.consumers.rectified else pooled)


@dataclass(frozen=True)
class OriginalSample:
    """A layer at random positions of a batch, in the original network.

    Attributes:
        positions: The P positions.
        sums: (P, O), its output, plus the tensor that is added to it.
        added: Name of the tensor that is added to it, or None.
    """

    positions: Positions
    sums: np.ndarray
    added: str | None


def original_bytes(conv: Conv, resources: Resources) -> float:
    """Return the bytes that the samples of a layer take over all batches."""
    return _patches(conv, resources) * (FLOAT32_BYTES * conv.O + INT64_BYTES * (1 + len(conv.k)))


def _patches(conv: Conv, resources: Resources) -> float:
    """Return how many patches of a layer to sample, over all batches."""
    count = patch_count(patch_size(conv), resources.memory_bytes / 2)
    return max(resources.effort * count, MIN_PATCHES)


def sample_original(
    layer: Layer,
    consumers: Consumers,
    original: Arrays,
    share: float,
    resources: Resources,
    rng: np.random.Generator,
) -> OriginalSample:
    """Sample a layer at random positions of a batch.

    Args:
        layer: A convolution or linear layer.
        consumers: The operations after it.
        original: Tensors of the original network by name: (N, C, *size).
        share: Share of all sample inputs that are in this batch.
        resources: Half of the memory is for the patches of all batches, roughly.
        rng: Generator of the positions.
    """
    conv = layer.conv
    assert conv is not None
    inputs = original[layer.source]
    count = math.ceil(_patches(conv, resources) * share)
    positions = choose_positions(conv, inputs.shape, count, rng, consumers.pool)
    patches = cut_patches(inputs, conv, positions)
    weights = np.split(conv.kernel.astype(np.float32), conv.groups)
    sums = np.concatenate(
        [product(part, w.reshape(len(w), -1).T) for part, w in zip(patches, weights)], axis=1
    )  # (P, O)
    if conv.bias is not None:
        sums = sums + conv.bias.astype(np.float32)
    added = consumers.added
    if added not in original or original[added].ndim != inputs.ndim:
        added = None
    if added is not None:
        sums = sums + positions.read(original[added])
    return OriginalSample(positions, sums, added)


def sample_layer(
    layer: Layer, consumers: Consumers, original: OriginalSample, converted: Arrays
) -> LayerSample:
    """Sample a layer of the converted network at the positions of the original's sample.

    Args:
        layer: A convolution or linear layer.
        consumers: The operations after it.
        original: The sample of the original network.
        converted: Tensors of the converted network by name: (N, C, *size).
    """
    assert layer.conv is not None
    patches = cut_patches(converted[layer.source], layer.conv, original.positions)
    shortcut = np.zeros_like(original.sums)
    if original.added is not None:
        shortcut = original.positions.read(converted[original.added]).astype(np.float32)
    return LayerSample(patches, original.sums - shortcut, shortcut, consumers)
