"""The task ``detect``: what is lost of detections."""

import math
from dataclasses import replace

import detectors
import numpy as np
import pytest
from detectors import LAYOUTS, OBJECTS, SHAPE, judged, make_scene

from converter.evaluation.tasks.detect import Detect, find_detection
from converter.evaluation.tasks.matching import Detections, count_matches, iou, matched, suppressed
from converter.evaluation.tasks.task import concatenated


def crowd(count=60, classes=2, seed=0):
    """Draw overlapping detections, best first."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 25, (count, 2))], 1)
    return Detections(boxes, np.sort(rng.random(count))[::-1], rng.integers(0, classes, count))


@pytest.mark.parametrize("encode", LAYOUTS, ids=lambda encode: encode.__name__)
def test_identical_outputs_lose_nothing(encode):
    outputs = encode(make_scene())
    task = Detect.of(outputs, SHAPE)
    verdict = task.judge(task.compare(outputs, outputs, None))
    assert (verdict.lost, verdict.standard_error) == (0, 0)
    assert verdict.details["original_detections"] > OBJECTS
    assert not task.surrogate(outputs, outputs).any()


@pytest.mark.parametrize("encode", LAYOUTS, ids=lambda encode: encode.__name__)
def test_shuffled_classes_lose_everything(encode):
    scene, other = make_scene(), make_scene()
    other.scores = np.roll(scene.scores, 1, -1)
    before, after = encode(scene), encode(other)
    assert judged(before, after).lost == 1
    assert Detect.of(before, SHAPE).surrogate(before, after).min() > 0.5


@pytest.mark.parametrize("encode", LAYOUTS, ids=lambda encode: encode.__name__)
def test_half_of_the_detections_is_an_f1_of_two_thirds(encode):
    scene, half = make_scene(), make_scene()
    for number in range(len(scene.scores)):  # the same score for all, so that thresholds agree
        anchors, classes = np.nonzero(scene.scores[number] > 0.1)
        scene.scores[number, anchors, classes] = half.scores[number, anchors, classes] = 0.8
        half.scores[number, anchors[::2], classes[::2]] = 1e-3
    verdict = judged(encode(scene), encode(half))
    assert verdict.details["precision"] == 1
    assert verdict.details["recall"] == pytest.approx(0.5)
    assert verdict.lost == pytest.approx(1 / 3)


def test_permuted_anchors_change_nothing():
    before = detectors.yolov8(make_scene())["output0"]
    after = before[:, :, np.random.default_rng(1).permutation(before.shape[2])]
    assert judged({"o": before}, {"o": after}).lost == 0


def test_scores_in_another_order_preserving_scale_change_nothing():
    scene, other = make_scene(), make_scene(seed=1)
    other.boxes = scene.boxes
    verdicts = []
    for factor in (1.0, 0.25):
        outputs = [detectors.yolov8(some)["output0"].copy() for some in (scene, other)]
        for output in outputs:
            output[:, 4:] *= factor
        verdicts.append(judged(*({"o": output} for output in outputs)))
    assert verdicts[0].lost == verdicts[1].lost > 0.5
    assert verdicts[0].standard_error == verdicts[1].standard_error


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_a_fall_of_the_scores_counts_by_its_share_of_the_thresholds(share):
    scene, weaker = make_scene(), make_scene()
    task = Detect.of(detectors.yolov8(scene), SHAPE)
    high, width = task.thresholds[-1], task.thresholds[-1] - task.thresholds[0]
    scene.scores = np.where(scene.scores > 0.1, np.float32(high + 0.01), scene.scores)
    weaker.scores = np.where(scene.scores > 0.1, np.float32(high - share * width), scene.scores)
    rows = task.compare(detectors.yolov8(scene), detectors.yolov8(weaker), None)
    assert task.judge(rows).lost == pytest.approx(share, abs=1 / len(task.thresholds))


def test_a_hair_at_a_threshold_is_no_full_loss():
    scene = make_scene(1)
    task = Detect.of(detectors.yolov8(scene), SHAPE)
    at = np.float32(task.thresholds[10])
    over, under = (replace_scores(scene, at * factor) for factor in (1.0001, 0.9999))
    rows = task.compare(detectors.yolov8(over), detectors.yolov8(under), None)
    assert task.judge(rows).lost == pytest.approx(1 / len(task.thresholds))


def replace_scores(scene, value):
    """Give all objects of a scene the same score."""
    other = make_scene(len(scene.scores))
    other.scores = np.where(scene.scores > 0.1, value, scene.scores).astype(np.float32)
    return other


def test_moved_boxes_are_lost_beyond_a_third_of_their_width():
    scene = make_scene()
    widths = scene.boxes[..., 2] - scene.boxes[..., 0]
    before = detectors.yolov8(scene)
    for share, lost in ((0.3, 0), (0.37, 1)):
        moved = make_scene()
        moved.boxes[..., [0, 2]] += share * widths[..., None]
        assert judged(before, detectors.yolov8(moved)).lost == pytest.approx(lost, abs=0.02)


@pytest.mark.parametrize("encode", [detectors.yolov8, detectors.padded_rows])
def test_batches_are_judged_like_one(encode):
    outputs = [encode(make_scene(9, seed)) for seed in (0, 0)]
    name = next(iter(outputs[0]))
    noise = np.random.default_rng(1).normal(1, 0.1, outputs[0][name].shape)
    outputs[1][name] = (outputs[1][name] * noise).astype(np.float32)
    task = Detect.of(outputs[0], SHAPE)
    parts = [
        task.compare(*({name: some[name][part]} for some in outputs), None)
        for part in (slice(0, 4), slice(4, 9))
    ]
    whole = task.compare(*outputs, None)
    np.testing.assert_array_equal(concatenated(parts)["counts"], whole["counts"])


def test_without_detections_nothing_is_known():
    scene = make_scene()
    scene.scores = np.minimum(scene.scores, 0.01)
    outputs = detectors.yolov8(scene)
    verdict = judged(outputs, outputs)
    assert (verdict.lost, verdict.standard_error) == (0, math.inf)
    assert verdict.details["original_detections"] == 0


def test_new_detections_where_there_were_none_are_lost_points():
    empty, full = make_scene(), make_scene()
    empty.scores = np.minimum(empty.scores, 0.01)
    task = Detect.of(detectors.yolov8(full), SHAPE)
    rows = task.compare(detectors.yolov8(empty), detectors.yolov8(full), None)
    assert task.judge(rows).lost == 1


@pytest.mark.parametrize("encode", [detectors.yolov8, detectors.ssd, detectors.padded_rows])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_network_of_nan_has_lost_everything(encode):
    before = encode(make_scene())
    after = {name: np.full_like(array, np.nan) for name, array in before.items()}
    assert judged(before, after).lost == 1
    assert (Detect.of(before, SHAPE).surrogate(before, after) > 0.5).all()


@pytest.mark.parametrize("encode", LAYOUTS, ids=lambda encode: encode.__name__)
def test_the_surrogate_grows_as_a_square(encode):
    def changed(size):
        other = make_scene()
        other.scores *= 1 - size
        other.boxes[..., [0, 2]] += size
        return task.surrogate(before, encode(other))

    before = encode(make_scene())
    task = Detect.of(before, SHAPE)
    ratios = changed(0.02) / changed(0.01)
    np.testing.assert_allclose(ratios, 4, rtol=0.15)


@pytest.mark.parametrize("encode", [detectors.yolov8, detectors.padded_rows])
def test_the_surrogate_ignores_what_has_no_score(encode):
    scene, other = make_scene(), make_scene()
    background = scene.scores.max(-1) < 0.1
    other.boxes[background] += 50
    before, after = encode(scene), encode(other)
    assert not Detect.of(before, SHAPE).surrogate(before, after).any()


def test_greedy_suppression():
    detections = crowd()
    kept = []
    for number in range(len(detections.scores)):
        overlaps = iou(detections.boxes[[number]], detections.boxes[kept])[0]
        same = detections.classes[kept] == detections.classes[number]
        if not (overlaps[same] > 0.4).any():
            kept.append(number)
    result = suppressed(detections, 0.4)
    np.testing.assert_array_equal(result.scores, detections.scores[kept])
    assert len(kept) < len(detections.scores)


def test_overlaps_of_known_boxes():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [4, 4, 4, 4]], float)
    np.testing.assert_allclose(iou(boxes[:1], boxes), [[1, 1 / 3, 0, 0]])
    np.testing.assert_array_equal(iou(boxes[3:], boxes[3:]), 0)


def test_one_matching_holds_for_all_thresholds():
    before, after = crowd(40), crowd(40, seed=3)
    at = np.linspace(0.1, 0.9, 9)
    counts = count_matches(before, after, 0.3, at)
    for number, threshold in enumerate(at):
        best = [
            Detections(*(a[d.scores >= threshold] for a in (d.boxes, d.scores, d.classes)))
            for d in (before, after)
        ]
        pairs = len(matched(*best, 0.3))
        rest = [len(detections.scores) - pairs for detections in reversed(best)]
        assert counts[:, number].tolist() == [pairs, *rest]


def test_thresholds_follow_the_scores_of_the_original():
    scene = make_scene(20)
    outputs = detectors.yolov8(scene)
    top = np.quantile(scene.scores.max((1, 2)), 0.9)
    task = find_detection(outputs, SHAPE)
    assert (task.thresholds[0], task.thresholds[-1]) == pytest.approx((0.3 * top, 0.8 * top))
    assert replace(task, weight=1.0).outputs == ("output0",)
