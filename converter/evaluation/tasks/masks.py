"""``Masks``: a class per position of an image, a volume or a long sequence."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np

from converter.data.data import Arrays
from converter.data.labels import IGNORED
from converter.evaluation.tasks.class_scores import (
    TINY,
    ClassScores,
    valid_examples,
    whole_numbers,
)
from converter.evaluation.tasks.task import Judgement, jackknife

RARE = 3e-4  # share of the positions below which a class counts less
COUNTS = ("before", "after", "both", "sure", "expected")


@dataclass(frozen=True)
class Masks:
    """A class per position: masks.

    A point is a hundredth of the mean IoU over the classes: of the masks against the labels; or
    without labels, of the converted network's masks against the original's.

    Without labels, the IoU of a class is weighted by the IoU that the original expects of itself
    under its own probabilities p,

        sum of p over the positions that it gives to the class, divided by
        (their number + sum of p over all other positions + RARE * number of all positions),

    because the IoU of a class that the original hardly ever gives, or is never sure of, is noise.

    Attributes:
        outputs: The name of the output.
        scores: How to read it.
        positions: The sizes of its positions, such as (H, W).
        shares: Share of the positions that the original gives to each class, for ``surrogate``.
    """

    name: ClassVar[str] = "label"
    unit: ClassVar[str] = "mean IoU"
    outputs: tuple[str, ...]
    scores: ClassScores
    positions: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, name: str, output: np.ndarray, scores: ClassScores) -> Masks:
        """Describe an output by the original's values for sample inputs."""
        rows = scores.arranged(output)
        if scores.whole:
            shares = scores.summed(rows.ravel()) / max(rows.size, 1)
        else:
            shares = np.mean([scores.probability(row).mean(-1) for row in rows], axis=0)
        axes = (scores.batch_axis, scores.class_axis)
        sizes = tuple(size for axis, size in enumerate(output.shape) if axis not in axes)
        return cls((name,), scores, sizes, tuple(np.maximum(shares, RARE).tolist()))

    def check_labels(self, labels: np.ndarray) -> str | None:
        """Say in a sentence why labels (N, *positions) do not fit; None if they do."""
        sizes, classes = self.positions, self.scores.classes
        if self.scores.independent and classes > 1:
            if labels.shape[1:] == (classes, *sizes) and np.isin(labels, (0, 1)).all():
                return None
            return f"Labels of independent masks must be 0 or 1, (N, {classes}, positions)."
        if not whole_numbers(labels) or _long(labels.shape[1:]) != _long(sizes):
            return (
                f"Labels of --task label must be whole numbers, one for each of "
                f"{' x '.join(map(str, sizes))} positions, not {labels.dtype} of shape "
                f"{labels.shape}."
            )
        counting = labels[~self._ignored(labels)]
        if not len(counting):
            return f"Labels hold nothing but ignored positions ({IGNORED} or below 0)."
        if not self.scores.whole and counting.max() >= max(classes, 2):
            return (
                f"Labels range up to {counting.max():g}, but the network has {max(classes, 2)} "
                f"classes; label positions that do not count {IGNORED} or -1."
            )
        if classes == 1 and not counting.any() and (labels == IGNORED).any():
            return f"Labels hold only 0 and {IGNORED}; label the foreground 1, not {IGNORED}."
        return None

    def compare(self, before: Arrays, after: Arrays, labels: np.ndarray | None) -> Arrays:
        """Count positions by class (n, 5, C), and with labels against them (n, 5, C), too."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        valid = valid_examples(a, b, self.scores.batch_axis)
        first = self.scores.arranged(a)
        second = self.scores.arranged(b) if valid.any() else first
        results = [self._counts(x, y, bool(ok)) for x, y, ok in zip(first, second, valid)]
        rows = {
            "valid": valid,
            "counts": np.stack([counts for counts, _, _ in results]),
            "same": np.array([same for _, same, _ in results]),
            "positions": np.full(len(valid), float(first.shape[-1])),
        }
        if labels is not None:
            truths = labels.reshape(len(labels), -1)
            rows["labelled"] = np.stack(
                [self._against(truth, *choices) for truth, (_, _, choices) in zip(truths, results)]
            )
        return rows

    def judge(self, rows: Arrays) -> Judgement:
        """Judge the loss of the mean IoU."""
        counts, positions = rows["counts"], rows["positions"]
        details = {"agreement": float(rows["same"].mean())}
        details["lowest_agreement"] = float(rows["same"].min())
        if not rows["valid"].all():
            return Judgement(inf, 0.0, details=details)
        flat = np.hstack([counts.reshape(len(counts), -1), positions[:, None]])
        ious, weights = ious_and_weights(flat.sum(0))
        worst = int(np.where(weights > weights.max() / 2, ious, inf).argmin())
        details |= {"mean_iou": float(1 - _loss(flat.sum(0)))}
        details |= {"worst_class": worst, "worst_class_iou": float(ious[worst])}
        if "labelled" not in rows:
            return Judgement(*jackknife(flat, _loss), details=details)
        flat = rows["labelled"].reshape(len(counts), -1)
        before, after = mean_ious(flat.sum(0))
        lost, error = jackknife(flat, lambda sums: np.subtract(*mean_ious(sums)))
        return Judgement(lost, error, float(before), float(after), details)

    def surrogate(self, before: Arrays, after: Arrays) -> np.ndarray:
        """Return the squared error of the probabilities (n,), each class relative to its share.

        Where the output holds classes, there is nothing smooth: it is the share that changed, then.
        """
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        return balanced_errors(self.scores, self.shares, a, b)

    def _counts(
        self, before: np.ndarray, after: np.ndarray, valid: bool
    ) -> tuple[np.ndarray, float, tuple[np.ndarray, np.ndarray]]:
        """Compare one example; return ``COUNTS`` by class, the share that agrees, the choices."""
        scores = self.scores
        after = after if valid else before
        if scores.whole:
            a, b = before, after
            sure = expected = scores.counts(a)
        else:
            p = scores.probability(before)
            a, b = scores.choice(p), scores.choice(scores.probability(after))
            chosen = p * a if scores.independent else np.take_along_axis(p, a[None], 0)[0]
            sure = chosen.sum(1) if scores.independent else scores.summed(a, chosen)
            expected = scores.summed(np.arange(len(p)), p.sum(1, dtype=np.float64))
        counts = np.stack([scores.counts(a), scores.counts(b), scores.counts(a, b), sure, expected])
        return counts, float((a == b).mean()) if valid else 0.0, (a, b)

    def _against(self, truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Count (5, C) positions: truth, before, after, and where each agrees with the truth."""
        counts, scores = self.scores.counts, self.scores
        if scores.independent:
            counting = ~self._ignored(truth) if scores.classes == 1 else np.ones(truth.shape, bool)
            right = (truth == 1).reshape(scores.classes, -1)
            shown = counting.reshape(scores.classes, -1)
            a, b, truth = a & shown, b & shown, right & shown
        else:
            counting = ~self._ignored(truth)
            a, b, truth = a[counting], b[counting], truth[counting].astype(np.int64)
        return np.stack([counts(truth), counts(a), counts(b), counts(a, truth), counts(b, truth)])

    def _ignored(self, labels: np.ndarray) -> np.ndarray:
        special = labels == IGNORED if self.scores.classes <= IGNORED else False
        return np.asarray((labels < 0) | special)


def ious_and_weights(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU of two masks by class, and the weight of each class.

    Args:
        sums: (..., 5 C + 1): ``COUNTS`` by class, and the number of positions.

    Returns:
        IoU (..., C), 1 where neither mask has the class, and weights (..., C).
    """
    counts = sums[..., :-1].reshape(*sums.shape[:-1], len(COUNTS), -1)
    before, after, both, sure, expected = (counts[..., n, :] for n in range(len(COUNTS)))
    union = before + after - both
    ious = np.where(union > 0, both / np.maximum(union, 1), 1.0)
    weights = sure / (before + expected - sure + RARE * sums[..., -1:])
    # The original gives no class at all: whatever the other gives counts.
    return ious, np.where(weights.sum(-1, keepdims=True) > 0, weights, union > 0)


def mean_ious(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean IoU of two networks over the classes that the labels have, each (...).

    Args:
        sums: (..., 5 C): labels, original, converted, and where either agrees with the labels.
    """
    counts = sums.reshape(*sums.shape[:-1], 5, -1)
    truth, before, after, before_hits, after_hits = (counts[..., n, :] for n in range(5))
    present = truth > 0
    count = np.maximum(present.sum(-1), 1)

    def mean(given: np.ndarray, hits: np.ndarray) -> np.ndarray:
        ious = hits / np.maximum(truth + given - hits, 1)
        return np.asarray((ious * present).sum(-1) / count)

    return mean(before, before_hits), mean(after, after_hits)


def balanced_errors(
    scores: ClassScores, shares: tuple[float, ...], before: np.ndarray, after: np.ndarray
) -> np.ndarray:
    """Return squared errors of the probabilities (n,), averaged over positions and classes.

    Each class is relative to its share of the positions; a class that the output names has the
    probability 1. The error of an example that is not valid is infinite.
    """
    valid = valid_examples(before, after, scores.batch_axis)
    errors = np.full(len(valid), inf)
    if not valid.any():
        return errors
    first, second, weights = scores.arranged(before), scores.arranged(after), 1 / np.array(shares)
    for n in np.flatnonzero(valid):
        a, b = first[n], second[n]
        if scores.whole:
            errors[n] = (weights[a % scores.counted] * (a != b)).mean() / scores.counted
        else:
            squares = np.square(scores.probability(a) - scores.probability(b))
            errors[n] = (squares.mean(-1) * weights).mean()
    return errors


def _long(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size > 1)


def _loss(sums: np.ndarray) -> np.ndarray:
    ious, weights = ious_and_weights(sums)
    total = np.maximum(weights.sum(-1), TINY)
    return np.asarray((weights * (1 - ious)).sum(-1) / total)
