"""``Classify``: one vector of class scores for each example, or several independent labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.special import log_expit, softmax

from converter.data.data import Arrays
from converter.errors import ConverterError
from converter.evaluation.tasks.task import Judgement, jackknife
from converter.evaluation.tasks.temperature import temperature_of, temperature_without_labels

NEIGHBOURS = 64  # examples of similar margin whose errors each example is also given
MAX_RANKED = 32  # likeliest classes of an example among which a changed class is expected
TINY = 1e-12


@dataclass(frozen=True)
class Classify:
    """One class for each example, or independent labels.

    A point is a hundredth of the accuracy; of the F1 of all decisions for independent labels.
    Without labels the loss is its expectation under the original's probabilities, sharpened by
    ``temperature``: if the two networks disagree, each class is right with that probability.

    Attributes:
        outputs: The name of the output (N, C).
        classes: C, or 2 if C is 1.
        power: Mean square of the original's scores of an example, for ``surrogate``.
        temperature: Temperature of the original's probabilities: from labels, or without them so
            low that the expected loss is rather too large.
        independent: Whether every score is the logit or probability of a label of its own.
        probabilities: Whether the scores are probabilities, not logits.
    """

    name: ClassVar[str] = "classify"
    outputs: tuple[str, ...]
    classes: int
    power: float
    temperature: float = 1.0
    independent: bool = False
    probabilities: bool = False

    @property
    def unit(self) -> str:
        """What a point is a hundredth of."""
        return "F1 of the labels" if self.independent else "accuracy"

    @classmethod
    def of(
        cls,
        name: str,
        output: np.ndarray,
        labels: np.ndarray | None = None,
        independent: bool = False,
    ) -> Classify:
        """Describe an output by the original's scores for sample inputs.

        Args:
            name: The name of the output.
            output: Logits or probabilities (N, C).
            labels: Classes (N,), for the temperature, or None.
            independent: Whether the scores are independent labels; always so if C is 1.

        Raises:
            ConverterError: When the output is not (N, C), or the labels do not fit.
        """
        if output.ndim != 2 or output.dtype.kind != "f":
            raise ConverterError(
                f"--task classify does not fit output {name!r}: it is no vector of class scores an "
                "example."
            )
        independent = independent or output.shape[1] == 1
        inside = output.min() >= 0 and output.max() <= 1
        probabilities = bool(inside and (independent or _sums_to_one(output)))
        power = float(np.square(_centred(output, probabilities or independent)).sum(1).mean())
        task = cls(
            outputs=(name,),
            classes=max(output.shape[1], 2),
            power=power or 1.0,
            independent=independent and output.shape[1] > 1,
            probabilities=probabilities,
        )
        if task.independent:
            return task
        logits = task.logits(output)
        if labels is None or task.check_labels(labels):
            return replace(task, temperature=temperature_without_labels(logits))
        return replace(task, temperature=temperature_of(logits, labels.astype(np.int64)))

    def check_labels(self, labels: np.ndarray) -> str | None:
        """Say in a sentence why labels do not fit; None if they do."""
        if self.independent:
            if labels.shape[1:] == (self.classes,) and np.isin(labels, (0, 1)).all():
                return None
            return f"Independent labels must be 0 or 1, (N, {self.classes})."
        if labels.ndim != 1 or not np.array_equal(labels, np.round(labels)):
            return "Labels of --task classify must be whole numbers, one an example."
        if len(labels) and (labels.min() < 0 or labels.max() >= self.classes):
            return (
                f"Labels range from {labels.min():g} to {labels.max():g}, but the network has "
                f"{self.classes} classes."
            )
        return None

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Return logits (N, C) of the scores; a single score becomes two classes."""
        rows = rows.astype(np.float64)
        if rows.shape[1] == 1:
            if self.probabilities:
                return np.asarray(np.log(np.maximum(np.hstack([1 - rows, rows]), TINY)))
            return np.hstack([log_expit(-rows), log_expit(rows)])
        return np.asarray(np.log(np.maximum(rows, TINY))) if self.probabilities else rows

    def compare(self, before: Arrays, after: Arrays, labels: np.ndarray | None) -> Arrays:
        """Return the likeliest classes with their errors, and with labels the hits."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        if self.independent:
            return self._compare_labels(a, b, labels)
        first, second = (self.logits(scores) for scores in (a, b))
        choices = first.argmax(1), second.argmax(1)
        rows = {"same": choices[0] == choices[1], **ranked(first, second, self.temperature)}
        if labels is not None:
            rows |= {"hit_before": choices[0] == labels, "hit_after": choices[1] == labels}
        return rows

    def judge(self, rows: Arrays) -> Judgement:
        """Judge the loss of accuracy, or of F1 for independent labels."""
        if self.independent:
            return _judge_labels(rows)
        expected = expected_drop(rows)
        details = {"agreement": float(rows["same"].mean())}
        if "hit_before" not in rows:
            return Judgement(*expected, details=details, expected=expected)
        before, after = (rows[key].astype(np.float64) for key in ("hit_before", "hit_after"))
        # Paired: only examples whose hit changes contribute, as in McNemar's test.
        change = before - after
        return Judgement(
            lost=float(change.mean()),
            standard_error=float(change.std()) / math.sqrt(len(change)),
            score_before=float(before.mean()),
            score_after=float(after.mean()),
            details=details,
            expected=expected,
        )

    def surrogate(self, before: Arrays, after: Arrays) -> np.ndarray:
        """Return the squared relative error of the scores (n,); a common shift does not count."""
        as_they_are = self.probabilities or self.independent
        difference = after[self.outputs[0]].astype(np.float64) - before[self.outputs[0]]
        return np.asarray(np.square(_centred(difference, as_they_are)).sum(1) / self.power)

    def accuracy(self, output: np.ndarray) -> float:
        """Estimate the original's accuracy from its own probabilities of ``output`` (N, C)."""
        if self.independent:
            return 1.0
        scores = softmax(self.logits(output) / self.temperature, axis=1)
        return float(scores.max(1).mean())

    def _compare_labels(self, a: np.ndarray, b: np.ndarray, labels: np.ndarray | None) -> Arrays:
        """Count the decisions of independent labels: true, false and missed ones."""
        limit = 0.5 if self.probabilities else 0.0
        before, after = a > limit, b > limit
        same = (before == after).all(1)
        if labels is None:
            return {"same": same, "counts": _counts(before, after)}
        truth = labels.astype(bool)
        counts = np.hstack([_counts(truth, before), _counts(truth, after)])
        return {"same": same, "labelled": counts}


def _judge_labels(rows: Arrays) -> Judgement:
    details = {"agreement": float(rows["same"].mean())}
    if "counts" in rows:
        lost, error = jackknife(rows["counts"], lambda sums: 1 - _f1(sums))
        return Judgement(lost, error, details=details)
    lost, error = jackknife(rows["labelled"], lambda s: _f1(s[..., :2]) - _f1(s[..., 2:]))
    totals = rows["labelled"].sum(0)
    return Judgement(lost, error, float(_f1(totals[:2])), float(_f1(totals[2:])), details)


def _counts(truth: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Return (n, 2): decisions that are right, and those that are false or missed."""
    return np.stack([(truth & decisions).sum(1), (truth ^ decisions).sum(1)], axis=1).astype(float)


def _f1(sums: np.ndarray) -> np.ndarray:
    right, wrong = sums[..., 0], sums[..., 1]
    return np.asarray((2 * right + TINY) / (2 * right + wrong + TINY))


def _sums_to_one(rows: np.ndarray) -> bool:
    return bool(np.allclose(rows.sum(1), 1, atol=1e-3))


def _centred(rows: np.ndarray, as_they_are: bool) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows if as_they_are or rows.shape[1] == 1 else rows - rows.mean(1, keepdims=True)


def ranked(before: np.ndarray, after: np.ndarray, temperature: float) -> Arrays:
    """Order the likeliest classes of each example, for ``expected_drop``.

    Args:
        before: The original's logits (n, C).
        after: Those of the other network.
        temperature: Temperature of the original's probabilities.

    Returns:
        ``scores``, their ``errors`` and ``probabilities``, each (n, at most MAX_RANKED).
    """
    order = np.argsort(-before, axis=1)[:, :MAX_RANKED]
    scores = np.take_along_axis(before, order, 1)
    errors = np.take_along_axis(after, order, 1) - scores
    probabilities = np.take_along_axis(softmax(before / temperature, axis=1), order, 1)
    return {"scores": scores, "errors": errors, "probabilities": probabilities}


def expected_drop(rows: Arrays) -> tuple[float, float]:
    """Estimate the loss of accuracy and its standard error, from ``ranked`` examples (N, ...).

    Few examples change their class, so a count of them has a large variance. Each example is
    therefore also given the errors of the examples with a similar margin between the two best
    classes, with classes in the order of their scores. Each pair of an example and an error
    counts as one observation.
    """
    scores, errors, probabilities = (rows[k] for k in ("scores", "errors", "probabilities"))
    if not np.isfinite(errors).all():
        return 1.0, 0.0
    count = len(scores)
    by_margin = np.argsort(scores[:, 0] - scores[:, 1])
    near = min(NEIGHBOURS, count)
    first = np.clip(np.arange(count) - near // 2, 0, count - near)
    by_example, by_error = np.zeros(count), np.zeros(count)  # sums over their pairs
    for number in range(near):
        others = by_margin[first + number]
        winner = (scores[by_margin] + errors[others]).argmax(1)
        drops = (probabilities[by_margin, 0] - probabilities[by_margin, winner]) / near
        by_example[by_margin] += drops
        np.add.at(by_error, others, drops)
    drop = float(by_example.mean())
    return drop, float((by_example + by_error).std() / math.sqrt(count))
