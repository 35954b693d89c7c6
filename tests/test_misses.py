"""The sentence that says why a search missed its budgets."""

import math
from types import SimpleNamespace

import pytest

from converter.evaluation.verdict import Estimate, Unseen
from converter.search.budgets import MaxBytes, MaxDrop, MaxError, TargetSpeedup
from converter.search.candidates import Candidate
from converter.search.measured import Original
from converter.search.misses import miss_sentence
from converter.search.search_space import SearchSpace
from converter.search.trials import Limits, Outcome, Trial

KEPT, FAST = (
    Candidate(form, rank, 0.1, 9, 9, ms)
    for form, rank, ms in ((None, None, 2.0), ("channel", (4,), 1.0))
)
SPACE = SearchSpace({"conv": [KEPT, FAST]}, {"conv": 1.0})


def test_the_time_of_other_nodes_is_a_share_of_the_network_in_its_own_precision():
    # 8 ms in float, 3 ms in int8, of which 1 ms is outside of the layers that may change
    original = Original(ms=8.0, macs=9, bytes=9)
    limits = Limits(speedup=9.0, ms_at=lambda speedup: 8.0 / speedup - 1.0, goal="loss")
    fastest = Trial({"conv": FAST}, 9.0, None, {"target_speedup": 9 / 4}, 4.0)
    found = miss_sentence(
        Outcome(fastest, (fastest,)), [TargetSpeedup(9.0)], SPACE, limits, original
    )
    assert found is not None
    assert "4.00x as fast (no form shortens 33% of its time)" in found


def test_a_size_that_is_measured_above_its_limit_is_no_loss():
    original = Original(ms=2.0, macs=9, bytes=1000)
    limits = Limits(sums={"bytes": 500.0}, goal="loss")
    trial = Trial({"conv": FAST}, 9.0, None, {"max_bytes": 1.02})
    found = miss_sentence(Outcome(trial, (trial,)), [MaxBytes(0.5)], SPACE, limits, original)
    assert found == "In the best network found, 0.510 of the bytes are left."


@pytest.mark.parametrize("measure", [-2.0, 2.0])
def test_a_relative_drop_has_the_sign_of_the_absolute_one(measure):
    before, unseen = SimpleNamespace(accuracy=measure), Unseen(Estimate(0.5, 0.0, 100))
    drop = MaxDrop(0.1, relative=True)
    assert drop.achieved(before, before, unseen) == pytest.approx(0.25)
    assert drop.describe(0.25) == "it loses 25.00 % of the score"
    assert MaxDrop(0.3, relative=True).verdict(before, before, unseen) == "kept"
    assert MaxDrop(0.2, relative=True).verdict(before, before, unseen) == "missed"


@pytest.mark.parametrize(("accuracy", "wanted"), [(None, "kept"), (0.5, "missed")])
def test_without_labels_a_relative_drop_is_a_share_of_the_expected_accuracy(accuracy, wanted):
    before = SimpleNamespace(accuracy=None)
    unseen = Unseen(Estimate(0.007, 0.0005, 1000), 0.1, accuracy)
    assert MaxDrop(0.01, relative=True).verdict(before, before, unseen) == wanted


def test_a_relative_drop_at_its_limit_is_never_decided():
    before, unseen = SimpleNamespace(accuracy=0.5), Unseen(Estimate(0.005, 0.001, 1000))
    assert math.isinf(MaxDrop(0.01, relative=True).examples_to_decide(before, unseen))


@pytest.mark.parametrize(
    ("unseen", "on_seen", "wanted"),
    [
        (0.04, 0.01, "kept"),
        (0.06, 0.01, "missed"),
        (None, 0.01, "undecided"),
        (None, 0.06, "missed"),
    ],
)
def test_an_error_is_judged_on_inputs_that_no_layer_was_fit_to(unseen, on_seen, wanted):
    after = SimpleNamespace(rel_output_error=on_seen)
    assert MaxError(0.05).verdict(after, after, Unseen(None, unseen)) == wanted
