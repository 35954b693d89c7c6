"""Temperatures of a classifier's probabilities."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import softmax

MAX_TEMPERATURE, TINY = 5.0, 1e-12


def temperature_without_labels(rows: np.ndarray) -> float:
    """Choose a temperature of logits (N, C) by which the expected loss is rather too large.

    Networks that were trained with label smoothing, mixup or strong augmentation are right more
    often than their probabilities say (Müller et al., arXiv 1906.02629), and then lose more where
    they change; only labels show it. The mean probability of the likeliest class is brought halfway
    to 1: half of the doubt is taken for the training's, half for the data's.
    """
    if not np.isfinite(rows).all():
        return 1.0

    def sureness(log_temperature: float) -> float:
        return float(softmax(rows / math.exp(log_temperature), axis=1).max(1).mean())

    wanted, least = (1 + sureness(0.0)) / 2, -math.log(MAX_TEMPERATURE)
    if sureness(least) <= wanted:
        return 1 / MAX_TEMPERATURE
    return math.exp(brentq(lambda t: sureness(t) - wanted, least, 0.0))


def temperature_of(rows: np.ndarray, labels: np.ndarray) -> float:
    """Calibrate the temperature of logits (N, C): the maximum likelihood of the labels.

    After Guo et al., arXiv 1706.04599, section 4.2.
    """
    numbers = np.arange(len(rows))

    def cross_entropy(log_temperature: float) -> float:
        right = softmax(rows / math.exp(log_temperature), axis=1)[numbers, labels]
        return -float(np.log(np.maximum(right, TINY)).mean())

    bounds = (-math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE))
    return math.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x)
