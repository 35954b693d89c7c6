"""The task label: texts that change cost what the original's probabilities say."""

import itertools
from math import inf

import numpy as np
import pytest
from networks import noise
from scipy.special import log_softmax, softmax
from task_networks import judged, scores_for, task_of

from converter.evaluation.tasks.class_scores import ClassScores
from converter.evaluation.tasks.masks import Masks
from converter.evaluation.tasks.texts import Texts, edit_distance, find_blank


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
    p = softmax(output[:, :, 0, 0].astype(float) / task.temperature, axis=1)
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
