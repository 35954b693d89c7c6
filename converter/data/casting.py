"""Casts of arrays to the types of a network's inputs, where no value may be lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from converter.errors import ConverterError

SIDES = 32  # most networks halve the sides of an image five times


def cast(array: np.ndarray, dtype: np.dtype, name: str, source: str) -> np.ndarray:
    """Cast an array to the type of an input; floats may be rounded to shorter floats.

    Args:
        array: Values of an input.
        dtype: Type that the input takes.
        name: Name of the input in messages.
        source: Name of the data in messages.

    Raises:
        ConverterError: When integers or booleans cannot hold the values, or floats are too short.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(dtype)
    if dtype.kind in "iub":
        changed = result.astype(np.float64) != array.astype(np.float64)
    else:
        changed = ~np.isfinite(result.astype(np.float64))
    if changed.any():
        raise ConverterError(
            f"Data {source} holds {array[changed].flat[0]:g} for input {name!r}, which takes "
            f"{dtype.name}; give values that this type can hold."
        )
    return result


def shape_advice(sizes: tuple[int, ...], expected: tuple[int | None, ...]) -> str:
    """Say which option may help where images are not of the expected shape.

    Args:
        sizes: Shape of an example.
        expected: Shape that the network takes; None for a free size.

    Returns:
        A sentence after a space, or an empty text.
    """

    def fits(*shape: int) -> bool:
        return all(n in (None, m) for n, m in zip(expected, shape))

    if len(sizes) != 3 or len(expected) != 3:
        return ""
    a, b, c = sizes
    if fits(b, c, a):
        return " Give --layout nhwc."
    if fits(c, a, b):
        return " Leave out --layout nhwc."
    if expected[0] in (None, a):
        return f" For image files, {size_advice(expected[1:], [(b, c)])}."
    if expected[2] in (None, c):
        return f" For image files, {size_advice(expected[:2], [(a, b)])}."
    return ""


def size_advice(expected: Sequence[int | None], sizes: Iterable[tuple[int, int]]) -> str:
    """Say how images of several sizes are brought to one.

    Args:
        expected: Height and width that the network takes; None for a free one.
        sizes: Heights and widths of the images.

    Returns:
        Part of a sentence.
    """
    wanted = {n for n in expected if n is not None}
    if len(wanted) > 1:
        height, width = expected
        return f"save them with a height of {height} and a width of {width} pixels"
    shortest = min(min(size) for size in sizes)
    side = wanted.pop() if wanted else max(shortest // SIDES * SIDES, min(shortest, SIDES))
    return f"give --resize {side} --crop {side}"
