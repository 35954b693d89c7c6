"""Layouts of detectors' outputs, and their decoding into boxes in pixels and scores from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy.special import expit, softmax

from converter.evaluation.tasks.matching import Detections, suppressed

MAX_LOG_SIZE = 10.0  # larger logarithms of a box's size are cut: their exponential overflows
PLACES, PITCH = 512, 64.0  # places in a row, and their distance, of boxes whose anchors are unknown
MAX_LOG_RATIO = 3.0  # of box to anchor: so boxes of different places never overlap


@dataclass(frozen=True)
class Candidates:
    """Boxes with scores, before or after non-maximum suppression.

    Attributes:
        boxes: (n, A, 4) left, top, right, bottom in input pixels.
        scores: (n, A, C) between 0 and 1, of the classes 0..C-1 or, with ``classes``, (n, A, 1).
        classes: (n, A) integers, where each box has one class.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class Level:
    """A grid of cells over the image, one box for each, row after row."""

    rows: int
    columns: int
    stride: int  # pixels of a cell's side


@dataclass(frozen=True)
class BoxCoding:
    """What the four numbers of a box mean.

    Attributes:
        kind: ``xyxy`` and ``yxyx`` are two corners, ``cxcywh`` centre and size. ``grid`` is that
            of YOLOX (arXiv 2107.08430): the centre relative to a cell of ``levels``, and the
            logarithm of the size, both in strides. ``deltas`` are relative to an anchor that is
            not in the outputs (SSD, arXiv 1512.02325, equation 2).
        scale: What x and y are multiplied by to be pixels.
        levels: The grids of ``grid``, in order.
        variances: What centre and logarithm of the size are multiplied by with ``deltas``.
    """

    kind: Literal["xyxy", "yxyx", "cxcywh", "grid", "deltas"]
    scale: tuple[float, float] = (1.0, 1.0)
    levels: tuple[Level, ...] = ()
    variances: tuple[float, float] = (1.0, 1.0)

    def decode(self, boxes: np.ndarray) -> np.ndarray:
        """Return left, top, right, bottom in input pixels (n, A, 4) of what the network gives.

        ``deltas`` give boxes in units of their anchor, each anchor at a place of its own.
        """
        boxes = boxes.astype(np.float32, copy=False)
        first, second = boxes[..., :2], boxes[..., 2:]
        if self.kind == "grid":
            cells, stride = cells_of(self.levels)
            size = np.exp(np.minimum(second, MAX_LOG_SIZE)) * stride
            return _corners((first + cells) * stride, size)
        if self.kind == "deltas":
            number = np.arange(boxes.shape[1])
            places = np.stack([number % PLACES, number // PLACES], -1).astype(np.float32) * PITCH
            ratio = np.clip(second * self.variances[1], -MAX_LOG_RATIO, MAX_LOG_RATIO)
            shift = np.clip(first * self.variances[0], -PITCH / 8, PITCH / 8)
            return _corners(places + shift, np.exp(ratio))
        scale = np.array(self.scale, np.float32)
        if self.kind == "cxcywh":
            return _corners(first * scale, second * scale)
        if self.kind == "yxyx":
            first, second = first[..., ::-1], second[..., ::-1]
        return np.concatenate([first * scale, second * scale], -1)


@dataclass(frozen=True)
class ScoreCoding:
    """How outputs become scores of classes.

    Attributes:
        activation: What is still to be applied.
        background: Number of the class that means no object; it gives no detections.
    """

    activation: Literal["none", "sigmoid", "softmax"] = "none"
    background: int | None = None

    def decode(self, scores: np.ndarray) -> np.ndarray:
        """Return scores between 0 and 1 (n, A, C) without the background."""
        scores = scores.astype(np.float32, copy=False)
        if self.activation == "sigmoid":
            scores = expit(scores)
        elif self.activation == "softmax":
            scores = softmax(scores, axis=-1)
        if self.background is None:
            return scores
        return np.delete(scores, self.background, -1)


class Layout(Protocol):
    """Where boxes and scores stand in the outputs of a network."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs with boxes and scores."""

    @property
    def after_nms(self) -> bool:
        """Whether the network has suppressed overlapping detections itself."""

    @property
    def boxes(self) -> BoxCoding:
        """What the numbers of a box mean."""

    @property
    def classes(self) -> int | None:
        """Number of classes; None if the outputs do not show it."""

    def count(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return the number of examples of a batch."""

    def decode(self, arrays: Mapping[str, np.ndarray], count: int) -> Candidates:
        """Decode the outputs of a batch of ``count`` examples."""


@dataclass(frozen=True)
class Head:
    """Boxes and scores of all anchors, in one output or two.

    Attributes:
        outputs: One name, or those of boxes and scores.
        boxes: What the numbers of a box mean.
        scores: How outputs become scores.
        anchors_last: For each output, whether it is (N, channels, A), not (N, A, channels).
        objectness: Whether the first score is that of any object; the others are multiplied by it.
        classes: Number of classes.
    """

    outputs: tuple[str, ...]
    boxes: BoxCoding
    scores: ScoreCoding
    anchors_last: tuple[bool, ...]
    objectness: bool
    classes: int
    after_nms = False

    def count(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return the number of examples of a batch."""
        return len(arrays[self.outputs[0]])

    def decode(self, arrays: Mapping[str, np.ndarray], count: int) -> Candidates:
        """Decode the outputs of a batch."""
        tensors = [
            flat(arrays[name]).swapaxes(1, 2) if last else flat(arrays[name])
            for name, last in zip(self.outputs, self.anchors_last)
        ]
        boxes, scores = split(tensors)
        scores = self.scores.decode(scores)
        if self.objectness:
            scores = scores[..., :1] * scores[..., 1:]
        return Candidates(self.boxes.decode(boxes), scores)


def flat(array: np.ndarray) -> np.ndarray:
    """Return (N, A, K) of (N, A, 1, K) or (N, 1, A, K); others as they are."""
    if array.ndim == 4 and 1 in array.shape[1:3]:
        return array.squeeze(1 if array.shape[1] == 1 else 2)
    return array


def split(tensors: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, A, 4) and scores (N, A, C) of one tensor (N, A, 4 + C), or of two."""
    if len(tensors) == 1:
        return tensors[0][..., :4], tensors[0][..., 4:]
    boxes, scores = tensors
    return boxes, scores[..., None] if scores.ndim == 2 else scores


def cells_of(levels: tuple[Level, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return columns and rows (A, 2) of all cells, and their strides (A, 1)."""
    cells = [np.indices((at.columns, at.rows)).transpose(2, 1, 0).reshape(-1, 2) for at in levels]
    strides = np.repeat([at.stride for at in levels], [len(places) for places in cells])
    return np.concatenate(cells).astype(np.float32), strides[:, None].astype(np.float32)


def detect(
    candidates: Candidates, min_score: float, max_iou: float | None, limit: int
) -> list[Detections]:
    """Choose the detections of each example.

    Args:
        candidates: Boxes and scores of n examples.
        min_score: Lowest score of a detection.
        max_iou: Overlap from which a worse detection of the same class is removed; None keeps all.
        limit: How many boxes of an example, the best ones, are looked at.
    """
    result = []
    for number, scores in enumerate(candidates.scores):
        anchor, column = np.nonzero(scores >= min_score)
        score = scores[anchor, column]
        if len(score) > limit:  # before they are sorted: there may be hundreds of thousands
            some = np.argpartition(-score, limit)[:limit]
            anchor, column, score = anchor[some], column[some], score[some]
        best = np.argsort(-score, kind="stable")
        anchor = anchor[best]
        named = candidates.classes
        classes = column[best] if named is None else named[number, anchor]
        detections = Detections(candidates.boxes[number, anchor], score[best], classes)
        result.append(detections if max_iou is None else suppressed(detections, max_iou))
    return result


def _corners(centre: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.concatenate([centre - size / 2, centre + size / 2], -1)
