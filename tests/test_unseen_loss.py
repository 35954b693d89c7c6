"""Which inputs a verdict may rely on: those that no layer was fit to and no training saw."""

from types import SimpleNamespace

import numpy as np
import pytest

from converter.data.data import random_data
from converter.evaluation.loss import Loss
from converter.evaluation.tasks.task import Judgement
from converter.evaluation.verdict import Estimate
from converter.measurement import scored_data
from converter.options import Options
from converter.report.verify import Scoring, unseen_loss
from converter.timing.race import Interval

DATA = random_data({"x": (1, 4)}, {"x": np.dtype(np.float32)}, 1000, 0)
SEARCHED = Loss(Estimate(0.004, 0.002, 1000), 0.2, 0.01)
SCORED = Judgement(0.002, 0.002, None)


def unseen(searched=SEARCHED, data=DATA, tasks=1, **changes):
    search = SimpleNamespace(loss=searched, accuracy=0.9)
    plan = SimpleNamespace(chosen=lambda: {"conv": ("channel", (4,))})
    converted = SimpleNamespace(search=search, plan=plan, int8=None)
    shipped = SimpleNamespace(
        judgement=SCORED, rel_output_error=0.1, drop_points=Interval(0.7, 0.7, 0.7)
    )
    comparison = SimpleNamespace(shipped=shipped, examples=1000)
    known = {"evaluate": None, "unseen": True, "held_out": False} | changes
    scoring = Scoring(data=data, tasks=(None,) * tasks, warnings=(), calibrated=True, **known)
    return unseen_loss(converted, comparison, scoring)


def test_other_inputs_and_those_of_the_search_count_together():
    found = unseen()
    assert 0.002 < found.lost.lost < 0.004
    assert found.lost.standard_error < 0.002
    assert found.output_error == 0.1


def test_inputs_that_hold_those_of_the_search_count_once():
    assert unseen(held_out=True) == unseen(searched=None)
    assert unseen(held_out=True).lost.standard_error >= SCORED.standard_error


def test_inputs_that_layers_were_fit_to_do_not_count():
    found = unseen(unseen=False)
    assert (found.lost, found.output_error) == (SEARCHED.estimate, SEARCHED.output_error)


@pytest.mark.parametrize("changes", [{"unseen": False}, {"data": None}])
def test_nothing_is_known_without_unseen_inputs_and_a_search(changes):
    found = unseen(searched=None, **changes)
    assert (found.lost, found.output_error) == (None, None)


def test_losses_of_several_outputs_are_not_averaged():
    assert unseen(tasks=2).lost == SEARCHED.estimate


def test_the_measure_of_the_user_counts_alone():
    assert unseen(evaluate=lambda session: 1.0).lost.lost == pytest.approx(0.007)


def scored(unused=None, evaluated=None, **options):
    source = SimpleNamespace(eval=evaluated, unused_calib=unused, calib=DATA)
    problem = SimpleNamespace(holdout=DATA.take(np.arange(100)))
    job = SimpleNamespace(source=source, problem=problem, options=Options.of(**options))
    data, *known = scored_data(job)
    return (data.count, *known)


def test_the_inputs_of_eval_are_unseen():
    assert scored(evaluated=DATA, calib="a.npz", eval="b.npz") == (1000, True, False)


@pytest.mark.parametrize(
    "options",
    [
        {"calib": "a.npz", "eval": "./a.npz"},
        {"calib": "a.npz", "eval": "b.npz", "train": "b.npz", "epochs": 1},
    ],
)
def test_the_inputs_of_eval_are_seen_if_layers_or_training_used_them(options):
    assert scored(evaluated=DATA, **options) == (1000, False, False)


def test_inputs_beyond_the_samples_are_unseen_and_hold_those_of_the_search():
    assert scored(unused=DATA, calib="a.npz") == (400, True, True)
    assert scored(unused=DATA.take(np.arange(50)), calib="a.npz") == (100, False, False)


def test_training_on_the_sample_inputs_sees_all_of_them():
    assert scored(unused=DATA, calib="a.npz", epochs=1) == (400, False, True)
    assert scored(unused=DATA, calib="a.npz", epochs=1, train="b.npz") == (400, True, True)
