"""``--max-drop`` on few sample inputs: a network is found, and what they leave open is said."""

import numpy as np
import pytest
from networks import macs_stopwatch, make_net, table_by_macs, varied, work_in

import converter
from converter.evaluation.loss import Loss
from converter.evaluation.verdict import Estimate
from converter.runtime import stopwatch
from converter.search.budgets import MaxDrop
from converter.search.measured import Measured, Original

LIMIT = MaxDrop(0.005)


def usage(estimate, least_doubt):
    original = Original(ms=1.0, macs=1, bytes=1, accuracy=0.9, least_doubt=least_doubt)
    return LIMIT.usage(Measured(loss=Loss(estimate, 0.1, 0.01)), original)


def test_the_upper_bound_is_limited_where_the_inputs_can_show_it():
    estimate = Estimate(0.002, 0.001, 1000)
    assert usage(estimate, 0.001) == pytest.approx(estimate.high / 0.005)


def test_the_doubt_that_every_network_has_is_left_out_where_nothing_could_be_kept():
    doubt = Estimate(0.0, 0.01, 25).high
    assert usage(Estimate(0.0, 0.01, 25), doubt) == pytest.approx(0.0)
    assert usage(Estimate(0.004, 0.01, 25), doubt) == pytest.approx(0.8)
    assert usage(Estimate(0.004, 0.02, 25), doubt) > 1


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """Convert a classifier whose kernels are nearly of low rank; races count MACs."""
    settings = stopwatch.TimingSettings(
        pause_s=0.0, race_s=0.0, min_rounds=2, max_rounds=2, stopwatch=macs_stopwatch
    )
    with work_in(tmp_path_factory.mktemp("few")) as here, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "DEFAULT_SETTINGS", settings)
        make_net(here / "net.onnx", channels=(3, 32, 32), size=8, loss=0.1)
        (here / "table.json").write_text(table_by_macs("net.onnx", (1, 3, 8, 8)).to_json())

        def convert(count, max_drop, **training):
            return converter.convert(
                "net.onnx",
                calib=varied(count, 3, 8, 8, seed=1),
                latency="table.json",
                task="classify",
                max_drop=max_drop,
                **training,
            ).report

        yield convert


def test_few_inputs_leave_a_converted_network_undecided(convert):
    report = convert(64, 0.005)
    assert report.verdict == "undecided"
    assert report.met
    assert report.comparison.gain.median > 1.2
    assert "max_drop 0.005 is undecided" in report.reason
    assert report.lost.lost <= 0.005 < report.lost.high


def test_enough_inputs_decide(convert):
    report = convert(4096, 0.05)
    assert report.verdict == "kept"
    assert report.lost.high <= 0.05


def test_a_network_that_stays_as_it_is_keeps_the_loss(convert):
    report = convert(512, 1e-9)
    assert not report.plan.chosen()
    assert report.verdict == "kept"
    assert np.isclose(report.lost.lost, 0.0)


def test_the_loss_before_a_training_is_not_that_of_the_trained_network(convert):
    report = convert(128, 0.5, epochs=1, cache=False)
    assert report.plan.chosen()
    assert report.lost is None
    assert report.verdict == "undecided"
    assert "too few to say" in report.reason
