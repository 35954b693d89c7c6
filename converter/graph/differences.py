"""How much the outputs of two computations of the same network differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

# Relative difference between two computations of the same network, by the type of the output.
TOLERANCE = {"float32": 1e-3, "float64": 1e-6, "float16": 3e-2}
# Integers come from rounding or argmax, where rounding errors decide ties: 1 % may differ.
INTEGER_TOLERANCE = 1e-2


def difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the relative difference |actual - expected| / |expected|; infinite if shapes differ.

    NaN beside NaN and an infinity beside the same infinity are no difference. For integers, the
    share of elements that differ counts if it is less, because the distance between class indices
    has no meaning. One differing element is ignored.
    """
    if expected.shape != actual.shape:
        return float("inf")
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    odd = ~np.isfinite(a)
    if odd.any():
        if not np.array_equal(a[odd], b[odd], equal_nan=True):
            return float("nan")
        a, b = a[~odd], b[~odd]
    relative = float(np.linalg.norm(b - a)) / (float(np.linalg.norm(a)) or 1.0)
    if expected.dtype.kind in "biu":
        return min(relative, max(int(np.count_nonzero(a != b)) - 1, 0) / max(a.size, 1))
    return relative


def tolerance(array: np.ndarray) -> float:
    """Return the largest relative difference from ``array`` that passes."""
    return TOLERANCE.get(array.dtype.name, INTEGER_TOLERANCE)


def differences(
    expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], names: Iterable[str]
) -> Iterator[tuple[str, float]]:
    """Iterate over the arrays that differ by more than their tolerance: name and difference.

    Strings, sequences and maps are not compared.
    """
    for name in names:
        array: object = expected[name]
        if isinstance(array, np.ndarray) and array.dtype.kind not in "OSU":
            distance = difference(array, actual[name])
            if not distance <= tolerance(array):  # also true of NaN
                yield name, distance
