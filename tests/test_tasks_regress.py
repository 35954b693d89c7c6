"""The task regress, and the errors of channels: each channel is measured in its own unit."""

from math import inf, log10

import numpy as np
import pytest
from networks import noise

from converter.errors import ConverterError
from converter.evaluation.tasks.channels import (
    ChannelErrors,
    Channels,
    Moments,
    channel_axis,
    channel_errors,
)
from converter.evaluation.tasks.regress import Regress
from converter.evaluation.tasks.task import concatenated


def judged(task, before, after, labels=None):
    return task.judge(task.compare({"y": before}, {"y": after}, labels))


def error(before, after, **channels):
    channels = {"y": Channels(**channels)} if channels else {}
    return channel_errors([{"y": before}], [{"y": after}], channels)


# channels


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((8, 10), 1),
        ((8, 3, 32, 32), 1),
        ((8, 32, 32, 3), 3),
        ((8, 64, 7, 7), 1),
        ((8, 84, 8400), 1),
        ((8, 8400, 85), 2),
        ((8, 68, 2), 2),
        ((8, 64, 20), 1),
        ((8, 4, 16, 16, 16), 1),
        ((8,), None),
        ((), None),
    ],
)
def test_the_axis_of_the_channels_is_guessed_from_the_shape(shape, axis):
    assert channel_axis(shape) == axis


def test_the_error_is_that_of_the_worst_channel_in_its_own_unit():
    before = noise(64, 3, 10) * np.array([250, 1, 1e-3])[:, None] + np.array([1e3, 0, 0.5])[:, None]
    for channel, scale in enumerate((250, 1, 1e-3)):
        after = before.copy()
        after[:, channel] += 0.5 * scale
        deviation = np.sqrt(before[:, channel].var(0).mean())
        assert error(before, after) == pytest.approx(0.5 * scale / deviation)


def test_boxes_do_not_hide_scores():
    """A detector's output: boxes in pixels, scores below 1, in one tensor."""
    boxes, scores = 250 + 60 * noise(32, 4, 50), 0.3 + 0.1 * noise(32, 8, 50, seed=1)
    before = np.concatenate([boxes, scores], 1)
    after = before.copy()
    after[:, 4:] = 0.3  # all scores are gone
    assert error(before, after) == pytest.approx(1.0, abs=0.1)
    assert np.linalg.norm(after - before) / np.linalg.norm(before) < 1e-3


def test_what_all_examples_share_is_no_unit():
    """A mean face of 68 points, from which faces hardly differ; half of what differs is lost."""
    face = 100 * noise(68, 2)
    before = (face + noise(200, 68, 2, seed=1)).astype(np.float32)
    after = (face + before) / 2
    assert error(before, after) == pytest.approx(0.5, abs=0.01)
    flat = error(before.reshape(200, -1), after.reshape(200, -1))
    assert flat == pytest.approx(0.5, abs=0.02)


def test_sums_over_batches_are_those_over_all():
    a, b = noise(20, 3, 8, 8) + 7, noise(20, 3, 8, 8, seed=1) + 7
    whole = error(a, b)
    batches = [[{"y": x[:13]}, {"y": x[13:]}] for x in (a, b)]
    assert channel_errors(*batches, {}) == pytest.approx(whole)
    moments = Moments.of(a[:13].reshape(13, 3, -1)).plus(a[13:].reshape(7, 3, -1))
    assert moments.variances() == pytest.approx(a.astype(float).var(0).mean((1, 2)))


def test_many_positions_are_sampled(monkeypatch):
    a = noise(16, 2, 40, 40)
    expected = error(a, a + 0.1)
    monkeypatch.setattr("converter.evaluation.tasks.channels.MAX_VALUES", 200)
    assert error(a, a + 0.1) == pytest.approx(expected, rel=0.05)


def test_one_example_is_measured_over_its_positions():
    a = noise(1, 3, 50, 50)
    assert error(a, a + 0.1) == pytest.approx(0.1, rel=0.05)


def test_a_dead_channel_is_measured_by_its_group():
    before = noise(100, 6)
    before[:, 3] = 1e-6 * noise(100)  # a class that is never there
    after = before.copy()
    after[:, 3] += 1e-3
    alone, grouped = error(before, after), error(before, after, axis=1, groups=((0, 1, 2, 3),))
    assert alone > 10
    deviation = np.sqrt(1e-2 * before[:, :4].astype(float).var(0).mean())
    assert grouped == pytest.approx(1e-3 / deviation, rel=1e-3)


def test_a_group_in_another_unit_is_no_measure():
    before = np.concatenate([1e4 * noise(100, 4), noise(100, 4, seed=1)], 1)
    after = before.copy()
    after[:, 4:] *= 0.5
    groups = (tuple(range(4)), tuple(range(4, 8)))
    assert error(before, after, axis=1, groups=groups) == pytest.approx(0.5, rel=0.05)


def test_a_constant_is_measured_by_its_size():
    before = np.full((10, 2), 5.0)
    before[:, 0] = noise(10)
    after = before.copy()
    after[:, 1] += 0.005
    assert error(before, after) == pytest.approx(1.0)


@pytest.mark.parametrize("before", [np.zeros((4, 3)), np.ones((4, 3), int), np.zeros(4, bool)])
def test_constants_that_stay_have_no_error(before):
    assert error(before, before) == 0.0


def test_the_worst_output_counts():
    a, b = noise(30, 4), noise(30, 2, 5, 5, seed=1)
    before, after = {"a": a, "b": b}, {"a": a + 0.01, "b": 2 * b}
    errors = ChannelErrors().plus(before, after)
    assert errors.worst() == max(errors.by_channel()["b"])
    assert errors.by_channel()["a"] == pytest.approx(0.01 / a.astype(float).std(0), rel=1e-3)


@pytest.mark.parametrize("after", [noise(5, 3), np.full((5, 4), np.nan), np.full((5, 4), np.inf)])
def test_other_shapes_and_no_numbers_err_without_limit(after):
    before = noise(5, 4)
    errors = ChannelErrors().plus({"y": before}, {"y": after}).plus({"y": before}, {"y": before})
    assert errors.worst() == inf


def test_nothing_is_no_error():
    assert ChannelErrors().worst() == 0.0


# regress


def test_a_channel_loses_the_variance_that_is_not_explained():
    before = noise(200, 3) * np.array([1, 100, 0.01])
    after = before.copy()
    after[:, 2] += 0.1 * before[:, 2].std() * noise(200, seed=1)
    loss = judged(Regress.of("y", before), before, after)
    assert loss.lost == pytest.approx(0.01, rel=0.2)
    assert loss.details["worst_channel"] == 2
    assert loss.details["worst_channel_rel_error"] == pytest.approx(np.sqrt(loss.lost))
    assert 0 < loss.standard_error < 0.3 * loss.lost


def test_numbers_that_stay_lose_nothing():
    output = noise(8, 3, 16, 16)
    loss = judged(Regress.of("y", output), output, output)
    assert (loss.lost, loss.standard_error) == (0.0, 0.0)


def test_batches_are_judged_as_one():
    a, b = noise(10, 4, 5, 5), noise(10, 4, 5, 5, seed=1)
    task = Regress.of("y", a)
    parts = [task.compare({"y": a[s]}, {"y": b[s]}, None) for s in (slice(0, 7), slice(7, 10))]
    assert task.judge(concatenated(parts)) == judged(task, a, b)


def test_images_have_a_psnr():
    before = np.random.default_rng(0).random((4, 3, 16, 16))
    task = Regress.of("y", before)
    assert task.peak == 1.0
    loss = judged(task, before, before + 0.01)
    assert loss.details["psnr_db"] == pytest.approx(40)
    bytes_ = Regress.of("y", 255 * before)
    assert bytes_.peak == 255.0
    assert judged(bytes_, 255 * before, 255 * before + 1).details["psnr_db"] == pytest.approx(
        20 * log10(255)
    )
    assert judged(task, before, before).details["psnr_db"] == pytest.approx(100)


@pytest.mark.parametrize("shape", [(4, 3), (4, 17, 16, 16), (4, 3, 4, 4), (4, 3, 16)])
def test_other_outputs_have_none(shape):
    before = noise(*shape)
    assert "psnr_db" not in judged(Regress.of("y", before), before, before).details


def test_labels_score_by_the_variance_that_is_explained():
    target = noise(400, 2)
    before, after = target + 0.1, target.copy()
    after[:, 1] += 0.3
    task = Regress.of("y", before)
    assert task.check_labels(target) is None
    loss = judged(task, before, after, target)
    variance = target[:, 1].astype(float).var()
    assert loss.score_before == pytest.approx(1 - 0.1**2 / variance, rel=1e-3)
    assert loss.score_after == pytest.approx(1 - 0.3**2 / variance, rel=1e-3)
    assert loss.lost == pytest.approx(loss.score_before - loss.score_after)


def test_a_better_network_gains():
    target = noise(100, 2)
    loss = judged(Regress.of("y", target + 0.5), target + 0.5, target, target)
    assert loss.lost < 0
    assert loss.score_after == 1.0


def test_labels_of_a_single_number_may_lack_its_axis():
    before = noise(50, 1)
    task = Regress.of("y", before)
    assert task.check_labels(before[:, 0]) is None
    assert judged(task, before, before, before[:, 0]).score_before == 1.0


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (noise(8, 4), "must be numbers of shape (N, 3, 5, 5), not (8, 4)"),
        (np.full((8, 3, 5, 5), np.nan), "hold NaN or infinite values"),
    ],
)
def test_labels_of_another_kind_are_refused(labels, sentence):
    assert sentence in Regress.of("y", noise(8, 3, 5, 5)).check_labels(labels)


@pytest.mark.parametrize("after", [np.full((6, 8), np.nan), noise(6, 7)])
def test_everything_is_lost_without_numbers(after):
    before = noise(6, 8)
    task = Regress.of("y", before)
    assert judged(task, before, after).lost == inf
    assert task.surrogate({"y": before}, {"y": after}).tolist() == [inf] * 6


def test_the_surrogate_is_the_mean_over_channels_each_in_its_own_unit():
    before = noise(50, 2) * np.array([1e3, 1])
    after = before + 0.1 * before.std(0)
    task = Regress.of("y", before)
    assert task.surrogate({"y": before}, {"y": after}) == pytest.approx(np.full(50, 0.01))
    twice = before + 0.2 * before.std(0)
    assert task.surrogate({"y": before}, {"y": twice}) == pytest.approx(np.full(50, 0.04))


def test_many_channels_are_judged_in_blocks():
    before = noise(20, 3000)
    after = before.copy()
    after[:, :3] += before[:, :3].std(0)
    task = Regress.of("y", before)
    rows = task.compare({"y": before}, {"y": after}, None)
    assert rows["errors"].shape == (20, 1024)
    assert rows["errors"].mean(0).max() == pytest.approx(1.0, rel=1e-3)
    assert task.judge(rows).details["worst_channel"] < 3


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (noise(4, 10), "Output 'y' (N, 10) is judged as numbers; if it holds class scores, add "),
        (noise(4, 5, 8, 8), "if it holds scores of a class for each position, add --task label."),
        (noise(4, 1), None),
        (np.random.default_rng(0).random((4, 3, 16, 16)), None),
    ],
)
def test_a_guess_says_what_else_it_may_be(output, sentence):
    assert Regress.of("y", output).doubt is None
    doubt = Regress.of("y", output, assumed=True).doubt
    assert doubt is None if sentence is None else sentence in doubt


def test_the_examples_may_be_the_second_axis():
    before, after = noise(10, 6, 4), noise(10, 6, 4, seed=1)
    turned = [np.ascontiguousarray(a.transpose(1, 0, 2)) for a in (before, after)]
    plain = judged(Regress.of("y", before, Channels(2)), before, after)
    other = judged(Regress.of("y", turned[0], Channels(2, batch_axis=1)), *turned)
    assert other == plain


def test_texts_are_no_numbers():
    with pytest.raises(ConverterError, match="Output 'y' holds <U1, not numbers"):
        Regress.of("y", np.array(["a", "b"]))
