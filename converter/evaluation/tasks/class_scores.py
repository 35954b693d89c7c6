"""``ClassScores``: where an output holds its classes, and what its numbers are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from converter.errors import ConverterError

MAX_COUNTED = 512  # classes that are counted one by one; further ones share the counts of these
TINY = 1e-12


@dataclass(frozen=True)
class ClassScores:
    """How to read the classes that an output gives at its positions.

    Attributes:
        batch_axis: Axis of the examples.
        class_axis: Axis of the classes; None if every position has one number.
        classes: C, the number of classes; with one score a position there is one, the foreground.
        independent: Whether every class is decided by itself, as by a Sigmoid.
        probabilities: Whether the numbers are probabilities, not logits.
        whole: Whether the numbers are whole and name the classes.
    """

    batch_axis: int
    class_axis: int | None
    classes: int
    independent: bool = False
    probabilities: bool = False
    whole: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        output: np.ndarray,
        class_axis: int | None = None,
        batch_axis: int = 0,
        independent: bool = False,
        single: bool = False,
    ) -> ClassScores:
        """Describe an output by the original's values for sample inputs.

        Args:
            name: The name of the output.
            output: Scores with an axis of classes, such as (N, C, H, W), (N, 1, H, W), (N, T, C) or
                (T, N, C), or classes as whole numbers, such as (N, H, W).
            class_axis: Axis of the classes. If left out: the axis along which probabilities sum to
                1, else axis 1 of images and volumes, and the last of sequences.
            batch_axis: Axis of the examples.
            independent: Whether every class is decided by itself. It always is where there is one
                score a position, or where probabilities do not sum to 1.
            single: Whether there is one score a position, and no axis of classes.

        Raises:
            ConverterError: When the output has no positions, or is neither scores nor classes.
        """
        if output.dtype.kind in "iub":
            if output.ndim == 0:
                raise _refusal(name, output)
            return cls(batch_axis, None, int(output.max(initial=1)) + 1, whole=True)
        if output.ndim < (2 if single else 3) or output.dtype.kind != "f":
            raise _refusal(name, output)
        inside = bool(output.min(initial=0) >= 0 and output.max(initial=0) <= 1 + 1e-3)
        if single:
            return cls(batch_axis, None, 1, True, inside)
        if class_axis is None:
            class_axis = probability_axis(output, batch_axis) if inside else None
        if class_axis is None:
            class_axis = 1 if output.ndim > 3 else 2
        sums_to_one = inside and np.allclose(output.sum(class_axis), 1, atol=1e-2)
        classes = output.shape[class_axis]
        independent = independent or classes == 1 or (inside and not sums_to_one)
        return cls(batch_axis, class_axis, classes, independent, inside)

    @property
    def counted(self) -> int:
        """How many classes are counted."""
        return min(self.classes, MAX_COUNTED)

    def arranged(self, output: np.ndarray) -> np.ndarray:
        """Return scores (n, C, positions), or classes (n, positions)."""
        rows = np.moveaxis(output, self.batch_axis, 0)
        if self.whole:
            return rows.reshape(len(rows), -1).astype(np.int64)
        if self.class_axis is None:
            return rows.reshape(len(rows), 1, -1)
        axis = self.class_axis + (self.class_axis < self.batch_axis)
        return np.moveaxis(rows, axis, 1).reshape(len(rows), self.classes, -1)

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Return probabilities (..., C, positions) of scores of that shape."""
        scores = scores.astype(np.float32, copy=False)
        if self.probabilities:
            return scores
        return np.asarray(expit(scores) if self.independent else softmax(scores, axis=-2))

    def counts(self, *choices: np.ndarray) -> np.ndarray:
        """Count the positions of each class where several choices of one example agree.

        Args:
            choices: Classes (positions,), or decisions (C, positions) if they are independent.

        Returns:
            (``counted``,) numbers of positions.
        """
        first = choices[0]
        if self.independent:
            return np.asarray(np.logical_and.reduce(choices).sum(1), dtype=float)
        same = np.logical_and.reduce([first == choice for choice in choices])
        return self.summed(first[same])

    def summed(self, classes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Sum ``weights`` (1 each if left out) by class; (``counted``,)."""
        return np.bincount(classes % self.counted, weights, self.counted).astype(float)

    def choice(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the likeliest classes (positions,), or independent decisions (C, positions)."""
        return probabilities > 0.5 if self.independent else probabilities.argmax(-2)


def probability_axis(output: np.ndarray, batch_axis: int = 0) -> int | None:
    """Return the axis along which numbers from 0 to 1 sum to 1; None if there is none."""
    output = np.take(output, range(min(2, output.shape[batch_axis])), batch_axis)
    for axis in reversed(range(output.ndim)):
        several = axis != batch_axis and output.shape[axis] > 1
        if several and np.allclose(output.sum(axis, dtype=np.float64), 1, atol=1e-2):
            return axis
    return None


def valid_examples(before: np.ndarray, after: np.ndarray, batch_axis: int = 0) -> np.ndarray:
    """Whether each example of ``after`` has finite values (n,); none has if the shapes differ."""
    count = before.shape[batch_axis]
    if after.shape != before.shape:
        return np.zeros(count, bool)
    rows = np.moveaxis(after, batch_axis, 0).reshape(count, -1)
    return np.asarray(np.isfinite(rows).all(1))


def whole_numbers(labels: np.ndarray) -> bool:
    """Whether labels are whole numbers, of any type."""
    return labels.dtype.kind in "iub" or (
        labels.dtype.kind == "f" and bool(np.array_equal(labels, np.round(labels)))
    )


def _refusal(name: str, output: np.ndarray) -> ConverterError:
    return ConverterError(
        f"--task label does not fit output {name!r} of shape {output.shape}: it has no class for "
        "each of several positions."
    )
