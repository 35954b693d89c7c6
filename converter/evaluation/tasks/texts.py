"""``Texts``: a short sequence of classes that is right or wrong as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np
import torch
from scipy.special import log_softmax
from torch.nn.functional import ctc_loss

from converter.data.data import Arrays
from converter.evaluation.tasks.class_scores import (
    TINY,
    ClassScores,
    valid_examples,
    whole_numbers,
)
from converter.evaluation.tasks.masks import balanced_errors
from converter.evaluation.tasks.task import Judgement, jackknife
from converter.evaluation.tasks.temperature import temperature_without_labels

MIN_BLANK_SHARE = 1 / 3  # of the positions of a CTC output
MAX_RUN = 3.0  # mean length of the runs of a CTC output's symbols, in positions
MIN_SYMBOLS = 10  # classes of a CTC output, the blank included
MAX_POSITIONS = 2048  # from which a temperature is chosen
MIN_STEPS = 8  # positions of a CTC output


@dataclass(frozen=True)
class Texts:
    """A class per position of a sequence that is right or wrong as a whole: texts.

    A point is a hundredth of the examples whose text is right. Without labels, a text that changes
    costs P(original's text) - P(converted network's text) under the original's own probabilities,
    sharpened by ``temperature``, so that a text of which the original is unsure costs little. With
    a blank, texts are decoded by the likeliest class at each position (repetitions merged, blanks
    dropped), and P is the sum over all alignments (Graves et al. 2006, Connectionist Temporal
    Classification, equation 8).

    Attributes:
        outputs: The name of the output.
        scores: How to read it.
        steps: T, the number of positions.
        shares: Share of the positions that the original gives to each class, for ``surrogate``.
        blank: The blank class of CTC; None if every position is a symbol of the text.
        temperature: Temperature of the probabilities by which a changed text costs.
    """

    name: ClassVar[str] = "label"
    outputs: tuple[str, ...]
    scores: ClassScores
    steps: int
    shares: tuple[float, ...]
    blank: int | None = None
    temperature: float = 1.0

    @property
    def unit(self) -> str:
        """What a point is a hundredth of."""
        return "accuracy" if self.steps == 1 else "texts that are right"

    def decode(self, path: np.ndarray) -> tuple[int, ...]:
        """Return the text of a path (T,)."""
        if self.blank is None:
            return tuple(path.tolist())
        starts = np.r_[True, path[1:] != path[:-1]]
        return tuple(path[starts & (path != self.blank)].tolist())

    def check_labels(self, labels: np.ndarray) -> str | None:
        """Say in a sentence why labels (N, L), filled up with -1, do not fit; None if they do."""
        rows = labels[:, None] if labels.ndim == 1 and self.steps == 1 else labels
        if not whole_numbers(rows) or rows.ndim != 2:
            return (
                "Labels of --task label must be texts as whole numbers (N, length), filled up with "
                f"-1, not {labels.dtype} of shape {labels.shape}."
            )
        length = rows.shape[1]
        if length > self.steps or (self.blank is None and length != self.steps):
            return f"Labels have {length} positions, but the network's texts have {self.steps}."
        if not (rows >= 0).any():
            return "Labels hold no text: all are below 0."
        if not self.scores.whole and rows.max() >= self.scores.classes:
            return (
                f"Labels range up to {rows.max():g}, but the network has {self.scores.classes} "
                "classes."
            )
        if self.blank is not None and (rows == self.blank).any():
            return f"Labels hold {self.blank}, the blank of the network; fill up with -1."
        return None

    def compare(self, before: Arrays, after: Arrays, labels: np.ndarray | None) -> Arrays:
        """Compare the texts (n,), and with labels whether they are right (n,)."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        valid = valid_examples(a, b, self.scores.batch_axis)
        first = self.scores.arranged(a)
        second = self.scores.arranged(b) if valid.any() else first
        paths = [self._paths(scores) for scores in (first, second)]
        texts = [[self.decode(path) for path in choice] for choice in paths]
        changed = np.array([x != y for x, y in zip(*texts)])
        rows = {
            "valid": valid,
            "changed": changed | ~valid,
            "same": (paths[0] == paths[1]).mean(1),
            "edits": np.array([float(edit_distance(x, y)) for x, y in zip(*texts)]),
            "length": np.array([float(len(x)) for x in texts[0]]),
            "cost": self._costs(first, paths, changed),
        }
        if labels is not None:
            truths = labels.reshape(len(labels), -1)
            for key, choices, decoded in zip(("hit_before", "hit_after"), paths, texts):
                rows[key] = np.array([self._right(*c) for c in zip(truths, choices, decoded)])
        return rows

    def judge(self, rows: Arrays) -> Judgement:
        """Judge the share of texts that are lost."""
        details = {
            "texts_changed": float(rows["changed"].mean()),
            "agreement": float(rows["same"].mean()),
            "character_error_rate": float(rows["edits"].sum() / max(rows["length"].sum(), 1)),
        }
        if not rows["valid"].all():
            return Judgement(inf, 0.0, details=details)
        expected = _mean(rows["cost"])
        if "hit_before" not in rows:
            return Judgement(*expected, details=details, expected=expected)
        before, after = (rows[key].astype(float) for key in ("hit_before", "hit_after"))
        lost, error = _mean(before - after)
        score_before, score_after = float(before.mean()), float(after.mean())
        return Judgement(lost, error, score_before, score_after, details, expected)

    def surrogate(self, before: Arrays, after: Arrays) -> np.ndarray:
        """Return the squared error of the probabilities (n,), each class relative to its share.

        Where the output holds classes, there is nothing smooth: it is the share that changed, then.
        """
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        return balanced_errors(self.scores, self.shares, a, b)

    def _paths(self, scores: np.ndarray) -> np.ndarray:
        """Return the likeliest class at each position (n, T)."""
        if self.scores.whole:
            return scores
        if self.scores.classes == 1:
            return self.scores.choice(self.scores.probability(scores))[:, 0].astype(np.int64)
        return np.asarray(scores.argmax(1))

    def _costs(
        self, scores: np.ndarray, paths: list[np.ndarray], changed: np.ndarray
    ) -> np.ndarray:
        """Return what each change of a text costs (n,); 0 where it stays."""
        costs = changed.astype(float)
        if self.scores.whole or not changed.any():
            return costs
        log_p = log_softmax(log_probabilities(self.scores, scores[changed]) / self.temperature, 2)
        before, after = (self._probability(log_p, choice[changed]) for choice in paths)
        costs[changed] = before - after
        return costs

    def _probability(self, log_p: np.ndarray, paths: np.ndarray) -> np.ndarray:
        """Return the probabilities (n,) of the texts of ``paths`` (n, T)."""
        if self.blank is None:
            return np.asarray(np.exp(np.take_along_axis(log_p, paths[:, :, None], 2).sum((1, 2))))
        texts = [self.decode(path) for path in paths]
        losses = ctc_loss(
            torch.from_numpy(log_p.transpose(1, 0, 2).copy()),
            torch.tensor([symbol for text in texts for symbol in text], dtype=torch.long),
            torch.full((len(paths),), log_p.shape[1], dtype=torch.long),
            torch.tensor([len(text) for text in texts], dtype=torch.long),
            blank=self.blank,
            reduction="none",
        )
        return np.asarray(np.exp(-losses.numpy()))

    def _right(self, truth: np.ndarray, path: np.ndarray, text: tuple[int, ...]) -> bool:
        """Whether a text is the labelled one; labels below 0 do not count."""
        counting = truth >= 0
        if self.blank is None:
            return bool((path[counting] == truth[counting]).all())
        return text == tuple(truth[counting].astype(int).tolist())


def log_probabilities(scores: ClassScores, rows: np.ndarray) -> np.ndarray:
    """Return log probabilities (n, T, C) of scores (n, C, T); of two classes where C is 1."""
    p = scores.probability(rows).astype(np.float64)
    p = np.hstack([1 - p, p]) if scores.classes == 1 else p
    return np.asarray(np.log(np.maximum(p, TINY)).transpose(0, 2, 1))


def text_temperature(scores: ClassScores, output: np.ndarray) -> float:
    """Choose the temperature for ``Texts`` by the original's values for sample inputs."""
    if scores.whole:
        return 1.0
    rows = scores.arranged(output)
    log_p = log_probabilities(scores, rows[:: rows.shape[0] * rows.shape[-1] // MAX_POSITIONS + 1])
    return temperature_without_labels(log_p.reshape(-1, log_p.shape[-1]))  # (n T, C)


def find_blank(paths: np.ndarray, classes: int) -> int | None:
    """Find the blank of CTC in the likeliest classes of sequences.

    It is the first or the last class, is the likeliest at a third of the positions or more, and
    parts symbols that hold for few positions each.

    Args:
        paths: (N, T) the original's likeliest classes.
        classes: C.

    Returns:
        The class, or None if the sequences do not look like those of CTC.
    """
    if paths.shape[1] < MIN_STEPS or classes < MIN_SYMBOLS or not paths.size:
        return None
    blank = int(np.bincount(paths.ravel(), minlength=classes).argmax())
    symbols = paths != blank
    runs = (symbols[:, 1:] & (paths[:, 1:] != paths[:, :-1])).sum() + symbols[:, 0].sum()
    if blank not in (0, classes - 1) or not runs or 1 - symbols.mean() < MIN_BLANK_SHARE:
        return None
    return blank if symbols.sum() / runs <= MAX_RUN else None


def edit_distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Return how many insertions, deletions and substitutions change a text into another."""
    if a == b:
        return 0
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Return the mean of values (N,), and its standard error."""
    rows = np.stack([values, np.ones(len(values))], axis=1)
    return jackknife(rows, lambda sums: np.asarray(sums[..., 0] / sums[..., 1]))
