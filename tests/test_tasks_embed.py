"""The task embed: the directions of vectors, relative to how far different examples are apart."""

from math import inf

import numpy as np
import pytest
from networks import noise

from converter.errors import ConverterError
from converter.evaluation.tasks.embed import Embed, directions, mean_distance, nearest_neighbours
from converter.evaluation.tasks.task import concatenated


def judged(before, after, labels=None):
    task = Embed.of("y", before)
    return task.judge(task.compare({"y": before}, {"y": after}, labels))


def unit(*angles):
    """Vectors at angles in degrees."""
    angles = np.deg2rad(np.array(angles))
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_a_vector_that_stays_loses_nothing():
    output = noise(20, 8)
    output[3] = 0  # no direction at all
    loss = judged(output, output)
    assert (loss.lost, loss.standard_error) == (0.0, 0.0)
    assert loss.details == {"mean_cosine": 1.0, "lowest_cosine": 1.0, "same_neighbour": 1.0}


def test_the_length_of_a_vector_does_not_count():
    output = noise(20, 8)
    scaled = output * np.random.default_rng(0).uniform(0.1, 9, (20, 1))
    assert judged(output, scaled).lost == pytest.approx(0, abs=1e-12)


def test_the_loss_is_relative_to_the_distance_of_different_examples():
    loss = judged(unit(0, 60), unit(10, 60))
    assert loss.lost == pytest.approx((1 - np.cos(np.deg2rad(10))) / 2 / (1 - 0.5))
    assert loss.details["lowest_cosine"] == pytest.approx(np.cos(np.deg2rad(10)))


def test_the_mean_distance_is_that_of_all_pairs():
    vectors = directions(noise(9, 5) + 1)
    cosines = vectors @ vectors.T
    pairs = cosines[~np.eye(9, dtype=bool)]
    assert mean_distance(vectors.sum(0), 9) == pytest.approx(1 - pairs.mean())
    assert mean_distance(vectors[0], 1) == 1.0


def test_vectors_of_others_lose_all():
    output = noise(400, 16)
    assert judged(output, output[::-1].copy()).lost == pytest.approx(1.0, abs=0.05)


def test_the_nearest_neighbour_is_another_example():
    vectors = unit(0, 10, 90, 97, 200)
    assert nearest_neighbours(vectors).tolist() == [1, 0, 3, 2, 3]
    loss = judged(vectors, unit(0, 10, 90, 112, 200))
    assert loss.details["same_neighbour"] == 1.0
    loss = judged(vectors, unit(0, 10, 90, 150, 200))
    assert loss.details["same_neighbour"] == pytest.approx(4 / 5)


def test_labels_score_the_nearest_neighbours():
    before, after = unit(0, 10, 90, 97), unit(0, 10, 90, 12)
    labels = np.array([0, 0, 1, 1])
    assert Embed.of("y", before).check_labels(labels) is None
    loss = judged(before, after, labels)
    assert (loss.score_before, loss.score_after) == (1.0, 0.5)
    assert loss.lost == 0.5


def test_batches_are_judged_as_one():
    a, b = noise(10, 6), noise(10, 6, seed=1)
    task = Embed.of("y", a)
    parts = [task.compare({"y": a[s]}, {"y": b[s]}, None) for s in (slice(0, 7), slice(7, 10))]
    assert task.judge(concatenated(parts)) == judged(a, b)


def test_the_standard_error_is_about_the_spread_of_samples():
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(200):
        a = rng.standard_normal((60, 8)) + 1
        losses.append(judged(a, a + rng.gamma(1, 0.3, (60, 1)) * rng.standard_normal((60, 8))))
    spread = np.std([loss.lost for loss in losses])
    assert np.mean([loss.standard_error for loss in losses]) == pytest.approx(spread, rel=0.2)


def test_the_surrogate_grows_as_a_squared_error():
    before, step = noise(6, 8), 1e-3 * noise(6, 8, seed=1)
    task = Embed.of("y", before)
    one, two = (task.surrogate({"y": before}, {"y": before + k * step}) for k in (1, 2))
    assert two == pytest.approx(4 * one, rel=0.05)
    rows = task.compare({"y": before}, {"y": before + step}, None)
    assert one.mean() == pytest.approx(task.judge(rows).lost, rel=1e-5)


@pytest.mark.parametrize("after", [np.full((6, 8), np.nan), noise(6, 7)])
def test_other_shapes_and_no_numbers_lose_everything(after):
    before = noise(6, 8)
    assert judged(before, after).lost == inf
    assert Embed.of("y", before).surrogate({"y": before}, {"y": after}).tolist() == [inf] * 6


def test_one_example_is_compared_by_its_cosine_alone():
    loss = judged(unit(0), unit(60))
    assert (loss.lost, loss.standard_error) == (pytest.approx(0.5), inf)
    assert "same_neighbour" not in loss.details


@pytest.mark.parametrize("output", [noise(6), noise(6, 1), np.zeros((6, 8), int)])
def test_what_is_no_vector_does_not_fit(output):
    with pytest.raises(ConverterError, match="--task embed does not fit output 'y'"):
        Embed.of("y", output)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros((6, 2), int), "whole numbers that name who or what"),
        (np.linspace(0, 1, 6), "whole numbers that name who or what"),
        (np.zeros(6, int), "two labels or more"),
        (np.arange(6), "two examples or more of one label"),
    ],
)
def test_labels_that_name_nobody_twice_are_refused(labels, sentence):
    assert sentence in Embed.of("y", noise(6, 8)).check_labels(labels)
