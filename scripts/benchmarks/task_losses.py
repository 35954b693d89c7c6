"""What a network loses in the unit of its task, measured without the code that is measured.

A measure turns the outputs of two networks for n examples into numbers (n, k), and the sums of
these over all examples into a loss between 0 and 1; the interval is that of the jackknife.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from scripts.benchmarks.boxes import Decode, count_matches
from scripts.benchmarks.suite import Figures

Outputs = Sequence[np.ndarray]
Labels = np.ndarray | None
STANDARD_ERRORS = 2.576  # of a 99 % interval
THRESHOLDS = np.linspace(0.2, 0.7, 11)  # of the scores of detections
TEXT_THRESHOLD, NOTE_THRESHOLD, SPEECH_THRESHOLD, VOICED = 0.3, 0.3, 0.5, 0.5
HALF_A_SEMITONE = 2 ** (0.5 / 12)


@dataclass(frozen=True)
class Measure:
    """How a loss is measured.

    Attributes:
        unit: What the loss is a share of.
        rows: Outputs of the original and of another network, and labels -> (n, k).
        lost: Sums of the rows (..., k) -> the loss (...).
        further: Further figures of the sums (k,), by name.
    """

    unit: str
    rows: Callable[[Outputs, Outputs, Labels], np.ndarray]
    lost: Callable[[np.ndarray], np.ndarray]
    further: Mapping[str, Callable[[np.ndarray], Any]] = field(default_factory=dict)

    def figures(self, rows: np.ndarray) -> Figures:
        """Give the loss in points with its 99 % interval, and the further figures."""
        total, count = rows.sum(0), len(rows)
        left_out = self.lost(total - rows)
        squares = float(np.square(left_out - left_out.mean()).sum())
        lost, error = float(self.lost(total)), (squares * (count - 1) / count) ** 0.5
        return {
            "lost_points": 100 * lost,
            "lost_low": 100 * (lost - STANDARD_ERRORS * error),
            "lost_high": 100 * (lost + STANDARD_ERRORS * error),
            **{name: float(figure(total)) for name, figure in self.further.items()},
        }


def share(number: int, of: int) -> Callable[[np.ndarray], np.ndarray]:
    """Divide one column of the sums by another."""
    return lambda sums: sums[..., number] / np.maximum(sums[..., of], 1e-12)


def decisions(before: np.ndarray, after: np.ndarray, right: Any) -> np.ndarray:
    """Give (n, 4): the original and the other network are right, they differ, 1."""
    columns = (before == right, after == right, before != after, np.ones(len(before)))
    return np.stack(columns, 1).astype(float)


def classes(before: Outputs, after: Outputs, labels: Labels) -> np.ndarray:
    """Compare the largest of the scores (n, C), with labels or with the original's."""
    first, second = (outputs[0].argmax(1) for outputs in (before, after))
    return decisions(first, second, first if labels is None else labels)


def texts(silent: tuple[int, ...], before: Outputs, after: Outputs, labels: Labels) -> np.ndarray:
    """Compare the texts that (n, T, classes) say, with the texts that were drawn.

    Args:
        silent: The classes that do not count: the blank, the space.
        before: Outputs of the original.
        after: Outputs of the other network.
        labels: Classes (n, L), filled up with -1, or None.
    """
    first, second = ([read(row, silent) for row in o[0].argmax(-1)] for o in (before, after))
    drawn = first if labels is None else [tuple(row[row >= 0].tolist()) for row in labels]
    numbers = {text: number for number, text in enumerate({*first, *second, *drawn})}
    return decisions(*(np.array([numbers[text] for text in t]) for t in (first, second, drawn)))


def read(path: np.ndarray, silent: tuple[int, ...]) -> tuple[int, ...]:
    """Merge repetitions in a path of classes (T,), and drop what does not count."""
    starts = np.r_[True, path[1:] != path[:-1]]
    return tuple(path[starts & ~np.isin(path, silent)].tolist())


def overlap(
    thresholds: Sequence[float], before: Outputs, after: Outputs, labels: Labels
) -> np.ndarray:
    """Count positions above a threshold in each output: in both networks, and in either alone.

    Returns:
        (n, 3 for each output): positions of both, of the original, of the other network.
    """
    columns = []
    for first, second, threshold in zip(before, after, thresholds, strict=False):
        a, b = (x.reshape(len(x), -1) > threshold for x in (first, second))
        columns += [(a & b).sum(1), a.sum(1), b.sum(1)]
    return np.stack(columns, 1).astype(float)


def one_minus_iou(sums: np.ndarray) -> np.ndarray:
    """Give 1 - intersection over union of three sums of ``overlap``."""
    both, first, second = np.moveaxis(sums, -1, 0)
    return np.asarray(1 - both / np.maximum(first + second - both, 1e-12))


def one_minus_f1(sums: np.ndarray) -> np.ndarray:
    """Give 1 - F1 of three sums of ``overlap``; of several outputs, the worst."""
    both, first, second = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    return np.asarray((1 - 2 * both / np.maximum(first + second, 1e-12)).max(-1))


def detections(decode: Decode, before: Outputs, after: Outputs, labels: Labels) -> np.ndarray:
    """Count matches at several thresholds of the score: (n, 3 for each threshold)."""
    pairs = zip(decode(before[0]), decode(after[0]))
    return np.stack([count_matches(*pair, THRESHOLDS).ravel() for pair in pairs]).astype(float)


def mean_one_minus_f1(sums: np.ndarray) -> np.ndarray:
    """Give 1 - the mean of F1 over the thresholds."""
    both, first, second = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    return np.asarray(1 - (2 * both / np.maximum(first + second, 1e-12)).mean(-1))


def directions(before: Outputs, after: Outputs, labels: Labels) -> np.ndarray:
    """Give (n, 2 + D): cosine distance of the two networks' vectors, 1, and the original's."""
    vectors = (outputs[0].reshape(len(outputs[0]), -1).astype(float) for outputs in (before, after))
    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in vectors)
    return np.column_stack([1 - (a * b).sum(1), np.ones(len(a)), a])


def share_of_distance(sums: np.ndarray) -> np.ndarray:
    """Divide the mean cosine distance by that between different examples of the original."""
    count = sums[..., 1]
    between = (np.square(sums[..., 2:]).sum(-1) - count) / np.maximum(count * (count - 1), 1)
    return np.asarray(sums[..., 0] / count / np.maximum(1 - between, 1e-12))


def numbers(before: Outputs, after: Outputs, labels: Labels) -> np.ndarray:
    """Give (n, 3 C + 1) of channels (n, C): squared errors, values, squared values, and 1."""
    a, b = (outputs[0].astype(float) for outputs in (before, after))
    return np.column_stack([np.square(a - b), a, np.square(a), np.ones(len(a))])


def one_minus_r2(sums: np.ndarray) -> np.ndarray:
    """Give 1 - R² of the worst channel."""
    errors, values, squares = np.split(sums[..., :-1], 3, axis=-1)
    variances = squares - np.square(values) / sums[..., -1:]
    return np.asarray((errors / np.maximum(variances, 1e-12)).max(-1))


def pitches(before: Outputs, after: Outputs, labels: Labels) -> np.ndarray:
    """Count frames whose pitch differs by half a semitone or more, or that one calls voiced."""
    (pitch_a, sure_a), (pitch_b, sure_b) = before, after
    voiced_a, voiced_b = sure_a > VOICED, sure_b > VOICED
    ratio = np.maximum(pitch_a, pitch_b) / np.maximum(np.minimum(pitch_a, pitch_b), 1e-6)
    differ = (voiced_a != voiced_b) | (voiced_a & voiced_b & (ratio > HALF_A_SEMITONE))
    return np.stack([differ.sum(1), (voiced_a | voiced_b).sum(1)], 1).astype(float)


def accuracy(rows: Callable[[Outputs, Outputs, Labels], np.ndarray], unit: str) -> Measure:
    """Measure the accuracy lost, from ``decisions``."""
    further = {"right": share(0, 3), "changed": share(2, 3)}
    return Measure(unit, rows, lambda sums: (sums[..., 0] - sums[..., 1]) / sums[..., 3], further)


CLASSES = accuracy(classes, "accuracy")
MASKS = Measure("IoU", partial(overlap, (TEXT_THRESHOLD,)), one_minus_iou)
SPEECH = Measure("F1 of speech", partial(overlap, (SPEECH_THRESHOLD,)), one_minus_f1)
NOTES = Measure("F1 of notes", partial(overlap, 3 * (NOTE_THRESHOLD,)), one_minus_f1)
EMBEDDINGS = Measure("mean distance", directions, share_of_distance, {"distance": share(0, 1)})
NUMBERS = Measure("variance", numbers, one_minus_r2)
PITCHES = Measure("voiced frames", pitches, share(0, 1))


def read_texts(*silent: int) -> Measure:
    """Measure the texts lost; classes that are ``silent`` do not count."""
    return accuracy(partial(texts, silent), "texts read rightly")


def boxes(decode: Decode) -> Measure:
    """Measure the detections lost."""
    return Measure("F1 of detections", partial(detections, decode), mean_one_minus_f1)
