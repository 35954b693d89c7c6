"""Mean average precision of detections, as COCO defines it, by pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.errors import ConverterError

MAX_DETECTIONS = 100  # of an image, as in COCO
GROUPS = 20  # of images, each left out once for the standard error


@dataclass(frozen=True)
class Precision:
    """Mean average precision on a set of images and on its parts.

    Attributes:
        mean: Mean over the classes and the overlaps 0.5, 0.55, ... 0.95; 0 to 1.
        at_half: Mean over the classes at the overlap 0.5.
        left_out: (G,) ``mean`` without each of G groups of images.
    """

    mean: float
    at_half: float
    left_out: np.ndarray


def missing_library() -> str | None:
    """Say in a sentence how to install pycocotools; None if it is there."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        return "Labels with boxes need pycocotools; pip install 'flatconv[detect]'."
    return None


def average_precision(detections: np.ndarray, labels: np.ndarray) -> Precision:
    """Compute the mean average precision.

    Args:
        detections: (N, D, 6) left, top, right, bottom, score, class; rows of score 0 are none.
        labels: (N, M, 5) class, left, top, right, bottom; rows of a negative class are none.

    Raises:
        ConverterError: When pycocotools is not installed.
    """
    sentence = missing_library()
    if sentence is not None:
        raise ConverterError(sentence)
    evaluator = _evaluate(detections, labels)
    groups = np.arange(len(labels)) % min(GROUPS, len(labels))
    every = _mean_precision(evaluator, np.full(len(labels), True))
    left_out = [_mean_precision(evaluator, groups != group)[0] for group in range(groups.max() + 1)]
    return Precision(*every, np.array(left_out))


def standard_error_of_drop(before: Precision, after: Precision) -> float:
    """Return the standard error of the drop of ``mean``, by the jackknife over groups.

    It is infinite with fewer than two groups, and where the first network finds nothing.
    """
    drops = before.left_out - after.left_out
    count = len(drops)
    if count < 2 or not before.mean:
        return math.inf
    return math.sqrt(float(np.square(drops - drops.mean()).sum()) * (count - 1) / count)


def _evaluate(detections: np.ndarray, labels: np.ndarray) -> Any:
    """Match detections and labels image by image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    image, row = np.nonzero(labels[..., 0] >= 0)
    classes, boxes = labels[image, row, 0].astype(int), labels[image, row, 1:].astype(float)
    sizes = boxes[:, 2:] - boxes[:, :2]
    images = [{"id": number} for number in range(len(labels))]
    categories = [{"id": number} for number in np.unique(classes).tolist()]
    annotations = [
        {
            "id": number + 1,
            "image_id": image_id,
            "category_id": category,
            "bbox": [*corner, *size],
            "area": size[0] * size[1],
            "iscrowd": 0,
        }
        for number, (image_id, category, corner, size) in enumerate(
            zip(image.tolist(), classes.tolist(), boxes[:, :2].tolist(), sizes.tolist())
        )
    ]
    image, row = np.nonzero(detections[..., 4] > 0)
    x, y, right, bottom, score, label = detections[image, row].astype(float).T
    results = np.stack([image, x, y, right - x, bottom - y, score, label], 1)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, detected = COCO(), COCO()
        truth.dataset = {"images": images, "categories": categories, "annotations": annotations}
        truth.createIndex()
        detected.dataset = {**truth.dataset, "annotations": []}
        detected.createIndex()
        if len(results):
            detected = truth.loadRes(results)
        evaluator = COCOeval(truth, detected, "bbox")
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [MAX_DETECTIONS]
        evaluator.evaluate()
    return evaluator


def _mean_precision(evaluator: Any, chosen: np.ndarray) -> tuple[float, float]:
    """Return the mean over all overlaps, and at 0.5, on the images with ``chosen`` (N,)."""
    part = copy.copy(evaluator)
    results = np.array(evaluator.evalImgs, object).reshape(-1, len(chosen))  # images change fastest
    results[:, ~chosen] = None
    part.evalImgs = results.ravel().tolist()
    with contextlib.redirect_stdout(io.StringIO()):
        part.accumulate()
    precision = part.eval["precision"]  # (overlaps, recalls, classes, 1, 1); -1 without labels
    return _mean(precision), _mean(precision[:1])


def _mean(precision: np.ndarray) -> float:
    known = precision[precision >= 0]
    return float(known.mean()) if known.size else 0.0
