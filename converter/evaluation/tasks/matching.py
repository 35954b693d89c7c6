"""Detections of one image: overlap, non-maximum suppression, and pairs of two networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detections:
    """Detections in one image, highest score first.

    Attributes:
        boxes: (K, 4) left, top, right, bottom.
        scores: (K,) between 0 and 1.
        classes: (K,) integers.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union (K, L) of boxes (K, 4) and (L, 4); 0 for empty boxes."""
    shared = np.ones((len(a), len(b)), np.result_type(a, b, np.float32))
    for low, high in ((0, 2), (1, 3)):
        side = np.minimum(a[:, None, high], b[:, high]) - np.maximum(a[:, None, low], b[:, low])
        shared *= np.maximum(side, 0, out=side)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    return np.asarray(shared / np.where(union > 0, union, 1))


def suppressed(detections: Detections, max_iou: float) -> Detections:
    """Remove detections that overlap a better one of the same class (non-maximum suppression).

    Args:
        detections: Highest score first.
        max_iou: Detections whose intersection over union is above this overlap.
    """
    kept = np.ones(len(detections.scores), bool)
    for label in np.unique(detections.classes):
        (members,) = np.nonzero(detections.classes == label)
        kept[members] = _not_suppressed(detections.boxes[members], max_iou)
    return Detections(detections.boxes[kept], detections.scores[kept], detections.classes[kept])


def matched(before: Detections, after: Detections, min_iou: float) -> np.ndarray:
    """Pair the detections of two networks in one image.

    Pairs are of the same class and overlap by at least ``min_iou``. They are made greedily, in the
    order of the lower of their two scores. So the pairs whose scores are both at least t are those
    that the same rule makes of the detections with scores of at least t, for every t.

    Returns:
        (P, 2) indices into ``before`` and ``after``; each occurs at most once.
    """
    overlaps = iou(before.boxes, after.boxes)
    same_class = before.classes[:, None] == after.classes[None]
    i, j = np.nonzero((overlaps >= min_iou) & same_class)
    order = np.lexsort((-overlaps[i, j], -np.minimum(before.scores[i], after.scores[j])))
    free_before, free_after = np.ones(len(before.scores), bool), np.ones(len(after.scores), bool)
    pairs = []
    for k, l in zip(i[order].tolist(), j[order].tolist()):
        if free_before[k] and free_after[l]:
            free_before[k] = free_after[l] = False
            pairs.append((k, l))
    return np.array(pairs, int).reshape(-1, 2)


def count_matches(
    before: Detections, after: Detections, min_iou: float, at: np.ndarray
) -> np.ndarray:
    """Count right, wrong and missed detections of ``after``, with ``before`` as the truth.

    Args:
        before: Detections of the original.
        after: Detections of another network.
        min_iou: Intersection over union of a pair.
        at: (T,) scores from which a detection counts.

    Returns:
        (3, T) true positives, false positives and false negatives.
    """
    i, j = matched(before, after, min_iou).T
    both = np.minimum(before.scores[i], after.scores[j])
    pairs, originals, others = (
        (scores[:, None] >= at).sum(0) for scores in (both, before.scores, after.scores)
    )
    return np.stack([pairs, others - pairs, originals - pairs])


def _not_suppressed(boxes: np.ndarray, max_iou: float) -> np.ndarray:
    """Say which boxes (K, 4) of one class stay (K,).

    A box stays if no better one that stays overlaps it, which has one solution. It is found by
    applying that rule to all boxes at once until nothing changes.
    """
    worse = np.triu(iou(boxes, boxes) > max_iou, 1)
    (suppressing,) = np.nonzero(worse.any(1))
    worse = worse[suppressing]
    kept, settled = np.ones(len(boxes), bool), False
    while not settled:
        before, kept = kept, np.asarray(~worse[kept[suppressing]].any(0))
        settled = np.array_equal(kept, before)
    return kept
