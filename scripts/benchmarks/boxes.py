"""Detections of two detectors that packages carry, and how many of them two networks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

MAX_OVERLAP, MIN_OVERLAP, MIN_SCORE = 0.5, 0.5, 0.1


@dataclass(frozen=True)
class Boxes:
    """Detections of one image, the best first: corners (K, 4), scores (K,), classes (K,)."""

    corners: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


Decode: TypeAlias = Callable[[np.ndarray], list[Boxes]]


def yolox(output: np.ndarray, size: int = 416) -> list[Boxes]:
    """Decode (n, A, 5 + C): centres and logarithms of sizes in cells, objectness, classes."""
    strides = np.repeat((8, 16, 32), [(size // stride) ** 2 for stride in (8, 16, 32)])
    cells = np.concatenate(
        [np.indices((size // s,) * 2)[::-1].reshape(2, -1) for s in (8, 16, 32)], 1
    )
    centres = (output[..., :2] + cells.T) * strides[:, None]
    sizes = np.exp(output[..., 2:4]) * strides[:, None]
    return decoded(centres, sizes, output[..., 4:5] * output[..., 5:])


def yolov8(output: np.ndarray) -> list[Boxes]:
    """Decode (n, 4 + C, A): centres and sizes in pixels, classes."""
    rows = output.swapaxes(1, 2)
    return decoded(rows[..., :2], rows[..., 2:4], rows[..., 4:])


def decoded(centres: np.ndarray, sizes: np.ndarray, scores: np.ndarray) -> list[Boxes]:
    """Keep the boxes of some score that no better one of their class overlaps, image by image."""
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], -1)
    best, classes = scores.max(-1), scores.argmax(-1)
    return [
        suppressed(c[s >= MIN_SCORE], s[s >= MIN_SCORE], k[s >= MIN_SCORE])
        for c, s, k in zip(corners, best, classes)
    ]


def suppressed(corners: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> Boxes:
    """Suppress boxes that overlap a better one of their class."""
    order = np.argsort(-scores, kind="stable")
    overlaps = iou(corners, corners)
    kept: list[int] = []
    for n in order:
        if not any(classes[n] == classes[m] and overlaps[n, m] > MAX_OVERLAP for m in kept):
            kept.append(int(n))
    return Boxes(corners[kept], scores[kept], classes[kept])


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Give the intersection over union (K, L) of boxes (K, 4) and (L, 4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-9))


def count_matches(before: Boxes, after: Boxes, thresholds: np.ndarray) -> np.ndarray:
    """Count, for each threshold of the score: pairs, boxes of one, boxes of the other.

    Pairs are of one class and overlap by half; the best boxes choose first.
    """
    counts = []
    overlaps = iou(before.corners, after.corners)
    overlaps[before.classes[:, None] != after.classes] = 0
    for threshold in thresholds:
        a, b = (int((boxes.scores >= threshold).sum()) for boxes in (before, after))
        free, pairs = np.ones(b, bool), 0
        for row in overlaps[:a, :b]:
            candidates = np.where(free, row, 0)
            if b and candidates.max() >= MIN_OVERLAP:
                free[candidates.argmax()] = False
                pairs += 1
        counts.append((pairs, a, b))
    return np.array(counts)
