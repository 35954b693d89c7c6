"""The task ``detect`` with labels: mean average precision, and labels that do not fit."""

import math
import sys

import detectors
import numpy as np
import pytest
from detectors import CLASSES, LAYOUTS, SHAPE, judged, make_scene

from converter.errors import ConverterError
from converter.evaluation.tasks.detect import Detect
from converter.evaluation.tasks.mean_precision import average_precision, standard_error_of_drop


def labels_of(scene):
    boxes, _, classes = detectors.chosen(scene)
    return np.concatenate([classes[..., None], boxes], -1).astype(np.float64)


def test_mean_average_precision_by_hand():
    # Of two objects one is found, and a wrong box has the lower score: the precision is 1 up to a
    # recall of 0.5, which are 51 of COCO's 101 recalls.
    labels = np.array([[[0, 10, 10, 30, 30], [0, 50, 50, 80, 90], [-1, 0, 0, 0, 0]]], float)
    found = np.array([[[10, 10, 30, 30, 0.9, 0], [40, 0, 50, 9, 0.8, 0]]])
    precision = average_precision(found, labels)
    assert (precision.mean, precision.at_half) == pytest.approx((51 / 101, 51 / 101))
    # A box of which 0.72 overlaps counts for five of the ten overlaps 0.5, 0.55, ...
    found[0, 0, 2] = 10 + 20 * 0.72
    precision = average_precision(found, labels)
    assert (precision.mean, precision.at_half) == pytest.approx((51 / 202, 51 / 101))


def test_with_labels_the_drop_of_mean_average_precision_is_lost():
    scene, worse = make_scene(20), make_scene(20)
    worse.scores[:5] = 1e-5
    before, after = detectors.yolov8(scene), detectors.yolov8(worse)
    verdict = judged(before, after, labels_of(scene))
    assert verdict.score_before == pytest.approx(1)
    assert verdict.score_after == pytest.approx(0.75, abs=0.05)
    assert verdict.lost == pytest.approx(verdict.score_before - verdict.score_after)
    assert verdict.details["ap50_after"] == pytest.approx(verdict.score_after, abs=0.01)
    # A quarter of 20 images lost: the binomial standard error is 0.097.
    assert verdict.standard_error == pytest.approx(0.1, rel=0.25)


def test_identical_networks_lose_no_precision():
    scene = make_scene()
    outputs = detectors.yolov8(scene)
    verdict = judged(outputs, outputs, labels_of(scene))
    assert (verdict.lost, verdict.standard_error, verdict.details["f1"]) == (0, 0, 1)


def test_networks_that_find_nothing_have_no_precision():
    labels = labels_of(make_scene(4))
    nothing = average_precision(np.zeros((4, 100, 6), np.float32), labels)
    assert nothing.mean == 0
    assert standard_error_of_drop(nothing, nothing) == math.inf


def wrong_labels():
    labels = labels_of(make_scene())
    yield labels[..., 0], "must have the shape"
    yield np.concatenate([labels, labels], -1), "must have the shape"
    yield np.where(labels == labels.max(), np.nan, labels), "NaN or infinite"
    yield labels * [0, 1, 1, 1, 1] - [1, 0, 0, 0, 0], "hold no boxes"
    yield np.add(labels, [0.5, 0, 0, 0, 0]), "must be whole numbers"
    yield np.add(labels, [CLASSES, 0, 0, 0, 0]), "the network has 0 to 2"


@pytest.mark.parametrize("labels,reason", wrong_labels())
def test_labels_that_do_not_fit_are_refused(labels, reason):
    task = Detect.of(detectors.yolov8(make_scene()), SHAPE)
    assert reason in task.check_labels(labels)


def test_labels_that_fit():
    for encode in LAYOUTS:
        scene = make_scene()
        assert Detect.of(encode(scene), SHAPE).check_labels(labels_of(scene)) is None


def test_labels_cannot_be_compared_with_boxes_of_unknown_anchors():
    scene = make_scene()
    deltas = np.random.default_rng(0).normal(0, 1, scene.boxes.shape)
    outputs = {"loc": deltas, "conf": detectors.softmax_with_background(scene)}
    assert "relative to anchors" in Detect.of(outputs, SHAPE).check_labels(labels_of(scene))


def test_the_library_for_labels_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    scene = make_scene()
    task = Detect.of(detectors.yolov8(scene), SHAPE)
    assert "pip install 'flatconv[detect]'" in task.check_labels(labels_of(scene))
    with pytest.raises(ConverterError, match="need pycocotools"):
        average_precision(np.zeros((5, 1, 6)), labels_of(scene))
