"""Layouts, groups and composition of kernels (taps are the entries of a filter)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def swap_in_out(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Rearrange a transposed convolution's kernel (I, O/groups, *k) to (O, I/groups, *k), or back.

    Args:
        kernel: (groups * a, b, *k).
        groups: Groups of the convolution.

    Returns:
        (groups * b, a, *k), in C order.
    """
    rows, columns, *k = kernel.shape
    split = kernel.reshape(groups, rows // groups, columns, *k).swapaxes(1, 2)
    return np.ascontiguousarray(split).reshape(groups * columns, rows // groups, *k)


def stage_sizes(size: int) -> tuple[int, int]:
    """Split a kernel's size into those of two stages with the same receptive field: 5 = 3 and 3."""
    second = (size + 1) // 2
    return size + 1 - second, second


def merge_groups(kernel: np.ndarray, groups: int, outer: int) -> np.ndarray:
    """Write a grouped kernel with fewer groups; the new entries are zeros.

    Args:
        kernel: (O, I/groups, *k), any float type.
        groups: Groups of the convolution.
        outer: Number of groups of the result; it divides ``groups``.

    Returns:
        (outer, O/outer, I/outer, *k), float64.
    """
    inner = groups // outer
    O, i, *k = kernel.shape
    o = O // groups
    blocks = np.zeros((outer, inner, o, inner, i, *k))
    parts = kernel.astype(np.float64).reshape(outer, inner, o, i, *k)
    for n in range(inner):
        blocks[:, n, :, n] = parts[:, n]
    return blocks.reshape(outer, inner * o, inner * i, *k)


def compose_taps(
    first: np.ndarray, second: np.ndarray, near: Sequence[int], far: Sequence[int]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Compose two kernels: taps t1 of the first and t2 of the second give tap near t1 + far t2.

    Args:
        first: (groups, M, I, *k1).
        second: (groups, O, M, *k2).
        near: Distance between taps of the first along each axis, in positions of the result.
        far: Distance between taps of the second.

    Returns:
        The kernel (groups, O, I, *k), and its dilation: the largest that fits all taps.
    """
    k1, k2 = first.shape[3:], second.shape[3:]
    dilation, k = [], []
    for axis in range(len(k1)):
        spans = (near[axis], k1[axis]), (far[axis], k2[axis])
        unit = math.gcd(*(step if size > 1 else 0 for step, size in spans)) or 1
        dilation.append(unit)
        k.append(sum(step * (size - 1) for step, size in spans) // unit + 1)
    groups, O, I = len(first), second.shape[1], first.shape[2]
    kernel = np.zeros((groups, O, I, *k))
    flat = first.reshape(groups, first.shape[1], -1)
    for tap in np.ndindex(*k2):
        at, slices = (..., *tap), [slice(None)] * 3
        product = (second[at] @ flat).reshape(groups, O, I, *k1)
        for axis, unit in enumerate(dilation):
            start = far[axis] * tap[axis] // unit
            step = max(near[axis] // unit, 1)
            slices.append(slice(start, start + step * (k1[axis] - 1) + 1, step))
        kernel[tuple(slices)] += product
    return kernel, tuple(dilation)
