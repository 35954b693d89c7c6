"""The task label: masks lose mean IoU, texts lose what the original's probabilities say."""

import itertools
from math import inf

import numpy as np
import pytest
from helpers import noise
from scipy.special import log_softmax, softmax

from converter.errors import ConverterError
from converter.evaluation.tasks.class_scores import ClassScores
from converter.evaluation.tasks.label import label_of
from converter.evaluation.tasks.masks import Masks
from converter.evaluation.tasks.task import concatenated
from converter.evaluation.tasks.texts import Texts, edit_distance, find_blank


def task_of(output, ctc=True, **reading):
    return label_of("y", output, ClassScores.of("y", output, **reading), ctc)


def judged(task, before, after, labels=None):
    return task.judge(task.compare({"y": before}, {"y": after}, labels))


def scores_for(classes, count, sure=20.0):
    """Logits (N, C, ...) of a network that is sure of ``classes`` (N, ...)."""
    return sure * np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, 1)


# masks


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


# texts


def path_probability(p, path):
    return np.prod([p[c, t] for t, c in enumerate(path)])


def text_probability(p, text, blank):
    """The sum over all paths that decode to ``text``."""

    def decode(path):
        return tuple(c for c, _ in itertools.groupby(path) if c != blank)

    paths = itertools.product(range(p.shape[0]), repeat=p.shape[1])
    return sum(path_probability(p, path) for path in paths if decode(path) == text)


def ctc_output(count=40, steps=24, classes=12, seed=0, sure=12.0):
    """Logits (N, T, C) with peaks for symbols between blanks (class 0)."""
    rng = np.random.default_rng(seed)
    paths = np.zeros((count, steps), int)
    paths[:, 1::3] = rng.integers(1, classes, (count, len(range(1, steps, 3))))
    return np.moveaxis(scores_for(paths, classes, sure), 1, -1), paths


def test_the_blank_of_ctc_is_found():
    output, _ = ctc_output()
    task = task_of(output)
    assert isinstance(task, Texts)
    assert (task.blank, task.steps, task.scores.class_axis) == (0, 24, 2)
    flipped = task_of(output[..., ::-1].copy())
    assert flipped.blank == 11


@pytest.mark.parametrize(
    "paths",
    [
        np.repeat(np.random.default_rng(0).integers(0, 12, (20, 8)), 8, 1),  # long runs
        np.random.default_rng(0).integers(1, 12, (20, 24)),  # no class is frequent
        np.zeros((20, 24), int),  # nothing but one class
        ctc_output()[1][:, :6],  # too short
        np.where(ctc_output()[1] == 0, 5, ctc_output()[1]),  # the frequent class is inside
    ],
)
def test_other_sequences_have_no_blank(paths):
    assert find_blank(paths, 12) is None


def test_words_have_no_blank():
    output, _ = ctc_output(steps=48)
    assert isinstance(task_of(output, ctc=False), Masks)
    assert isinstance(task_of(output[:, :24], ctc=False), Texts)


def test_texts_are_decoded_as_ctc_says():
    task = task_of(ctc_output()[0])
    assert task.decode(np.array([0, 3, 3, 0, 3, 5, 5, 0, 0, 1])) == (3, 3, 5, 1)
    assert task.decode(np.zeros(5, int)) == ()


@pytest.mark.parametrize("blank", [0, 2, None])
def test_a_text_that_changes_costs_the_difference_of_its_probabilities(blank):
    rows = noise(6, 5, 3, seed=3).transpose(0, 2, 1).copy()  # (N, C, T)
    other = rows + 0.8 * noise(6, 3, 5, seed=4)
    scores = ClassScores(0, 1, 3)
    task = Texts(("y",), scores, 5, (1 / 3,) * 3, blank)
    costs = task.compare({"y": rows}, {"y": other}, None)["cost"]
    expected = []
    for before, after in zip(rows, other):
        p = softmax(before.astype(float), axis=0)
        paths = before.argmax(0), after.argmax(0)
        if blank is None:
            probabilities = [path_probability(p, path) for path in paths]
        else:
            probabilities = [text_probability(p, task.decode(path), blank) for path in paths]
        changed = task.decode(paths[0]) != task.decode(paths[1])
        expected.append(changed * (probabilities[0] - probabilities[1]))
    assert np.count_nonzero(expected) >= 4
    assert costs == pytest.approx(np.array(expected), abs=1e-6)


def test_a_sure_text_that_changes_is_lost_and_an_unsure_one_costs_little():
    sure, paths = ctc_output()
    other = np.moveaxis(scores_for(np.where(paths == 3, 4, paths), 12, 12.0), 1, -1)
    changed = (paths == 3).any(1).mean()
    loss = judged(task_of(sure), sure, other)
    assert 0 < changed < 1
    assert loss.lost == pytest.approx(changed, abs=1e-2)
    assert loss.details["texts_changed"] == changed
    assert loss.details["character_error_rate"] == pytest.approx((paths == 3).sum() / (40 * 8))
    assert judged(task_of(sure), sure / 6, other).lost < 0.1 * changed


def test_shifted_alignments_change_no_text():
    output, _ = ctc_output()
    shifted = np.roll(output, 1, axis=1)
    loss = judged(task_of(output), output, shifted)
    assert loss.lost == 0.0
    assert loss.details["agreement"] < 0.5


def test_the_examples_may_be_the_second_axis():
    output, paths = ctc_output()
    other = np.moveaxis(scores_for(np.where(paths == 3, 4, paths), 12), 1, -1)
    turned = [np.ascontiguousarray(a.transpose(1, 0, 2)) for a in (output, other)]
    task = task_of(turned[0], batch_axis=1)
    assert task.steps == 24
    assert judged(task, *turned) == judged(task_of(output), output, other)
    assert task.surrogate({"y": turned[0]}, {"y": turned[1]}).shape == (40,)


@pytest.mark.parametrize("kind", [lambda x: softmax(x, -1), lambda x: log_softmax(x, -1)])
def test_probabilities_and_their_logarithms_are_read_as_logits(kind):
    output, paths = ctc_output(sure=4.0)
    other = np.moveaxis(scores_for(np.where(paths == 3, 4, paths), 12, 4.0), 1, -1)
    plain = judged(task_of(output), output, other)
    a, b = kind(output), kind(other)
    assert judged(task_of(a), a, b).lost == pytest.approx(plain.lost, rel=1e-5)


def test_labelled_texts_are_right_or_wrong():
    output, paths = ctc_output()
    labels = np.full((40, 10), -1)
    labels[:, :8] = paths[:, 1::3]
    task = task_of(output)
    wrong = output.copy()
    wrong[:10] = output[10:20]
    same = sum(tuple(a) == tuple(b) for a, b in zip(labels[:10], labels[10:20]))
    # Neighbouring equal symbols are parted by blanks, so that every label is read as it is.
    loss = judged(task, output, wrong, labels)
    assert task.check_labels(labels) is None
    assert (loss.score_before, loss.score_after) == (1.0, (30 + same) / 40)
    assert loss.lost == 10 / 40
    assert loss.expected[0] == pytest.approx(0.25, abs=0.01)


def test_one_class_for_each_example_is_a_text_of_one_symbol():
    before = np.array([0, 1, 2, 3])
    loss = judged(task_of(before), before, np.array([0, 1, 2, 2]), np.array([0, 1, 0, 3]))
    assert (loss.score_before, loss.score_after, loss.lost) == (0.75, 0.5, 0.25)
    assert task_of(before).unit == "accuracy"


def test_a_pooled_vector_of_scores_is_a_class_for_each_example():
    output = noise(50, 7, 1, 1)
    task = task_of(output)
    assert (task.unit, task.scores.class_axis) == ("accuracy", 1)
    assert task.check_labels(np.zeros(50, int)) is None
    p = softmax(output[:, :, 0, 0].astype(float), axis=1)
    after = output[::-1].copy()
    expected = p.max(1) - p[np.arange(50), after[:, :, 0, 0].argmax(1)]
    assert judged(task, output, after).lost == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros(40, int), "texts as whole numbers (N, length)"),
        (np.full((40, 30), 1), "Labels have 30 positions, but the network's texts have 24"),
        (np.full((40, 8), 12), "range up to 12, but the network has 12 classes"),
        (np.full((40, 8), 0), "Labels hold 0, the blank of the network"),
        (np.full((40, 8), -1), "hold no text"),
        (np.full((40, 8), 1.5), "texts as whole numbers"),
    ],
)
def test_labels_that_are_no_texts_are_refused(labels, sentence):
    assert sentence in task_of(ctc_output()[0]).check_labels(labels)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_texts_of_no_numbers_are_lost(value):
    output, _ = ctc_output()
    after = output.copy()
    after[3] = value
    assert judged(task_of(output), output, after).lost == inf
    assert judged(task_of(output), output, output[:, :-1]).lost == inf


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [((), (), 0), ((), (1, 2), 2), ((1, 2, 3), (1, 3), 1), ((1, 2), (2, 1), 2), ((1,), (2,), 1)],
)
def test_edits_are_counted(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize("output", [noise(4, 10), noise(4), np.array(3), np.array(2.0)])
def test_an_output_without_positions_does_not_fit(output):
    if output.dtype.kind == "i" and output.ndim:
        return
    with pytest.raises(ConverterError, match="--task label does not fit output 'y'"):
        ClassScores.of("y", output)


def test_the_classes_lie_along_the_axis_that_sums_to_one():
    scores = np.moveaxis(softmax(noise(4, 6, 6, 9), -1), -1, 2)
    assert ClassScores.of("y", scores).class_axis == 2
    assert ClassScores.of("y", noise(4, 6, 6, 9)).class_axis == 1
    assert ClassScores.of("y", noise(4, 6, 9)).class_axis == 2
