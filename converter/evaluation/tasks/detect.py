"""``detect``: outputs are boxes and scores; what is lost are detections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from converter.data.data import Arrays
from converter.errors import ConverterError
from converter.evaluation.tasks.boxes import Candidates, Layout, detect
from converter.evaluation.tasks.layouts import find_layout, image_size
from converter.evaluation.tasks.matching import Detections, count_matches, matched
from converter.evaluation.tasks.mean_precision import (
    MAX_DETECTIONS,
    average_precision,
    missing_library,
    standard_error_of_drop,
)
from converter.evaluation.tasks.task import Judgement, jackknife

MIN_IOU = 0.5  # of two boxes that are the same detection
NMS_IOU, LABELLED_NMS_IOU = 0.5, 0.65  # the second as YOLOX has it for mAP
NEAR_IOU = 0.1  # of rows whose boxes are compared by ``surrogate``
THRESHOLDS = 21
RANGE = (0.3, 0.8)  # of the thresholds, as parts of the top score
MIN_TOP_SCORE = 0.05  # a lower one is no detection
DEFAULT_TOP_SCORE = 0.9
MIN_LABELLED_SCORE = 0.001
MAX_CANDIDATES = 2000  # boxes of an example that are looked at
MAX_LABELLED_CANDIDATES = 1000
EXAMPLES = 16  # that are decoded at once


@dataclass(frozen=True)
class Detect:
    """Detections: boxes with a class and a score.

    Without labels the original's detections are the truth, and the loss is 1 - F1 at an
    intersection over union of 0.5 with the same class, after non-maximum suppression class by
    class. F1 is the mean over evenly spaced score thresholds. They span 0.3 to 0.8 of the top
    score of the original: the score that the best detection reaches in one example of ten. So they
    lie where its users would set them, for networks whose scores end at 0.3, too. The mean also
    makes the loss smooth: a detection whose score falls by d counts for d divided by the width of
    that range, as it is lost at that share of the thresholds only.

    With labels the loss is the drop of the mean average precision.

    Attributes:
        layout: Where boxes and scores stand in the outputs.
        thresholds: Scores from which a detection counts, ascending.
        weight: Sum of the weights of the original's boxes in ``surrogate``, the mean of examples.
    """

    layout: Layout
    thresholds: tuple[float, ...]
    weight: float
    name: ClassVar[str] = "detect"
    unit: ClassVar[str] = "F1 of detections"

    @classmethod
    def of(cls, outputs: Mapping[str, np.ndarray], input_shape: tuple[int, ...]) -> Detect:
        """Recognise the layout of a detector.

        Args:
            outputs: The original's outputs (N, ...) by name on N sample inputs.
            input_shape: Shape (N, C, H, W) or (N, H, W, C) of the input with the image.

        Raises:
            ConverterError: When no known layout fits.
        """
        task = _detect_of(outputs, input_shape, plausible=False)
        if task is None:
            names = ", ".join(f"{n} {'x'.join(map(str, a.shape))}" for n, a in outputs.items())
            raise ConverterError(
                f"--task detect: the outputs {names} fit no known layout of boxes and scores "
                "(YOLOv5, YOLOv8, YOLOX, SSD, RetinaNet, or rows of detections); give sample "
                "images with objects, or another task."
            )
        return task

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs with boxes and scores."""
        return self.layout.outputs

    def check_labels(self, labels: np.ndarray) -> str | None:
        """Say in a sentence why labels (N, M, 5) do not fit; None if they do."""
        if self.layout.boxes.kind == "deltas":
            return (
                "The network's boxes are relative to anchors that are not in its outputs, so they "
                "cannot be compared with labels; give --eval without labels."
            )
        if labels.ndim != 3 or labels.shape[2] != 5:
            return (
                "Labels of a detector must have the shape (examples, boxes, 5): class, left, top, "
                f"right, bottom; these have {labels.shape}."
            )
        if not np.isfinite(labels).all():
            return "The labels hold NaN or infinite values; give finite boxes."
        classes = labels[..., 0]
        if not (classes >= 0).any():
            return "The labels hold no boxes; give labelled images, or no labels."
        if (classes != np.rint(classes)).any():
            return "The first column of the labels, the class, must be whole numbers."
        count = self.layout.classes
        if count is not None and classes.max() >= count:
            return f"The labels have a class {classes.max():.0f}; the network has 0 to {count - 1}."
        return missing_library()

    def compare(self, before: Arrays, after: Arrays, labels: np.ndarray | None) -> Arrays:
        """Compare one batch.

        Args:
            before: Outputs of the original.
            after: Outputs of another version.
            labels: (n, M, 5) class, left, top, right, bottom in input pixels; rows of class -1
                are none.

        Returns:
            ``counts`` (n, 3, T): true positives, false positives and false negatives at each
            threshold. With labels also ``labels``, and the best ``detections_before`` and
            ``detections_after`` (n, 100, 6): box, score, class.
        """
        candidates = self._decode(before, after, labels)
        nms_iou = None if self.layout.after_nms else NMS_IOU
        detections = [detect(c, self.thresholds[0], nms_iou, MAX_CANDIDATES) for c in candidates]
        at = np.array(self.thresholds)
        counts = [count_matches(old, new, MIN_IOU, at) for old, new in zip(*detections)]
        rows = {"counts": np.array(counts, np.int32).reshape(-1, 3, len(at))}
        if labels is None:
            return rows
        rows["labels"] = labels
        nms_iou = None if self.layout.after_nms else LABELLED_NMS_IOU
        for name, some in zip(("before", "after"), candidates):
            best = detect(some, MIN_LABELLED_SCORE, nms_iou, MAX_LABELLED_CANDIDATES)
            rows[f"detections_{name}"] = np.stack([_table(detections) for detections in best])
        return rows

    def judge(self, rows: Arrays) -> Judgement:
        """Judge the loss from the results of ``compare`` for all examples.

        Where the original detects nothing, ``original_detections`` of the details is 0, and the
        standard error infinite.

        Raises:
            ConverterError: When there are labels, and pycocotools is not installed.
        """
        counts = rows["counts"]
        lost, error = jackknife(counts.reshape(len(counts), -1), self._mean_loss)
        right, wrong, missed = counts.sum(0, dtype=np.int64)  # (T,) each
        originals = right + missed
        error = error if originals.any() else math.inf
        details: dict[str, float] = {
            "f1": 1 - lost,
            "precision": float(_ratio(right, right + wrong).mean()),
            "recall": float(_ratio(right, originals).mean()),
            "original_detections": int(originals.max()),
            "lowest_threshold": self.thresholds[0],
            "highest_threshold": self.thresholds[-1],
        }
        if "labels" not in rows:
            return Judgement(lost, error, details=details)
        before, after = (
            average_precision(rows[f"detections_{name}"], rows["labels"])
            for name in ("before", "after")
        )
        details |= {"ap50_before": before.at_half, "ap50_after": after.at_half}
        error = standard_error_of_drop(before, after)
        return Judgement(before.mean - after.mean, error, before.mean, after.mean, details)

    def surrogate(self, before: Arrays, after: Arrays) -> np.ndarray:
        """Return a smooth stand-in for the loss (n,), a squared error of scores and boxes.

        Boxes count that have a notable score in one of the networks. Both parts are scaled so that
        1 is a detection lost: a score that falls by the width of the range of thresholds, or a box
        that moves by its own width or height. (Half the overlap is lost from a third of that, but
        nothing before, whereas a score counts from the start.) The sum over the boxes of an
        example is divided by how many notable ones the original has in an example.
        """
        old, new = self._decode(before, after, None)
        if old.classes is None:
            errors = self._error_of_anchors(old, new)
        else:
            errors = self._error_of_rows(old, new)
        return np.nan_to_num(errors / self.weight, nan=math.inf, posinf=math.inf)

    def _decode(
        self, before: Arrays, after: Arrays, labels: np.ndarray | None
    ) -> tuple[Candidates, Candidates]:
        counts = [self.layout.count(arrays) for arrays in (before, after)]
        count = max(counts) if labels is None else len(labels)
        return self.layout.decode(before, count), self.layout.decode(after, count)

    def _mean_loss(self, sums: np.ndarray) -> np.ndarray:
        """Return 1 - F1, the mean over thresholds, of sums (..., 3 T)."""
        right, wrong, missed = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
        return np.asarray(1 - _ratio(2 * right, 2 * right + wrong + missed).mean(-1))

    def _weights(self, scores: np.ndarray) -> np.ndarray:
        """Return how notable scores are: 1 from the lowest threshold, 0 up to half of it."""
        return np.clip(scores * (2 / self.thresholds[0]) - 1, 0, 1)

    def _score_errors(self, change: np.ndarray) -> np.ndarray:
        return np.square(change / (self.thresholds[-1] - self.thresholds[0]))

    def _error_of_anchors(self, old: Candidates, new: Candidates) -> np.ndarray:
        best = np.maximum(old.scores.max(-1), new.scores.max(-1))
        example, anchor = np.nonzero(~(best <= self.thresholds[0] / 2))  # also where it is NaN
        before, after = (some.scores[example, anchor] for some in (old, new))
        weights = self._weights(np.maximum(before, after))
        errors = (weights * self._score_errors(after - before)).sum(-1)
        boxes = _box_errors(old.boxes[example, anchor], new.boxes[example, anchor])
        errors = errors + self._weights(before.max(-1)) * boxes
        return np.bincount(example, errors, len(best))

    def _error_of_rows(self, old: Candidates, new: Candidates) -> np.ndarray:
        result = []
        detections = [detect(c, self.thresholds[0] / 2, None, MAX_CANDIDATES) for c in (old, new)]
        for before, after in zip(*detections):
            i, j = matched(before, after, NEAR_IOU).T
            scores, others = before.scores[i], after.scores[j]
            errors = self._weights(np.maximum(scores, others)) * self._score_errors(others - scores)
            boxes = self._weights(scores) * _box_errors(before.boxes[i], after.boxes[j])
            alone = np.concatenate([np.delete(before.scores, i), np.delete(after.scores, j)])
            unpaired = self._weights(alone) * self._score_errors(alone)
            result.append(errors.sum() + boxes.sum() + unpaired.sum())
        return np.array(result, float)


def find_detection(
    outputs: Mapping[str, np.ndarray], input_shape: tuple[int, ...]
) -> Detect | None:
    """Recognise whether outputs are those of a detector; arguments as of ``Detect.of``."""
    return _detect_of(outputs, input_shape, plausible=True)


def _detect_of(
    outputs: Mapping[str, np.ndarray], input_shape: tuple[int, ...], plausible: bool
) -> Detect | None:
    size = image_size(input_shape)
    layout = None if size is None else find_layout(outputs, size, plausible)
    if layout is None:
        return None
    arrays = {name: outputs[name] for name in layout.outputs}
    count = layout.count(arrays)
    starts = range(0, count, EXAMPLES)
    in_parts = all(len(array) == count for array in arrays.values())
    parts = [{n: a[s : s + EXAMPLES] for n, a in arrays.items()} for s in starts]
    decoded = [
        layout.decode(part, layout.count(part)) for part in (parts if in_parts else [arrays])
    ]
    best = np.concatenate([some.scores.max((1, 2), initial=0) for some in decoded])
    top = float(np.quantile(best, 0.9))
    top = top if top >= MIN_TOP_SCORE else DEFAULT_TOP_SCORE
    low, high = RANGE
    task = Detect(layout, tuple(np.linspace(low * top, high * top, THRESHOLDS).tolist()), 1.0)
    weights = [task._weights(some.scores).sum() for some in decoded]
    return Detect(layout, task.thresholds, max(float(sum(weights)) / count, 1.0))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; 1 where there is nothing to find."""
    return np.asarray(np.where(whole > 0, part / np.maximum(whole, 1), 1.0))


def _box_errors(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return squared changes (P,) of boxes (P, 4); 1 for a shift by the width or the height."""
    size = np.maximum(before[:, 2:] - before[:, :2], 1e-6)
    change = (after - before) / np.tile(size, 2)
    return np.asarray(np.square(change).sum(-1) / 2)


def _table(detections: Detections) -> np.ndarray:
    """Return (100, 6) box, score and class of the best detections, filled up with zeros."""
    columns = (detections.boxes, detections.scores[:, None], detections.classes[:, None])
    table = np.concatenate(columns, 1)[:MAX_DETECTIONS]
    return np.pad(table, ((0, MAX_DETECTIONS - len(table)), (0, 0))).astype(np.float32)
