"""Training after a conversion, from its output folder: which budget holds, and who judges it."""

import json
import shutil

import numpy as np
import pytest
from networks import noise

import converter
from converter import ConverterError

pytestmark = pytest.mark.usefixtures("place")


def test_a_model_without_a_factory_cannot_be_tuned_further(from_module):
    with pytest.raises(ConverterError, match="was not made from a factory"):
        converter.finetune(from_module.folder, train="calib.npz", finetune=1)


def with_budget(made, folder, budget):
    """A copy of an output folder whose record tells another budget."""
    shutil.copytree(made.folder, folder)
    path = folder / "conversion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"budget": budget}))
    return folder


@pytest.mark.parametrize(
    ("budget", "met"),
    [({"max_error": 1e-9}, False), ({"max_error": 10.0}, True), ({"max_macs": 0.01}, False)],
)
def test_a_folder_keeps_its_budget(from_factory, place, budget, met, tmp_path):
    folder = with_budget(from_factory, tmp_path / "out", budget)
    steps = []
    made = converter.finetune(
        folder,
        train="train.npz",
        finetune=1,
        cache=False,
        progress=lambda stage, done: steps.append(done) if stage == "fine-tuning" else None,
    )
    assert made.report.budget == budget and made.report.met is met
    assert max(steps) == 1  # what was asked for is trained, even where the budget is kept
    if not met:
        assert next(iter(budget)) in made.report.reason


def test_a_budget_that_nothing_measures_is_not_reported_as_kept(from_factory, place, tmp_path):
    folder = with_budget(from_factory, tmp_path / "out", {"max_drop": 1e-9})
    made = converter.finetune(folder, train="train.npz", finetune=1)
    assert made.report.met is False and "too few to say" in made.report.reason
    made = converter.finetune(folder, train="train.npz", finetune=1, int8=True, calib="calib.npz")
    assert made.report.met is False and "max_drop" in made.report.reason


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"lr": 1}, "there is no budget lr"),
        ([1], "it holds no object"),
        ({"max_drop": "a"}, "could not convert string to float"),
    ],
)
def test_a_budget_that_is_none_is_refused(from_factory, place, budget, words, tmp_path):
    folder = with_budget(from_factory, tmp_path / "out", budget)
    with pytest.raises(ConverterError, match=rf"conversion\.json is damaged.*{words}"):
        converter.finetune(folder, train="train.npz", finetune=1)


@pytest.mark.parametrize(("after", "met"), [(0.7, True), (0.4, False)])
def test_a_measure_of_the_user_says_whether_the_budget_is_kept(
    from_factory, place, after, met, tmp_path
):
    folder = with_budget(from_factory, tmp_path / "out", {"max_drop": 0.1})
    scores = iter([0.75, after])
    made = converter.finetune(
        folder, train="train.npz", finetune=1, evaluate=lambda predict: next(scores)
    )
    assert made.report.met is met
    assert made.comparison.converted.accuracy == after


@pytest.mark.parametrize(("count", "words"), [(2100, None), (400, "40 training inputs were held")])
def test_reconstruction_alone_can_keep_a_budget(from_factory, count, words, tmp_path):
    np.savez(tmp_path / "train.npz", x=noise(count, 3, 8, 8, seed=3))
    folder = with_budget(from_factory, tmp_path / "out", {"max_drop": 0.5})
    made = converter.finetune(
        folder, train=str(tmp_path / "train.npz"), reconstruct=1, task="classify"
    )
    assert made.report.met is (words is None)
    assert words is None or words in made.report.reason


def test_an_original_that_has_changed_is_refused(from_factory, place, tmp_path):
    shutil.copytree(from_factory.folder, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    (place / "other.py").write_text(
        "import toy\n"
        "def build():\n"
        "    model = toy.build()\n"
        "    model.fc.bias.data += 1\n"
        "    return model\n"
    )
    record["origin"]["factory"] = "other:build"
    (tmp_path / "out" / "conversion.json").write_text(json.dumps(record))
    with pytest.raises(ConverterError, match="its factory gives another model than it did"):
        converter.finetune(tmp_path / "out", train="train.npz", finetune=1)
