"""The task label: masks lose mean IoU, class by class."""

from math import inf

import numpy as np
import pytest
from networks import noise
from scipy.special import softmax
from task_networks import judged, scores_for, task_of

from converter.errors import ConverterError
from converter.evaluation.tasks.class_scores import ClassScores
from converter.evaluation.tasks.masks import Masks
from converter.evaluation.tasks.task import concatenated


def test_a_mask_that_stays_loses_nothing():
    output = noise(4, 3, 6, 5)
    loss = judged(task_of(output), output, output)
    assert (loss.lost, loss.standard_error) == (0.0, 0.0)
    assert loss.details["agreement"] == loss.details["mean_iou"] == 1.0


def test_a_mask_loses_the_mean_iou_of_its_classes():
    before = np.zeros((2, 4, 5), int)
    before[:, 2:] = 1  # half of the positions each
    after = before.copy()
    after[:, 2] = 0  # class 0: 20 of 30, class 1: 10 of 20
    a, b = scores_for(before, 2), scores_for(after, 2)
    loss = judged(task_of(a), a, b)
    assert loss.lost == pytest.approx(1 - (20 / 30 + 10 / 20) / 2, abs=1e-4)
    assert loss.details["agreement"] == pytest.approx(0.75)
    assert (loss.details["worst_class"], loss.details["worst_class_iou"]) == (1, 0.5)
    assert loss.score_before is None


def test_a_class_of_which_the_original_is_never_sure_counts_little():
    before = np.zeros((10, 32, 32), int)
    before[:, 16:] = 1
    a = scores_for(before, 3)
    a[:, 2, :8] = 19.8  # nearly believed in a quarter of the positions,
    a[0, 2, 0, :8] = 20.1  # and the likeliest in eight of them
    after = a.copy()
    after[0, 2, 0, :8] = 0
    loss = judged(task_of(a), a, after)
    assert 0 < loss.lost < 0.003
    counted = judged(task_of(a.argmax(1)), a.argmax(1), after.argmax(1))
    assert counted.lost > 0.1  # where nothing says how sure the original is


def test_a_small_class_of_which_the_original_is_sure_counts_fully():
    before = np.zeros((20, 64, 64), int)
    before[:, :4, :4] = 1  # 0.4 % of the positions
    a, b = scores_for(before, 2), scores_for(np.zeros_like(before), 2)
    assert judged(task_of(a), a, b).lost == pytest.approx(0.5, abs=0.02)


def test_the_background_of_a_single_mask_does_not_count():
    before = np.zeros((3, 1, 8, 8), np.float32)
    before[:, :, :2] = 0.9
    after = before.copy()
    after[:, :, 1] = 0.1  # half of the foreground
    task = task_of(before)
    assert (task.scores.classes, task.scores.independent) == (1, True)
    assert judged(task, before, after).lost == pytest.approx(0.5)


def test_a_foreground_out_of_nothing_is_a_loss():
    nothing = np.full((3, 1, 8, 8), 0.1, np.float32)
    assert judged(task_of(nothing), nothing, 1 - nothing).lost == 1.0


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 8, 8), (2, 4, 4, 4), (3, 64)])
def test_classes_as_whole_numbers_are_masks_of_any_rank(shape):
    before = np.random.default_rng(0).integers(0, 2, shape)
    after = np.where(before == 1, 0, before)
    task = task_of(before)
    assert isinstance(task, Masks)
    zeros = (before == 0).mean()
    assert judged(task, before, after).lost == pytest.approx(1 - zeros / 2, abs=2e-4)
    assert task.surrogate({"y": before}, {"y": before}).tolist() == [0.0] * shape[0]


def test_volumes_and_the_layout_of_the_classes_do_not_matter():
    first, last = noise(3, 4, 3, 5, 6), noise(3, 4, 3, 5, 6, seed=1)
    moved = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (first, last)]
    plain = judged(task_of(first), first, last)
    other = judged(task_of(moved[0], class_axis=4), *moved)
    assert other.lost == pytest.approx(plain.lost)
    assert plain.lost > 0.5


def test_masks_of_batches_are_judged_as_one():
    a, b = noise(6, 3, 8, 8), noise(6, 3, 8, 8, seed=1)
    task = task_of(a)
    parts = [task.compare({"y": a[s]}, {"y": b[s]}, None) for s in (slice(0, 4), slice(4, 6))]
    assert task.judge(concatenated(parts)) == judged(task, a, b)


def test_the_loss_against_labels_is_that_of_the_mean_iou():
    labels = np.zeros((2, 4, 6), int)
    labels[:, 2:] = 1
    labels[:, :, 5] = 255  # does not count
    after = np.where(labels == 255, 2, labels)
    after[:, 0] = 1
    a, b = scores_for(np.where(labels == 255, 2, labels), 3), scores_for(after, 3)
    loss = judged(task_of(a), a, b, labels)
    assert loss.score_before == 1.0
    assert loss.score_after == pytest.approx((10 / 20 + 20 / 30) / 2)
    assert loss.lost == pytest.approx(loss.score_before - loss.score_after)
    assert loss.standard_error == pytest.approx(0.0)


def test_a_single_mask_is_scored_by_its_foreground():
    labels = np.zeros((2, 1, 4, 4), np.uint8)
    labels[:, :, :2] = 1
    before = np.where(labels == 1, 0.8, 0.2).astype(np.float32)
    after = before.copy()
    after[:, :, 1] = 0.2
    loss = judged(task_of(before), before, after, labels)
    assert (loss.score_before, loss.score_after) == (1.0, 0.5)


def test_independent_masks_may_overlap():
    before = np.full((2, 2, 4, 4), 0.9, np.float32)
    after = before.copy()
    after[:, 1] = 0.1
    task = task_of(before)
    assert task.scores.independent
    assert judged(task, before, after).lost == pytest.approx(0.5)
    assert judged(task, before, after, (before > 0.5).astype(int)).lost == pytest.approx(0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_lose_everything(value):
    before = noise(3, 4, 5, 5)
    after = before.copy()
    after[1, 0, 0, 0] = value
    task = task_of(before)
    assert judged(task, before, after).lost == inf
    assert np.isinf(task.surrogate({"y": before}, {"y": after})).tolist() == [False, True, False]


def test_another_shape_loses_everything():
    before, after = noise(3, 4, 5, 5), noise(3, 4, 5, 4)
    task = task_of(before)
    assert judged(task, before, after).lost == inf
    assert task.surrogate({"y": before}, {"y": after}).tolist() == [inf] * 3


@pytest.mark.parametrize("shape", [(4, 5, 6, 6), (4, 1, 6, 6), (4, 64, 5)])
def test_the_surrogate_grows_as_a_squared_error(shape):
    before, step = noise(*shape), 1e-3 * noise(*shape, seed=1)
    task = task_of(before)
    one, two = (task.surrogate({"y": before}, {"y": before + k * step}) for k in (1, 2))
    assert one.shape == (4,)
    assert two == pytest.approx(4 * one, rel=0.05)
    assert not task.surrogate({"y": before}, {"y": before}).any()


def test_the_surrogate_weighs_a_rare_class_by_its_share():
    classes = np.zeros((1, 100), int)
    classes[:, :10] = 1
    before = scores_for(classes, 2, sure=4)
    rare, common = before.copy(), before.copy()
    rare[:, :, :10] *= 0.9
    common[:, :, 10:20] *= 0.9
    task = task_of(before, class_axis=1)
    weights = 1 / np.array(task.shares)
    one, other = (task.surrogate({"y": before}, {"y": x})[0] for x in (rare, common))
    assert one == pytest.approx(other)  # two classes: the probability moves from one to the other
    assert weights[1] > 5 * weights[0]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros((2, 5), int), "one for each of 6 x 5 positions"),
        (np.full((2, 6, 5), 0.5), "must be whole numbers"),
        (np.full((2, 6, 5), 7), "range up to 7, but the network has 3 classes"),
        (np.full((2, 6, 5), 255), "nothing but ignored positions"),
    ],
)
def test_labels_that_are_no_masks_are_refused(labels, sentence):
    assert sentence in task_of(noise(2, 3, 6, 5)).check_labels(labels)


def test_a_foreground_labelled_255_is_refused():
    task = task_of(np.full((2, 1, 4, 4), 0.5, np.float32))
    labels = np.zeros((2, 4, 4), int)
    assert task.check_labels(labels) is None
    labels[0, 0] = 255
    assert "label the foreground 1, not 255" in task.check_labels(labels)


def test_masks_take_labels_with_or_without_an_axis_of_one():
    task = task_of(noise(2, 3, 6, 5))
    labels = np.random.default_rng(0).integers(-1, 3, (2, 6, 5))
    assert task.check_labels(labels) is None
    assert task.check_labels(labels[:, None].astype(np.float32)) is None


@pytest.mark.parametrize("output", [noise(4, 10), noise(4), np.array(3), np.array(2.0)])
def test_an_output_without_positions_does_not_fit(output):
    with pytest.raises(ConverterError, match="--task label does not fit output 'y'"):
        ClassScores.of("y", output)


def test_the_classes_lie_along_the_axis_that_sums_to_one():
    scores = np.moveaxis(softmax(noise(4, 6, 6, 9), -1), -1, 2)
    assert ClassScores.of("y", scores).class_axis == 2
    assert ClassScores.of("y", noise(4, 6, 6, 9)).class_axis == 1
    assert ClassScores.of("y", noise(4, 6, 9)).class_axis == 2
