"""Kernels of the steps that chains are made of, and their shapes."""

from __future__ import annotations

import numpy as np

from converter.decomposition.form import Shape


def pointwise(matrix: np.ndarray, axes: int) -> np.ndarray:
    """Make a 1x1 kernel of a matrix, any float type: (O, I) -> (O, I, 1, 1) for two axes."""
    return matrix.reshape(*matrix.shape, *[1] * axes)


def along(factor: np.ndarray, axis: int, axes: int) -> np.ndarray:
    """Make a depthwise 1-D kernel of a factor: (K, R) -> (R, 1, K, 1) for axis 0 of two."""
    shape = [1] * axes
    shape[axis] = factor.shape[0]
    kernel: np.ndarray = factor.T.reshape(-1, 1, *shape)
    return kernel


def columns(kernel: np.ndarray) -> np.ndarray:
    """Reverse ``along``, and ``pointwise`` of a transposed factor: (R, ...) -> (n, R)."""
    factor: np.ndarray = kernel.reshape(len(kernel), -1).T
    return factor


def covered_axes(k: tuple[int, ...]) -> list[int]:
    """List the axes that a kernel of size ``k`` extends over."""
    return [axis for axis, size in enumerate(k) if size > 1]


def squeezed(shape: Shape) -> Shape:
    """Leave out the axes of size 1 of a kernel's shape (O, I, *k)."""
    return (*shape[:2], *(size for size in shape[2:] if size > 1))


def axis_window(axis: int, size: int, shape: Shape) -> Shape:
    """Return the window of a step that covers one axis of a kernel of ``shape``."""
    return tuple(size if a == axis else 1 for a in range(len(shape) - 2))


def ones(shape: Shape) -> Shape:
    """Return the window of a pointwise step."""
    return (1,) * (len(shape) - 2)


def one_axis_shapes(shape: Shape, R: int) -> list[tuple[Shape, int]]:
    """List the shapes of depthwise 1-D steps, one for each axis that the kernel covers."""
    return [((R, 1, *axis_window(a, shape[2 + a], shape)), R) for a in covered_axes(shape[2:])]


def needs_window(k: tuple[int, ...]) -> str | None:
    """Refuse a kernel that does not extend over any axis."""
    layer = "1x1 kernel" if k else "linear layer"
    return None if covered_axes(k) else f"a {layer} has nothing to separate in space"


def needs_two_axes(k: tuple[int, ...]) -> str | None:
    """Refuse a kernel that does not extend over two axes."""
    return None if len(covered_axes(k)) > 1 else "its kernel does not extend over two axes"
