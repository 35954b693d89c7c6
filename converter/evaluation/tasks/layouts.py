"""Recognition of a detector's layout from the shapes and values of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from converter.evaluation.tasks.boxes import (
    BoxCoding,
    Head,
    Layout,
    Level,
    ScoreCoding,
    flat,
    split,
)
from converter.evaluation.tasks.rows import JointRows, SeparateRows

EXAMPLES = 16  # whose values are looked at
STRIDES = (4, 8, 16, 32, 64, 128)
MAX_ANCHORS = 9  # boxes of one cell
MIN_ANCHORS = 16  # boxes of an example before suppression
MAX_ROWS = 1000  # boxes of an example after it
TOLERANCE = 1e-3  # by which scores may leave 0..1
MOST = 0.99  # share of boxes that must fit, as some are far from any object
NEGATIVE = 0.9  # share of negative logits: nearly all boxes show no object
NORMALISED = 2.0  # coordinates up to this are parts of the image
MAX_DELTA = 50.0
# Columns of box, score and class in rows of 6 or 7 numbers, and the column of the example.
ROWS: dict[int, tuple[tuple[int, tuple[int, ...], int, int | None], ...]] = {
    6: ((0, (4,), 5, None), (0, (5,), 4, None), (2, (1,), 0, None)),
    7: ((3, (2,), 1, 0), (1, (6,), 5, 0), (1, (5,), 6, 0), (0, (4, 5), 6, None)),
}


def image_size(input_shape: Sequence[int]) -> tuple[int, int] | None:
    """Return height and width of an image input (N, C, H, W) or (N, H, W, C), or None."""
    if len(input_shape) != 4:
        return None
    _, first, second, third = input_shape
    last = first not in (1, 3, 4) and third in (1, 3, 4)
    return (first, second) if last else (second, third)


def find_layout(
    outputs: Mapping[str, np.ndarray], size: tuple[int, int], plausible: bool
) -> Layout | None:
    """Find the layout of a detector's outputs.

    Args:
        outputs: Outputs (N, ...) by name on N sample inputs.
        size: Height and width of the input in pixels.
        plausible: Whether boxes and scores of one output must also lie where those of detectors
            do; this tells them from sequences of probabilities.
    """
    arrays = {
        name: array[:EXAMPLES].astype(np.float32)
        for name, array in outputs.items()
        if array.dtype.kind in "fiub" and array.ndim and array.size and np.isfinite(array).all()
    }
    for layouts in (_separate_rows, _joint_rows, _pairs):
        for layout in layouts(arrays, size):
            return layout
    return next(_single(arrays, size, plausible), None)


def find_levels(anchors: int, size: tuple[int, int]) -> tuple[tuple[Level, ...], int] | None:
    """Find grids of consecutive strides that hold so many boxes, and the boxes of a cell."""
    options = []
    for first in range(len(STRIDES)):
        for last in range(first + 1, len(STRIDES) + 1):
            levels = tuple(
                Level(-(-size[0] // s), -(-size[1] // s), s) for s in STRIDES[first:last]
            )
            of_cell, rest = divmod(anchors, sum(level.rows * level.columns for level in levels))
            if not rest and 1 <= of_cell <= MAX_ANCHORS:
                options.append((levels, of_cell))
    return max(options, key=lambda option: len(option[0]), default=None)


def score_coding(scores: np.ndarray) -> ScoreCoding | None:
    """Find how (N, A, C) become scores: by their range, and by the class that most boxes have.

    Nearly all boxes show no object. So independent logits are negative, and of classes that
    exclude each other one, the first or the last, is the background.
    """
    likeliest = scores.argmax(-1)
    last = scores.shape[-1] - 1
    background = next((c for c in (0, last) if last and (likeliest == c).mean() > 0.5), None)
    if scores.min() >= -TOLERANCE and scores.max() <= 1 + TOLERANCE:
        if not last or not np.allclose(scores.sum(-1), 1, atol=1e-2):
            return ScoreCoding()
        return None if background is None else ScoreCoding(background=background)
    if ((scores < 0).mean((0, 1)) >= NEGATIVE).all():
        return ScoreCoding("sigmoid")
    return None if background is None else ScoreCoding("softmax", background)


def box_coding(boxes: np.ndarray, size: tuple[int, int]) -> BoxCoding | None:
    """Find what the numbers of boxes (..., 4) mean; None if they are no boxes in the image."""
    numbers = boxes.reshape(-1, 4)
    far = np.quantile(np.abs(numbers), MOST)
    scale = (float(size[1]), float(size[0])) if far <= NORMALISED else (1.0, 1.0)
    if not far or far * max(scale) > 4 * max(size):
        return None
    if (numbers[:, 2:] >= numbers[:, :2]).all(-1).mean() >= MOST:
        return BoxCoding("xyxy", scale)
    if (numbers[:, 2:] >= 0).all(-1).mean() >= MOST:
        return BoxCoding("cxcywh", scale)
    return None


def grid_coding(boxes: np.ndarray, size: tuple[int, int]) -> BoxCoding | None:
    """Recognise centres that are relative to the cells of a grid, as YOLOX gives them.

    Their x does not grow with the column of the cell, and some are negative.
    """
    grid = find_levels(boxes.shape[1], size)
    if grid is None or grid[1] != 1 or np.abs(boxes).max() > MAX_DELTA:
        return None
    levels, _ = grid
    columns = np.concatenate([np.tile(np.arange(at.columns) * at.stride, at.rows) for at in levels])
    x = boxes[..., 0].mean(0)
    if not np.ptp(x) or not np.ptp(columns) or (boxes[..., :2] < 0).mean() < 1 - MOST:
        return None
    related = np.corrcoef(x, columns)[0, 1] > 0.5
    return None if related else BoxCoding("grid", levels=levels)


def delta_coding(boxes: np.ndarray, scores: np.ndarray) -> BoxCoding | None:
    """Recognise boxes (N, A, 4) relative to anchors, and their variances.

    The centre of an object is about an eighth of an anchor's size away from its centre. SSD's
    networks give ten times that, and five times the logarithm of the size.
    """
    if np.abs(boxes).max() > MAX_DELTA or not (boxes < 0).any():
        return None
    best = scores.max(-1)
    spread = float(boxes[best >= np.quantile(best, MOST)][:, :2].std())
    return BoxCoding("deltas", variances=(0.1, 0.2) if spread > 0.4 else (1.0, 1.0))


def _single(
    arrays: Mapping[str, np.ndarray], size: tuple[int, int], plausible: bool
) -> Iterator[Layout]:
    """Iterate over layouts with boxes and scores in one output."""
    for name, array in arrays.items():
        tensor = flat(array)
        if tensor.ndim != 3 or any(np.allclose(tensor.sum(axis), 1, atol=1e-2) for axis in (1, 2)):
            continue  # of a softmax, no boxes
        sides = [
            (bool(find_levels(tensor.shape[1 + s], size)), tensor.shape[1 + s], s) for s in (0, 1)
        ]
        (on_grid, anchors, side) = max(sides)
        tensor = tensor.swapaxes(1, 2) if side else tensor
        if anchors < MIN_ANCHORS or tensor.shape[-1] < 5:
            continue
        boxes, numbers = split([tensor])
        coding = grid_coding(boxes, size) or box_coding(boxes, size)
        scores = _independent(numbers)
        if coding is None or scores is None:
            continue
        numbers = scores.decode(numbers)
        objectness = not side and on_grid and _has_objectness(numbers)
        if objectness:
            numbers = numbers[..., :1] * numbers[..., 1:]
        if plausible and not _plausible(coding, coding.decode(boxes), numbers, size):
            continue
        classes = numbers.shape[-1]
        yield Head((name,), coding, scores, (bool(side),), objectness, classes)


def _independent(scores: np.ndarray) -> ScoreCoding | None:
    """Find how columns (N, A, C) of one output become scores; the first may be the objectness."""
    if scores.min() >= -TOLERANCE and scores.max() <= 1 + TOLERANCE:
        return ScoreCoding()
    logits = (scores[..., 0] < 0).mean() >= NEGATIVE and np.abs(scores).max() < MAX_DELTA
    return ScoreCoding("sigmoid") if logits else None


def _has_objectness(scores: np.ndarray) -> bool:
    """Whether the first of (N, A, C) scores is that of any object: then a class is likely, too."""
    if scores.shape[-1] < 2:
        return False
    first = scores[..., 0]
    return bool(np.median(scores[..., 1:].max(-1)[first >= first.max() / 2]) > 0.1)


def _plausible(
    coding: BoxCoding, boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int]
) -> bool:
    """Whether boxes (N, A, 4) in pixels are all over the image, and few of them have a score."""
    centres = (boxes[..., :2] + boxes[..., 2:]).reshape(-1, 2) / 2 / (size[1], size[0])
    inside = ((centres > -0.25) & (centres < 1.25)).all(-1).mean() > 0.9
    spread = np.ptp(centres, axis=0).min() > 0.25
    middle = np.abs(np.median(centres, axis=0) - 0.5).max() < 0.4
    sparse = coding.scale == (1.0, 1.0) or scores.max(-1).mean() < 0.25
    return bool(inside and spread and middle and sparse)


def _pairs(arrays: Mapping[str, np.ndarray], size: tuple[int, int]) -> Iterator[Layout]:
    """Iterate over layouts with boxes (N, A, 4) and scores (N, A, C), (N, C, A) or (N, A).

    Landmarks may look like scores; those that give the fewest boxes a score are the scores.
    """
    layouts = []
    for name, other in permutations(arrays, 2):
        boxes, scores = flat(arrays[name]), flat(arrays[other])
        last = boxes.ndim == 3 and boxes.shape[1] == 4 and boxes.shape[2] >= MIN_ANCHORS
        boxes = boxes.swapaxes(1, 2) if last else boxes
        if boxes.ndim != 3 or boxes.shape[2] != 4 or boxes.shape[1] < MIN_ANCHORS:
            continue
        if scores.ndim not in (2, 3) or boxes.shape[1] not in scores.shape[1:]:
            continue
        columns_first = scores.ndim == 3 and scores.shape[1] != boxes.shape[1]
        boxes, scores = split([boxes, scores.swapaxes(1, 2) if columns_first else scores])
        scoring = score_coding(scores)
        if scoring is None or len(boxes) != len(scores):
            continue
        decoded = scoring.decode(scores)
        coding = box_coding(boxes, size) or delta_coding(boxes, decoded)
        if coding is not None:
            names, sides = (name, other), (last, columns_first)
            layout = Head(names, coding, scoring, sides, False, decoded.shape[-1])
            layouts.append((float(decoded.max(-1).mean()), layout))
    yield from (layout for _, layout in sorted(layouts, key=lambda item: item[0]))


def _joint_rows(arrays: Mapping[str, np.ndarray], size: tuple[int, int]) -> Iterator[Layout]:
    """Iterate over layouts of rows that hold box, score and class."""
    for name, array in arrays.items():
        rows = array.reshape(-1, array.shape[-1])
        if array.ndim > 4 or rows.shape[-1] not in ROWS:
            continue
        for box, scores, label, example in ROWS[rows.shape[-1]]:
            if example is not None and not _whole(rows[:, example]):
                continue
            if array.ndim > 2 and len(array) > 1:  # the first axis is that of the examples
                example = None
            score = rows[:, list(scores)].prod(-1)
            coding = _row_boxes(rows[:, box : box + 4], score, rows[:, label], size)
            if coding is not None:
                yield JointRows((name,), coding, box, scores, label, example)


def _separate_rows(arrays: Mapping[str, np.ndarray], size: tuple[int, int]) -> Iterator[Layout]:
    """Iterate over layouts with rows of boxes, scores and classes in outputs of their own."""
    for name, box in arrays.items():
        if box.ndim not in (2, 3) or box.shape[-1] != 4:
            continue
        lists = [n for n, a in arrays.items() if a.shape == box.shape[:-1]]
        for scores, labels in permutations(lists, 2):
            columns = (box.reshape(-1, 4), arrays[scores].ravel(), arrays[labels].ravel())
            coding = _row_boxes(*columns, size)
            if coding is None:
                continue
            counts = [
                n for n, a in arrays.items() if "num" in n and a.size == len(box) and _whole(a)
            ]
            names = (name, scores, labels, *(counts[:1] if box.ndim == 3 else ()))
            chosen = box.shape[-2] <= MAX_ROWS
            if "detection_boxes" in name:  # TensorFlow begins with y
                coding = replace(coding, kind="yxyx")
            yield SeparateRows(names, coding, box.ndim == 3, chosen)


def _row_boxes(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, size: tuple[int, int]
) -> BoxCoding | None:
    """Find what boxes (M, 4) mean, if scores (M,) and classes (M,) are those of detections."""
    used = scores > TOLERANCE
    if not used.any() or scores.max() > 1 + TOLERANCE or _whole(scores):
        return None
    if not _whole(labels) or labels[used].min() < 0:
        return None
    coding = box_coding(boxes[used], size)
    return coding if coding is not None and coding.kind == "xyxy" else None


def _whole(values: np.ndarray) -> bool:
    return bool((values == np.rint(values)).all())
