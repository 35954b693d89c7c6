"""A layer as it is seen in the original network, and in the one that is being converted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.data.data import Arrays
from converter.graph.consumers import Consumers
from converter.graph.survey import Layer
from converter.reconstruction.moments import (
    choose_positions,
    cut_patches,
    patch_count,
    patch_size,
)


@dataclass(frozen=True)
class LayerSample:
    """A layer at positions chosen at random, in the original and in the converted network.

    Attributes:
        patches: (groups, P, n), what the converted part gives it.
        target: (P, O), what it should give: the original's output, or its sum with the shortcut
            less the converted shortcut.
        shortcut: (P, O), the converted shortcut, or zeros.
        around: What follows the sum of both; P are whole windows of its pooling.
    """

    patches: np.ndarray
    target: np.ndarray
    shortcut: np.ndarray
    around: Consumers

    @classmethod
    def of(cls, parts: Sequence[LayerSample]) -> LayerSample:
        """Put what was seen of all batches together."""
        return cls(
            np.concatenate([part.patches for part in parts], axis=1),
            np.concatenate([part.target for part in parts]),
            np.concatenate([part.shortcut for part in parts]),
            parts[0].around,
        )

    def one_sided(self, response: np.ndarray) -> np.ndarray:
        """The target, but where it does not come through, a response that does not, either."""
        wanted, got = self.target + self.shortcut, response + self.shortcut
        ceiling = np.repeat(self._passed(wanted), math.prod(self.around.pool), axis=0)
        passed = np.where(wanted >= ceiling, wanted, np.minimum(got, ceiling))
        found: np.ndarray = passed - self.shortcut
        return found

    def error(self, response: np.ndarray) -> float:
        """Relative error of a response, after ReLU and pooling where they follow."""
        wanted = self._passed(self.target + self.shortcut)
        got = self._passed(response + self.shortcut)
        return float(np.linalg.norm(got - wanted) / (np.linalg.norm(wanted) or 1.0))

    def _passed(self, sums: np.ndarray) -> np.ndarray:
        """What comes through ReLU and pooling: (P / window, O)."""
        windows = sums.reshape(-1, math.prod(self.around.pool), sums.shape[1]).max(1)
        found: np.ndarray = np.maximum(windows, 0) if self.around.rectified else windows
        return found


def look(
    layer: Layer,
    around: Consumers,
    original: Arrays,
    converted: Arrays,
    share: float,
    memory: float,
    rng: np.random.Generator,
) -> LayerSample:
    """Look at a layer at random positions of a batch.

    Args:
        layer: A convolution or linear layer.
        around: What follows it.
        original: What the original network gives, by tensor name: (N, C, *size).
        converted: The same of the converted one; the same object where nothing differs yet.
        share: Of all sample inputs that are in this batch.
        memory: Bytes that the patches of all batches may take, roughly.
        rng: Of the positions.
    """
    conv = layer.conv
    assert conv is not None
    inputs = original[layer.source]
    count = math.ceil(patch_count(patch_size(conv), memory) * share)
    at = choose_positions(conv, inputs.shape, count, rng, around.pool)
    wished = cut_patches(inputs, conv, at)
    given = wished if converted is original else cut_patches(converted[layer.source], conv, at)
    weights = np.split(conv.kernel.astype(np.float32), conv.groups)
    target = np.concatenate(
        [part @ w.reshape(len(w), -1).T for part, w in zip(wished, weights)], axis=1
    )  # (P, O)
    if conv.bias is not None:
        target = target + conv.bias.astype(np.float32)
    shortcut = np.zeros_like(target)
    if around.added in original and original[around.added].ndim == inputs.ndim:
        shortcut = at.read(converted[around.added]).astype(np.float32)
        target = target + at.read(original[around.added]) - shortcut
    return LayerSample(given, target, shortcut, around)
