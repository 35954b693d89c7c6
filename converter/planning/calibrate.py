"""What a layer really sees: the second moments of its input patches on sample data."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.data import Data
from converter.kernels.conv import Conv
from converter.networks.onnx_network import observe
from converter.networks.survey import Layer

IMAGES = 256
# Patches for each unknown of a filter: enough for a sound estimate, bounded for wide layers.
PATCHES_PER_WEIGHT, FEWEST_PATCHES = 4, 8192
LARGEST = 8192  # weights a filter; its matrix of second moments takes 0.5 GB


def second_moments(
    network: ir.Model, layer: Layer, data: Data, batch_size: int | None, seed: int
) -> np.ndarray | None:
    """Estimate E[x x^T] of the input patches x of a layer, each group by itself.

    Args:
        network: The original network.
        layer: One of its convolutions.
        data: Sample inputs; at most ``IMAGES`` of them are used.
        batch_size: The batch size that the network insists on, or None.
        seed: Of the choice of images and positions.

    Returns:
        (groups, n, n) with n = I/groups * prod(k), float64, in the order of the kernel's entries;
        None where n exceeds ``LARGEST``.
    """
    conv = layer.conv
    assert conv is not None
    n = conv.kernel[0].size
    if n > LARGEST:
        return None
    images = data.sample(IMAGES, seed)
    wanted = max(PATCHES_PER_WEIGHT * n, FEWEST_PATCHES)
    batch = batch_size or 64
    per_batch = -(-wanted * batch // images.count)
    rng = np.random.default_rng(seed)
    total, count = np.zeros((conv.groups, n, n)), 0
    for _, feeds in images.batches(batch):
        if batch_size and len(next(iter(feeds.values()))) != batch_size:
            break
        seen = observe(network, [layer.source], feeds)[layer.source]
        patches = sample_patches(seen, conv, per_batch, rng)  # (groups, P, n)
        total += (patches.transpose(0, 2, 1) @ patches).astype(np.float64)
        count += patches.shape[1]
    return total / max(count, 1)


def sample_patches(
    inputs: np.ndarray, conv: Conv, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Cut the patches that ``conv`` sees at positions chosen at random.

    Args:
        inputs: (N, I, *size); of a linear layer (..., I).
        conv: Zero padding; a transposed one sees its inputs with zeros between them.
        count: Positions, chosen with repetition.
        rng: Of the choice.

    Returns:
        (groups, count, I/groups * prod(k)), float32.
    """
    if not conv.k:
        inputs = inputs.reshape(-1, conv.I)
    images, axes = len(inputs), len(conv.k)
    at = rng.integers(0, images, count).reshape(-1, *[1] * axes)
    places, inside = [], np.ones(())
    for axis, end in enumerate(conv.output_size(inputs.shape[2:])):
        start, stride = rng.integers(0, end, count)[:, None], conv.stride[axis]
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
    where = (at, *places)
    patches = last[where] * inside[..., None]  # (P, *k, I)
    by_channel = np.moveaxis(patches, -1, 1).reshape(count, conv.groups, -1)
    return np.ascontiguousarray(by_channel.swapaxes(0, 1), np.float32)
