"""Samples of a layer: its inputs in the converted network, its outputs in the original."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.data.data import Arrays
from converter.graph.consumers import Consumers
from converter.graph.survey import Layer
from converter.reconstruction.moments import patch_count, patch_size
from converter.reconstruction.positions import choose_positions, cut_patches
from converter.reconstruction.products import product


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


def sample_layer(
    layer: Layer,
    consumers: Consumers,
    original: Arrays,
    converted: Arrays,
    share: float,
    memory_bytes: float,
    rng: np.random.Generator,
) -> LayerSample:
    """Sample a layer at random positions of a batch.

    Args:
        layer: A convolution or linear layer.
        consumers: The operations after it.
        original: Tensors of the original network by name: (N, C, *size).
        converted: The same of the converted network; the same object as long as nothing differs.
        share: Share of all sample inputs that are in this batch.
        memory_bytes: Memory for the patches of all batches, roughly.
        rng: Generator of the positions.
    """
    conv = layer.conv
    assert conv is not None
    inputs = original[layer.source]
    count = math.ceil(patch_count(patch_size(conv), memory_bytes) * share)
    positions = choose_positions(conv, inputs.shape, count, rng, consumers.pool)
    patches = cut_patches(inputs, conv, positions)
    weights = np.split(conv.kernel.astype(np.float32), conv.groups)
    target = np.concatenate(
        [product(part, w.reshape(len(w), -1).T) for part, w in zip(patches, weights)], axis=1
    )  # (P, O)
    if conv.bias is not None:
        target = target + conv.bias.astype(np.float32)
    if converted is not original:
        patches = cut_patches(converted[layer.source], conv, positions)
    shortcut = np.zeros_like(target)
    if consumers.added in original and original[consumers.added].ndim == inputs.ndim:
        shortcut = positions.read(converted[consumers.added]).astype(np.float32)
        target = target + positions.read(original[consumers.added]) - shortcut
    return LayerSample(patches, target, shortcut, consumers)
