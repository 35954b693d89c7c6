"""Layouts of detectors' outputs: recognised from values, and decoded."""

import detectors
import numpy as np
import pytest
from detectors import DENSE, HEIGHT, ROWS, SHAPE, SIDES, WIDTH, make_scene

from converter.errors import ConverterError
from converter.evaluation.tasks.boxes import BoxCoding, detect
from converter.evaluation.tasks.detect import Detect, find_detection
from converter.evaluation.tasks.layouts import find_levels, image_size

RNG = np.random.default_rng(5)


def decoded(outputs):
    layout = find_detection(outputs, SHAPE).layout
    return layout.decode(outputs, layout.count(outputs))


@pytest.mark.parametrize("encode", DENSE, ids=lambda encode: encode.__name__)
def test_decoding_inverts_the_encoding_of_all_anchors(encode):
    scene = make_scene()
    candidates = decoded(encode(scene))
    np.testing.assert_allclose(candidates.boxes, scene.boxes, atol=1e-3)
    np.testing.assert_allclose(candidates.scores, scene.scores, atol=1e-4)


@pytest.mark.parametrize("encode", ROWS, ids=lambda encode: encode.__name__)
def test_decoding_inverts_the_encoding_of_rows(encode):
    scene = make_scene()
    found = detect(decoded(encode(scene)), 0.1, None, 100)
    for detections, boxes, scores, classes in zip(found, *detectors.chosen(scene)):
        np.testing.assert_allclose(detections.boxes, boxes, atol=1e-3)
        np.testing.assert_allclose(detections.scores, scores, atol=1e-6)
        np.testing.assert_array_equal(detections.classes, classes)


@pytest.mark.parametrize("encode", [*DENSE, *ROWS], ids=lambda encode: encode.__name__)
def test_suppression_is_left_to_networks_that_do_it(encode):
    assert find_detection(encode(make_scene()), SHAPE).layout.after_nms == (encode in ROWS)


def test_channels_last_has_the_same_size():
    outputs = detectors.ssd(make_scene())
    by_shape = [find_detection(outputs, s).layout for s in (SHAPE, (1, HEIGHT, WIDTH, 3))]
    assert by_shape[0] == by_shape[1]


@pytest.mark.parametrize(
    "shape,size",
    [((1, 3, 7, 9), (7, 9)), ((1, 7, 9, 3), (7, 9)), ((1, 1, 9, 3), (9, 3)), ((1, 80), None)],
)
def test_size_of_the_image(shape, size):
    assert image_size(shape) == size


@pytest.mark.parametrize("anchors,strides,of_cell", [(8400, 3, 1), (25200, 3, 3), (25500, 4, 3)])
def test_levels_of_known_networks(anchors, strides, of_cell):
    levels, boxes = find_levels(anchors, (640, 640))
    assert (len(levels), boxes) == (strides, of_cell)


def test_one_class_is_neither_objectness_nor_a_row():
    scene = make_scene()
    scene.scores = scene.scores.max(-1, keepdims=True)
    for encode in (detectors.yolov5, detectors.yolov8, detectors.yolox):
        np.testing.assert_allclose(decoded(encode(scene)).scores, scene.scores, atol=1e-4)


def test_anchors_first_without_objectness():
    scene = make_scene()
    outputs = {"output": detectors.yolov8(scene)["output0"].swapaxes(1, 2)}
    np.testing.assert_allclose(decoded(outputs).scores, scene.scores, atol=1e-4)


@pytest.mark.parametrize("scale,variances", [(10.0, (0.1, 0.2)), (1.0, (1.0, 1.0))])
def test_boxes_of_unknown_anchors_are_compared_in_units_of_the_anchor(scale, variances):
    scene = make_scene()
    change = RNG.normal(0, 0.12, scene.boxes.shape) * scale
    outputs = {"loc": change, "conf": detectors.softmax_with_background(scene)}
    task = find_detection(outputs, SHAPE)
    assert task.layout.boxes.variances == variances
    boxes = task.layout.decode(outputs, len(change)).boxes
    shift = (boxes[..., :2] + boxes[..., 2:]) / 2 % 64
    np.testing.assert_allclose((shift + 32) % 64 - 32, change[..., :2] * variances[0], atol=1e-3)


def test_boxes_of_unknown_anchors_never_overlap():
    largest = np.tile(np.array([9.0, -9.0, 9.0, 9.0]), (1, 2000, 1))
    boxes = BoxCoding("deltas").decode(largest)[0]
    first = boxes[:1000]
    gaps = np.maximum(
        first[:, None, :2] - first[None, :, 2:], first[None, :, :2] - first[:, None, 2:]
    )
    apart = (gaps.max(-1) >= 0) | np.eye(1000, dtype=bool)
    assert apart.all()


def test_landmarks_are_not_the_scores():
    scene = make_scene()
    anchors = scene.scores.shape[1]
    landmarks = RNG.normal(0, 1, (5, anchors, 10)) + 3 * (np.arange(10) == 0)
    outputs = {"landms": landmarks, "loc": RNG.normal(0, 1, (5, anchors, 4))}
    outputs["conf"] = detectors.softmax_with_background(scene)
    assert find_detection(outputs, SHAPE).outputs == ("loc", "conf")


def test_a_count_beside_the_rows_hides_what_lies_beyond():
    outputs = detectors.separate_rows(make_scene())
    task = find_detection(outputs, SHAPE)
    assert task.outputs == ("boxes", "scores", "classes", "num_dets")
    outputs["num_dets"] = np.full((5, 1), 2)
    found = detect(task.layout.decode(outputs, 5), 0.1, None, 100)
    assert [len(detections.scores) for detections in found] == [2] * 5


def softmaxed(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


OTHERS = {
    "text": softmaxed(RNG.normal(0, 4, (4, 40, 60))),
    "text logits": RNG.normal(-3, 3, (4, 40, 60)) + 9 * (np.arange(60) == 0),
    "features": RNG.normal(0, 1, (4, 50, 32)),
    "positive features": np.maximum(RNG.normal(0, 1, (4, 50, 32)), 0),
    "events": 1 / (1 + np.exp(-RNG.normal(-4, 2, (4, 100, 12)))),
    "masks": RNG.normal(0, 1, (4, 5, 24, 32)),
    "classes": RNG.normal(0, 1, (4, 10)),
    "embedding": RNG.normal(0, 1, (4, 256)),
    "landmarks": RNG.uniform(0, 96, (4, 68, 2)),
    "text, transposed": softmaxed(RNG.normal(0, 4, (4, 40, 60))).swapaxes(1, 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_outputs_are_no_detections(name):
    outputs = {"output": OTHERS[name].astype(np.float32)}
    assert find_detection(outputs, SHAPE) is None


@pytest.mark.parametrize("name", ["text logits", "features", "masks", "classes", "landmarks"])
def test_outputs_without_boxes_are_refused(name):
    with pytest.raises(
        ConverterError, match=r"--task detect: the outputs output 4x.* fit no known"
    ):
        Detect.of({"output": OTHERS[name]}, SHAPE)


def test_mask_coefficients_are_not_taken_for_scores():
    output = detectors.yolov8(make_scene())["output0"]
    coefficients = RNG.normal(0, 1, (len(output), 32, output.shape[2]))
    assert find_detection({"o": np.concatenate([output, coefficients], 1)}, SHAPE) is None


@pytest.mark.parametrize("shape", [(1, 80), (1, 3, 16000)])
def test_networks_without_an_image_are_refused(shape):
    with pytest.raises(ConverterError, match="fit no known layout"):
        Detect.of(detectors.yolov8(make_scene()), shape)


def test_rows_without_a_detection_are_refused():
    with pytest.raises(ConverterError, match="give sample images with objects"):
        Detect.of({"output": np.zeros((3, 20, 6), np.float32)}, SHAPE)


def test_nan_is_no_layout():
    outputs = detectors.yolov8(make_scene())
    outputs["output0"][0, 5, 3] = np.nan
    assert find_detection(outputs, SHAPE) is None


def test_decoding_leaves_the_outputs_as_they_are():
    outputs = detectors.yolox(make_scene())
    before = outputs["output"].copy()
    decoded(outputs)
    np.testing.assert_array_equal(outputs["output"], before)


def test_boxes_in_parts_of_the_image_become_pixels():
    box = np.array([[[0.25, 0.5, 0.75, 1.0]]])
    scale = (float(WIDTH), float(HEIGHT))
    np.testing.assert_allclose(BoxCoding("xyxy", scale).decode(box), box * SIDES)
    np.testing.assert_allclose(
        BoxCoding("yxyx", scale).decode(box)[0, 0], np.array([0.5, 0.25, 1.0, 0.75]) * SIDES
    )
