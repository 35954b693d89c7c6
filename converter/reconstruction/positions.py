"""Random output positions of a layer, and the input patches at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.decomposition.conv import Conv

COPY_SHARE = 0.25  # of the positions of a tensor


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
    count, rows, inside = _flat_taps(conv, positions, inputs.shape[2:])
    if conv.groups > 1:  # a channel at a time, because a group has few of them
        patches = np.moveaxis(inputs, 1, 0).reshape(conv.I, -1).take(rows, axis=1)  # (I, P K)
        patches = patches * inside.astype(np.float32)
        by_channel = patches.reshape(conv.groups, -1, count, len(rows) // count).swapaxes(1, 2)
    else:
        patches = _gather(inputs, rows) * inside[:, None].astype(np.float32)  # (P K, I)
        by_channel = patches.reshape(count, -1, conv.I).swapaxes(1, 2)[None]
    return np.ascontiguousarray(by_channel, np.float32).reshape(conv.groups, count, -1)


def _gather(inputs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Read inputs (N, I, *size) at positions of (N, *size): (P, I).

    With the channels last, a position is one piece of memory. The copy pays unless few are read.
    """
    N, I, *size = inputs.shape
    area = math.prod(size)
    if len(rows) > COPY_SHARE * N * area:
        return np.asarray(np.moveaxis(inputs, 1, -1).reshape(-1, I)[rows])
    return np.asarray(inputs.reshape(N, I, area)[rows // area, :, rows % area])


def _flat_taps(
    conv: Conv, positions: Positions, size: Sequence[int]
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return P, the indices (P K,) of all taps into (N, *size), and whether they are inside."""
    rows, inside = positions.images[:, None], np.ones((len(positions.images), 1), bool)
    count = len(rows)
    for axis, output in enumerate(positions.outputs):
        start, stride = output[:, None], conv.stride[axis]
        taps = conv.dilation[axis] * np.arange(conv.k[axis])
        if conv.transposed:
            index = start + conv.padding[axis][0] - taps  # (P, k), among the inserted zeros
            inserted, index = index % stride != 0, index // stride
        else:
            index = start * stride - conv.padding[axis][0] + taps
            inserted = np.zeros(index.shape, bool)
        valid = (index >= 0) & (index < size[axis]) & ~inserted
        index = rows[:, :, None] * size[axis] + index.clip(0, size[axis] - 1)[:, None]
        rows = index.reshape(count, -1)
        inside = (inside[:, :, None] & valid[:, None]).reshape(count, -1)
    return count, rows.ravel(), inside.ravel()
