"""Random output positions of a layer, and the input patches at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.decomposition.conv import Conv


@dataclass(frozen=True)
class Positions:
    """Output positions at which a layer is sampled.

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
        index: tuple[np.ndarray | slice, ...] = (self.images, slice(None), *self.outputs)
        return np.asarray(values[index])


def choose_positions(
    conv: Conv,
    shape: Sequence[int],
    count: int,
    rng: np.random.Generator,
    window: tuple[int, ...] | None = None,
) -> Positions:
    """Choose output positions at random with repetition, or each once if there are not more.

    Args:
        conv: The layer.
        shape: (N, I, *size) of its input; (..., I) of a linear layer's.
        count: Minimum number of positions; whole windows are chosen.
        rng: Generator of the choice.
        window: Positions come in windows of this size, one after the other; single if left out.
    """
    window = window or (1,) * len(conv.k)
    area = math.prod(window)
    if conv.k:
        tiles = [size // w for size, w in zip(conv.output_size(shape[2:]), window)]
        grid = (shape[0], *tiles)
    else:
        grid = (math.prod(shape[:-1]),)
    needed, available = -(-count // area), math.prod(grid)
    chosen = rng.integers(0, available, needed) if needed < available else np.arange(available)
    images, *corners = np.unravel_index(chosen, grid)
    outputs = [
        (corner[:, None] * window[axis] + np.indices(window)[axis].ravel()).ravel()
        for axis, corner in enumerate(corners)
    ]
    return Positions(np.repeat(images, area), tuple(outputs))


def cut_patches(inputs: np.ndarray, conv: Conv, positions: Positions) -> np.ndarray:
    """Cut the input patches from which a layer computes its output at some positions.

    Args:
        inputs: (N, I, *size); of a linear layer (..., I).
        conv: With zero padding. A transposed one gets its inputs with zeros between them.
        positions: Positions of its output.

    Returns:
        (groups, P, I/groups * prod(k)), float32, in the order of the kernel's entries.
    """
    if not conv.k:
        inputs = inputs.reshape(-1, conv.I)
    axes, count = len(conv.k), len(positions.images)
    indices, inside = [], np.ones(())
    for axis, output in enumerate(positions.outputs):
        start, stride = output[:, None], conv.stride[axis]
        taps = conv.dilation[axis] * np.arange(conv.k[axis])
        if conv.transposed:
            index = start + conv.padding[axis][0] - taps  # (P, K), among the inserted zeros
            inserted, index = index % stride != 0, index // stride
        else:
            index = start * stride - conv.padding[axis][0] + taps
            inserted = np.zeros(index.shape, bool)
        shape = [count, *[1] * axes]
        shape[1 + axis] = conv.k[axis]
        size = inputs.shape[2 + axis]
        inside = inside * ((index >= 0) & (index < size) & ~inserted).reshape(shape)
        indices.append(index.clip(0, size - 1).reshape(shape))
    last = np.moveaxis(inputs, 1, -1)  # (N, *size, I)
    where = (positions.images.reshape(-1, *[1] * axes), *indices)
    patches = last[where] * inside[..., None].astype(np.float32)  # (P, *k, I)
    by_channel = np.moveaxis(patches, -1, 1).reshape(count, conv.groups, -1)
    return np.ascontiguousarray(by_channel.swapaxes(0, 1), np.float32)
