"""Detections after non-maximum suppression: one row for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from converter.evaluation.tasks.boxes import BoxCoding, Candidates


@dataclass(frozen=True)
class JointRows:
    """Rows (N, M, K) or (M, K) of detections after non-maximum suppression.

    Attributes:
        outputs: One name.
        boxes: What the numbers of a box mean.
        box: First of the four columns of the box.
        scores: The columns whose product is the score.
        label: The column of the class.
        example: The column with the number of the example; rows with negative ones are padding.
            None where the first axis is that of the examples, or there is only one.
    """

    outputs: tuple[str, ...]
    boxes: BoxCoding
    box: int
    scores: tuple[int, ...]
    label: int
    example: int | None = None
    after_nms = True
    classes = None

    def count(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return the number of examples of a batch; examples without rows at its end are missed."""
        rows = arrays[self.outputs[0]]
        if self.example is None:
            return len(rows) if rows.ndim > 2 else 1
        return int(rows.reshape(-1, rows.shape[-1])[:, self.example].max(initial=0)) + 1

    def decode(self, arrays: Mapping[str, np.ndarray], count: int) -> Candidates:
        """Decode the outputs of a batch of ``count`` examples; missing rows have the score 0."""
        rows = arrays[self.outputs[0]]
        if self.example is None:
            rows = rows.reshape(count, -1, rows.shape[-1])
        else:
            rows = _by_example(rows.reshape(-1, rows.shape[-1]), self.example, count)
        return Candidates(
            self.boxes.decode(rows[..., self.box : self.box + 4]),
            rows[..., list(self.scores)].prod(-1, keepdims=True),
            np.rint(rows[..., self.label]).astype(int),
        )


@dataclass(frozen=True)
class SeparateRows:
    """Boxes (N, M, 4), scores (N, M) and classes (N, M) after non-maximum suppression.

    Attributes:
        outputs: Names of boxes, scores, classes and, if there is one, the number of detections.
        boxes: What the numbers of a box mean.
        batched: Whether the outputs have an axis of examples.
        after_nms: Whether the network has suppressed overlapping detections itself.
    """

    outputs: tuple[str, ...]
    boxes: BoxCoding
    batched: bool
    after_nms: bool
    classes = None

    def count(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return the number of examples of a batch."""
        return len(arrays[self.outputs[0]]) if self.batched else 1

    def decode(self, arrays: Mapping[str, np.ndarray], count: int) -> Candidates:
        """Decode the outputs of a batch of ``count`` examples."""
        boxes, scores, labels = (arrays[name] for name in self.outputs[:3])
        scores = scores.reshape(count, -1).astype(np.float32)
        if len(self.outputs) > 3:
            number = arrays[self.outputs[3]].reshape(count, 1)
            scores = np.where(np.arange(scores.shape[1]) < number, scores, 0)
        classes = np.rint(labels.reshape(count, -1)).astype(int)
        decoded = self.boxes.decode(boxes.reshape(count, -1, 4))
        return Candidates(decoded, scores[..., None], classes)


def _by_example(rows: np.ndarray, column: int, count: int) -> np.ndarray:
    """Sort rows (M, K) into (count, most rows of an example, K), filled up with zeros."""
    rows = rows[(rows[:, column] >= 0) & (rows[:, column] < count)]
    rows = rows[np.argsort(rows[:, column], kind="stable")]
    examples = rows[:, column].astype(int)
    counts = np.bincount(examples, minlength=count)
    result = np.zeros((count, counts.max(initial=0), rows.shape[1]), np.float32)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    result[examples, within] = rows
    return result
