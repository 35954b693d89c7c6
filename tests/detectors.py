"""Outputs of detectors in every layout, made of the same boxes and scores, and their verdicts."""

from types import SimpleNamespace

import numpy as np
from scipy.special import logit

from converter.evaluation.tasks.boxes import Level, cells_of
from converter.evaluation.tasks.detect import Detect

HEIGHT, WIDTH = 96, 128
SHAPE = (1, 3, HEIGHT, WIDTH)
LEVELS = tuple(Level(HEIGHT // stride, WIDTH // stride, stride) for stride in (8, 16, 32))
OBJECTS, CLASSES = 6, 3
SIDES = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])


def make_scene(examples=5, seed=0):
    """Draw boxes (n, A, 4), in pixels, and scores (n, A, C): a few boxes of each image have one."""
    rng = np.random.default_rng(seed)
    cells, strides = cells_of(LEVELS)
    count = len(cells)
    centres = (cells + 0.5 + rng.uniform(-0.9, 0.9, (examples, count, 2))) * strides
    sizes = rng.uniform(1, 2, (examples, count, 2)) * strides
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], -1).clip(1, SIDES - 1)
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 2)
    scores = rng.uniform(1e-4, 5e-3, (examples, count, CLASSES))
    for number in range(examples):
        apart = rng.choice(16, OBJECTS, replace=False)  # three rows and four columns of 8 pixels
        anchors = 16 * (1 + 3 * (apart // 4)) + 1 + 4 * (apart % 4)
        scores[number, anchors, rng.integers(0, CLASSES, OBJECTS)] = rng.uniform(0.3, 0.9, OBJECTS)
    return SimpleNamespace(boxes=boxes.astype(np.float32), scores=scores.astype(np.float32))


def centred(boxes):
    """Return centre and size of corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def yolov5(scene):
    objectness = np.sqrt(scene.scores.max(-1, keepdims=True))
    parts = [centred(scene.boxes), objectness, scene.scores / objectness]
    return {"output": np.concatenate(parts, -1)}


def yolov5_logits(scene):
    output = yolov5(scene)["output"]
    return {"output": np.concatenate([output[..., :4], logit(output[..., 4:] - 1e-6)], -1)}


def yolov8(scene):
    return {"output0": np.concatenate([centred(scene.boxes), scene.scores], -1).swapaxes(1, 2)}


def yolox(scene):
    cells, strides = cells_of(LEVELS)
    output = yolov5(scene)["output"]
    output[..., :2] = output[..., :2] / strides - cells
    output[..., 2:4] = np.log(output[..., 2:4] / strides)
    return {"output": output}


def softmax_with_background(scene, place=0):
    rest = 1 - scene.scores.sum(-1, keepdims=True)
    parts = [rest, scene.scores] if place == 0 else [scene.scores, rest]
    return np.concatenate(parts, -1)


def ssd(scene):
    return {"scores": softmax_with_background(scene), "boxes": scene.boxes / SIDES}


def yolov4(scene):
    return {"boxes": (scene.boxes / SIDES)[:, :, None], "confs": scene.scores}


def detr(scene):
    logits = np.log(softmax_with_background(scene, -1)) + 2
    return {"logits": logits, "pred_boxes": centred(scene.boxes / SIDES)}


def retinanet(scene):
    return {"cls_logits": logit(scene.scores), "boxes": scene.boxes}


def before_nms(scene):
    return {"boxes": scene.boxes, "scores": scene.scores.swapaxes(1, 2)}


DENSE = [yolov5, yolov5_logits, yolov8, yolox, ssd, yolov4, detr, retinanet, before_nms]


def chosen(scene):
    """Return boxes (n, K, 4), scores and classes (n, K) of the objects, best first."""
    best = scene.scores.max(-1)
    order = np.argsort(-best, axis=1)[:, :OBJECTS]
    boxes = np.take_along_axis(scene.boxes, order[..., None], 1)
    classes = np.take_along_axis(scene.scores.argmax(-1), order, 1)
    return boxes, np.take_along_axis(best, order, 1), classes


def padded_rows(scene):
    boxes, scores, classes = chosen(scene)
    rows = np.concatenate([boxes, scores[..., None], classes[..., None]], -1)
    return {"output0": np.pad(rows, ((0, 0), (0, 4), (0, 0))).astype(np.float32)}


def rows_with_class_first(scene):
    rows = padded_rows(scene)["output0"]
    return {"rows": rows[..., [5, 4, 0, 1, 2, 3]]}


def rows_of_a_batch(scene):
    rows = padded_rows(scene)["output0"][:, :OBJECTS]
    number = np.broadcast_to(np.arange(len(rows))[:, None, None], (*rows.shape[:2], 1))
    joined = np.concatenate([number, rows[..., :4], rows[..., 5:], rows[..., 4:5]], -1)
    return {"output": joined.reshape(-1, 7)}


def rows_of_openvino(scene):
    rows = rows_of_a_batch(scene)["output"]
    rows = np.concatenate([rows[:, :1], rows[:, 5:], rows[:, 1:5] / SIDES], 1)
    end = np.full((1, 7), -1.0)
    return {"detection_out": np.concatenate([rows, end])[None, None].astype(np.float32)}


def separate_rows(scene):
    boxes, scores, classes = chosen(scene)
    count = np.full((len(boxes), 1), OBJECTS, np.int32)
    return {"num_dets": count, "boxes": boxes, "scores": scores, "classes": classes}


def tensorflow(scene):
    boxes, scores, classes = chosen(scene)
    boxes = (boxes / SIDES)[..., [1, 0, 3, 2]]
    return {
        "detection_boxes": boxes.astype(np.float32),
        "detection_classes": classes.astype(np.float32),
        "detection_scores": scores,
    }


ROWS = [
    padded_rows,
    rows_with_class_first,
    rows_of_a_batch,
    rows_of_openvino,
    separate_rows,
    tensorflow,
]
LAYOUTS = [*DENSE, *ROWS]


def judged(before, after, labels=None):
    task = Detect.of(before, SHAPE)
    return task.judge(task.compare(before, after, labels))
