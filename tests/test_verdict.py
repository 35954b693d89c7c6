"""Verdicts: kept and missed only where the examples are enough to say so."""

import numpy as np
import pytest

from converter.evaluation.tasks.task import Judgement
from converter.evaluation.verdict import Estimate, combined, estimate, expected_estimate

WORDS = [(0.001, "kept"), (0.004, "undecided"), (0.006, "undecided"), (0.009, "missed")]


@pytest.mark.parametrize(("lost", "wanted"), WORDS)
def test_a_limit_inside_of_the_interval_is_undecided(lost, wanted):
    assert Estimate(lost, 0.002, 1000).verdict(0.005) == wanted


def test_an_exact_loss_is_decided_at_its_limit():
    assert Estimate(0.005, 0.0, 10).verdict(0.005) == "kept"
    assert Estimate(0.0051, 0.0, 10).verdict(0.005) == "missed"


def test_as_many_examples_decide_as_are_said_to():
    few = Estimate(0.003, 0.004, 400)
    needed = few.examples_to_decide(0.005)
    assert few.verdict(0.005) == "undecided"
    for count, wanted in ((0.99 * needed, "undecided"), (1.01 * needed, "kept")):
        error = 0.004 * np.sqrt(400 / count)
        assert Estimate(0.003, error, int(count)).verdict(0.005) == wanted


def test_no_number_of_examples_decides_at_the_limit():
    assert Estimate(0.005, 0.004, 400).examples_to_decide(0.005) == np.inf


def test_more_examples_do_not_decide_what_only_the_bias_leaves_open():
    near, far = expected_estimate(0.009, 0.004, 400), expected_estimate(0.005, 0.004, 400)
    assert near.verdict(0.01) == far.verdict(0.01) == "undecided"
    assert near.examples_to_decide(0.01) == np.inf
    needed = far.examples_to_decide(0.01)
    for share, wanted in ((0.95, "undecided"), (1.05, "kept")):
        error = 0.004 * np.sqrt(400 / (share * needed))
        assert expected_estimate(0.005, error, round(share * needed)).verdict(0.01) == wanted


def test_the_bias_of_a_combined_estimate_is_that_of_its_share():
    biased = Estimate(0.01, 0.001, 30, bias=0.001)
    assert combined([biased, biased]).bias == pytest.approx(0.001 / np.sqrt(2))
    assert combined([biased, Estimate(0.01, 0.001, 30)]).bias == pytest.approx(0.0005)


def test_no_change_among_few_examples_is_no_proof():
    labelled = Judgement(0.0, 0.0, 0.9, 0.9)
    assert estimate(labelled, 100).verdict(0.005) == "undecided"
    assert estimate(labelled, 1000).verdict(0.005) == "kept"
    assert expected_estimate(0.0, 0.0, 50).verdict(0.005) == "undecided"
    assert expected_estimate(0.0, 0.0, 1024).verdict(0.005) == "kept"


def test_an_expected_loss_narrows_a_counted_one():
    counted = Judgement(0.004, 0.003, 0.9, 0.896)
    both = Judgement(0.004, 0.003, 0.9, 0.896, expected=(0.002, 0.0005))
    assert estimate(counted, 1000).verdict(0.005) == "undecided"
    assert estimate(both, 1000).verdict(0.005) == "kept"
    assert 0.002 < estimate(both, 1000).lost < 0.004


def test_an_expected_loss_is_never_surer_than_its_bias():
    surest = expected_estimate(0.01, 0.0, 10**6)
    assert surest.verdict(0.012) == "undecided"
    assert surest.verdict(0.02) == "kept"


def test_the_surer_estimate_weighs_more():
    mean = combined([Estimate(0.0, 0.001, 10), Estimate(0.01, 0.003, 30)])
    assert mean.lost == pytest.approx(0.001)
    assert mean.standard_error == pytest.approx(0.001 / np.sqrt(1 + 1 / 9))
    assert mean.examples == 30


@pytest.mark.parametrize("limit", [0.005, 0.02])
def test_nineteen_of_twenty_claims_hold(limit):
    """Networks whose true loss is anywhere near the limit, judged on 500 examples each."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 2 * limit, 4000)
    errors = np.full(4000, limit / 4)
    measured = true + errors * rng.standard_normal(4000)
    verdicts = np.array([Estimate(m, e, 500).verdict(limit) for m, e in zip(measured, errors)])
    assert np.mean(true[verdicts == "kept"] <= limit) >= 0.95
    assert np.mean(true[verdicts == "missed"] > limit) >= 0.95
    assert {"kept", "missed", "undecided"} == set(verdicts)


def test_a_prediction_alone_keeps_its_doubt_and_a_distance_has_none():
    predicted = Judgement(0.008, 0.0004, expected=(0.008, 0.0004))
    measured = Judgement(0.008, 0.0004)
    assert estimate(predicted, 200) == expected_estimate(0.008, 0.0004, 200)
    assert estimate(predicted, 200).verdict(0.01) == "undecided"
    assert estimate(measured, 200).verdict(0.01) == "undecided"  # too few examples for less
    assert estimate(predicted, 2000).verdict(0.01) == "undecided"
    assert estimate(measured, 2000).verdict(0.01) == "kept"
