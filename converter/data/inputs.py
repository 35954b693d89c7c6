"""The inputs of a network, and arrays with the examples in front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Size = TypeVar("Size", int, "int | None")


@dataclass(frozen=True)
class Input:
    """An input of a network, with the examples in front.

    Attributes:
        name: Its name.
        shape: Sizes, None where one is free; () for a torch model that was not run yet.
        dtype: Type of numpy.
        axis: Axis along which a caller gives the examples; None if all share one value.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype
    axis: int | None = 0

    def shape_from(self, given: tuple[int, ...], batch: int = 1) -> tuple[int, ...]:
        """Return the shape with the examples in front, of the shape that a caller gives."""
        if self.axis is None:
            return (batch, *given)
        if not 0 < self.axis < len(given):
            return given
        return (given[self.axis], *given[: self.axis], *given[self.axis + 1 :])

    def shape_given(self, shape: tuple[Size, ...]) -> tuple[Size, ...]:
        """Return the shape that a caller gives, of that with the examples in front."""
        end = 0 if self.axis is None else self.axis + 1
        batch = shape[:1] if end else ()
        return shape[1:end] + batch + shape[max(end, 1) :]


def examples_in_front(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[Input]
) -> dict[str, np.ndarray]:
    """Bring the examples of a caller's arrays to the front, and repeat what they share.

    Args:
        arrays: By input name, as a caller of the network gives them.
        inputs: The network's inputs.
    """
    given = [item for item in inputs if item.name in arrays]
    result = {item.name: arrays[item.name] for item in given}
    for item in given:
        if item.axis and item.axis < result[item.name].ndim:
            result[item.name] = np.moveaxis(result[item.name], item.axis, 0)
    counts = [len(result[i.name]) for i in given if i.axis is not None and result[i.name].ndim]
    for item in given:
        array = result[item.name]
        if item.axis is None and array.ndim == len(item.shape) - 1:  # else one for each example
            result[item.name] = np.broadcast_to(array, (max(counts, default=1), *array.shape))
    return result
