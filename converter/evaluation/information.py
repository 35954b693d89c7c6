"""What a classifier's scores for many examples say, with labels and without."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax

SCALE = 2.0  # root mean square to which scores are brought: their own scale may be any
TINY = 1e-12
Z_ONE_SIDED_99 = 2.326  # standard errors to a one-sided 99 % bound
MAX_KAPPA = 0.1  # of scores that are no better than guessing


def centred(scores: np.ndarray) -> np.ndarray:
    """Subtract from the scores (N, C) their mean for each example, which no class depends on."""
    rows = scores.astype(np.float64)
    return np.asarray(rows - rows.mean(1, keepdims=True))


def information(scores: np.ndarray) -> np.ndarray:
    """Return how much each example's scores (N, C) tell of its class, in nats (N,).

    Their mean is the mutual information between example and class (Bridle, Heading and MacKay,
    NIPS 1991): high if each example has one likely class, and the examples have different ones.
    The scores are brought to the same scale first, so that large ones are not better.
    """
    rows = centred(scores)
    probabilities = softmax(rows * SCALE / max(math.sqrt(np.square(rows).mean()), TINY), axis=1)
    share = np.maximum(probabilities.mean(0), TINY)
    logs = np.log(np.maximum(probabilities, TINY)) - np.log(share)
    return np.asarray((probabilities * logs).sum(1))


def varying_share(scores: np.ndarray) -> float:
    """Return which share of the power of scores (N, C) differs between the examples.

    It is near 1 for a trained classifier on examples of all classes, 0.2 and more on examples of
    one class, and below 0.1 where all examples get nearly the same scores.
    """
    rows = centred(scores)
    return float(rows.var(0).sum() / max(np.square(rows).mean(0).sum(), TINY))


def guesses(chosen: np.ndarray, labels: np.ndarray) -> bool:
    """Whether chosen classes (N,) are no better than guesses: independent of the labels (N,).

    That is, Cohen's kappa is small and not above 0 at 99 % confidence. Where all labels are the
    same, nothing can be said.
    """
    if len(np.unique(labels)) < 2:
        return False
    size = int(max(chosen.max(), labels.max())) + 1
    shares = [np.bincount(values, minlength=size) / len(labels) for values in (chosen, labels)]
    chance = float(shares[0] @ shares[1])
    gain = float((chosen == labels).mean()) - chance
    error = math.sqrt(chance * (1 - chance) / len(labels))
    return gain < MAX_KAPPA * (1 - chance) and gain <= Z_ONE_SIDED_99 * error


def below_commonest(hits: np.ndarray, labels: np.ndarray) -> bool:
    """Whether fewer hits (N,) than labels of the most frequent class, at 99 % confidence."""
    change = hits.astype(np.float64) - (labels == np.bincount(labels).argmax())
    return float(change.mean()) < -Z_ONE_SIDED_99 * float(change.std()) / math.sqrt(len(change))


def renumbered_hits(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the hits (n,) that the best other numbering of the labels would give.

    It is chosen on every second example and scored on the others: labels one too high or too low,
    or any order of the classes.
    """
    chosen, count = scores.argmax(1), scores.shape[1]
    table = np.zeros((count, count))
    np.add.at(table, (labels[::2], chosen[::2]), 1)
    orders = [np.arange(count) - 1, np.arange(count) + 1, linear_sum_assignment(-table)[1]]
    best = max(orders, key=lambda order: int((order[labels[::2]] == chosen[::2]).sum()))
    return np.asarray(best[labels[1::2]] == chosen[1::2])
