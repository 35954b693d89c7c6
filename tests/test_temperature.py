"""Temperatures of a classifier's probabilities, from labels and without them."""

import numpy as np
import pytest
from scipy.special import softmax

from converter.evaluation.tasks.classify import Classify, expected_drop, ranked
from converter.evaluation.tasks.temperature import temperature_of, temperature_without_labels

COUNT, CLASSES = 20_000, 10
RNG = np.random.default_rng(0)
LOGITS = 2.0 * RNG.standard_normal((COUNT, CLASSES))
CHANGED = LOGITS + 0.4 * RNG.standard_normal((COUNT, CLASSES))


def labels_at(temperature):
    """Classes drawn with the probabilities at a temperature."""
    probabilities = softmax(LOGITS / temperature, axis=1).cumsum(1)
    return (np.random.default_rng(1).random((COUNT, 1)) > probabilities[:, :-1]).sum(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_labels_give_the_temperature_they_were_drawn_at(temperature):
    assert temperature_of(LOGITS, labels_at(temperature)) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_without_labels_the_expected_loss_is_not_too_small(temperature):
    labels = labels_at(temperature)
    lost = np.mean(LOGITS.argmax(1) == labels) - np.mean(CHANGED.argmax(1) == labels)
    task = Classify.of("y", LOGITS)
    expected, _ = expected_drop(ranked(LOGITS, CHANGED, task.temperature))
    assert expected > 0.9 * lost > 0


def test_half_of_the_doubt_is_left():
    temperature = temperature_without_labels(LOGITS)
    before, after = (softmax(LOGITS / t, axis=1).max(1).mean() for t in (1.0, temperature))
    assert temperature < 1
    assert 1 - after == pytest.approx((1 - before) / 2, abs=1e-3)


def test_a_shift_of_the_scores_does_not_count():
    shifted = LOGITS + RNG.standard_normal((COUNT, 1))
    assert temperature_without_labels(shifted) == pytest.approx(temperature_without_labels(LOGITS))


@pytest.mark.parametrize("rows", [np.zeros((9, 4)), np.full((9, 4), np.nan)])
def test_scores_that_say_nothing_have_a_temperature(rows):
    assert 0.2 <= temperature_without_labels(rows) <= 1


def test_labels_of_another_output_do_not_count():
    assert Classify.of("y", LOGITS, np.full(COUNT, CLASSES)) == Classify.of("y", LOGITS)
