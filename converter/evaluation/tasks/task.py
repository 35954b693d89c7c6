"""``Task``: what an output of a network means, and so what is lost when it changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from converter.data.data import Arrays


@dataclass(frozen=True)
class Judgement:
    """What a network loses against the original, by one task.

    Attributes:
        lost: The loss, a fraction; 0.01 is one point. Negative if the network scores better.
        standard_error: Standard error of ``lost`` over the examples.
        score_before: The original's score against the labels; None without labels.
        score_after: The network's score against the labels; None without labels.
        details: Further figures by name, in the field's terms.
        expected: The loss and its standard error that the original's probabilities predict for the
            same examples, which vary less than a count. Without labels they are ``lost`` and
            ``standard_error``. None if the loss is counted, or measured as a distance.
    """

    lost: float
    standard_error: float
    score_before: float | None = None
    score_after: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    expected: tuple[float, float] | None = None


class Task(Protocol):
    """What one or several outputs mean.

    Arrays have the examples on their first axis. ``before`` holds the original's outputs and
    ``after`` those of another version of the network, by name; both hold all ``outputs``.
    """

    name: ClassVar[str]  # of --task

    @property
    def unit(self) -> str:
        """What a point is a hundredth of, in words, such as "accuracy"."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs that are judged."""

    def check_labels(self, labels: np.ndarray) -> str | None:
        """Say in a sentence why labels (N, ...) do not fit the task; None if they do."""

    def compare(self, before: Arrays, after: Arrays, labels: np.ndarray | None) -> Arrays:
        """Compare one batch of n examples.

        Returns:
            Arrays (n, ...) by name, small enough to be kept for all examples. The keys are the
            same for all batches; those of several batches are concatenated for ``judge``.
        """

    def judge(self, rows: Arrays) -> Judgement:
        """Judge the loss from the results of ``compare`` for all examples (N, ...)."""

    def surrogate(self, before: Arrays, after: Arrays) -> np.ndarray:
        """Return a smooth stand-in for the loss (n,): it grows as a squared error from 0.

        It need not be in the unit of the loss: probes compare it between layers.
        """


def jackknife(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
    """Return a statistic of the sums over examples, and its standard error by the jackknife.

    Args:
        rows: (N, K) one row for each example.
        statistic: Sums (..., K) -> statistic (...), such as a ratio of two columns.
    """
    total, count = rows.sum(0), len(rows)
    value = float(statistic(total))
    if count < 2:
        return value, math.inf
    left_out = statistic(total - rows)  # (N,)
    spread = np.square(left_out - left_out.mean()).sum()
    return value, math.sqrt(float(spread) * (count - 1) / count)


def concatenated(batches: Sequence[Arrays]) -> Arrays:
    """Concatenate the results of ``Task.compare`` for several batches."""
    return {key: np.concatenate([rows[key] for rows in batches]) for key in batches[0]}
