"""Tasks that labels or users ask for, and detectors among other outputs."""

import numpy as np
import pytest
from networks import noise
from task_networks import image, names_of, network, outputs_of, tasks_of, vector

from converter.errors import ConverterError

# labels


def two_heads(tail="", order=("embedding", "scores")):
    outs = ", ".join(f"float[N, K] {name}" for name in order)
    text = f"g (float[N, 6] x) => ({outs}) {{ embedding = MatMul (x, v) scores = MatMul (x, w) }}"
    return network(text, v=noise(6, 16, seed=1), w=noise(6, 12, seed=2))


def true_labels(model, name, count=16):
    return outputs_of(model, {"x": noise(count, 6)})[name].argmax(1)


@pytest.mark.parametrize("order", [("embedding", "scores"), ("scores", "embedding")])
def test_labels_choose_the_output_that_tells_them(order):
    model = two_heads(order=order)
    tasks = tasks_of(model, true_labels(model, "scores"))
    kinds = {task.outputs[0]: task.name for task in tasks}
    assert kinds == {"scores": "classify", "embedding": "regress"}
    assert [task.outputs[0] for task in tasks] == list(order)


def test_labels_choose_an_output_that_is_wide_enough():
    labels = true_labels(two_heads(), "scores")
    labels[0] = 14  # not one of 12 classes
    tasks = tasks_of(two_heads(), labels)
    assert {task.outputs[0]: task.name for task in tasks}["embedding"] == "classify"


def test_a_softmax_wins_over_a_guess_that_is_more_often_right():
    text = "g (float[N, 6] x) => (float[N, K] a, float[N, K] b) "
    text += "{ a = MatMul (x, v) s = MatMul (x, w) b = Softmax <axis = 1> (s) }"
    model = network(text, v=noise(6, 12, seed=1), w=noise(6, 12, seed=2))
    labels = outputs_of(model, {"x": noise(16, 6)})["a"].argmax(1)
    kinds = {task.outputs[0]: task.name for task in tasks_of(model, labels)}
    assert kinds == {"a": "regress", "b": "classify"}


def test_identities_do_not_make_an_embedding_classes():
    model = vector("y = LpNormalization <axis = 1, p = 2> (z)")
    (task,) = tasks_of(model, np.arange(16) % 8)
    assert task.name == "embed"


def test_labels_of_positions_make_an_image_a_mask():
    labels = np.random.default_rng(0).integers(0, 4, (16, 8, 8))
    (task,) = tasks_of(image("y = Identity (z)"), labels)
    assert (task.name, task.scores.class_axis) == ("label", 1)
    (other,) = tasks_of(image("y = Identity (z)"), labels + 4)
    assert other.name == "regress"


def test_binary_labels_of_a_vector_are_independent():
    labels = np.random.default_rng(0).integers(0, 2, (16, 10))
    (task,) = tasks_of(vector("y = Identity (z)"), labels)
    assert (task.name, task.independent) == ("classify", True)


@pytest.mark.parametrize("labels", [noise(16, 10), np.full(16, 99), np.full(16, 0.5)])
def test_labels_that_fit_nothing_change_nothing(labels):
    (task,) = tasks_of(vector("y = Identity (z)"), labels)
    assert task.name == "regress"


# requests


@pytest.mark.parametrize("kind", ["classify", "embed", "regress"])
def test_a_request_wins(kind):
    (task,) = tasks_of(vector("y = Softmax <axis = 1> (z)"), requested={"": kind})
    assert task.name == kind
    tasks = tasks_of(two_heads(), requested={"embedding": kind})
    assert names_of(tasks) == [(kind, ("embedding",)), ("regress", ("scores",))]


def test_a_request_without_an_output_is_for_those_that_fit():
    text = "g (float[N, 3, 8, 8] x) => (float[N, C] a, float[N, C, H, W] b) { z = Conv (x, w) "
    text += "b = Relu (z) g = GlobalAveragePool (z) a = Flatten (g) }"
    model = network(text, w=noise(4, 3, 1, 1))
    kinds = [names_of(tasks_of(model, requested={"": kind})) for kind in ("classify", "label")]
    assert kinds[0] == [("classify", ("a",)), ("regress", ("b",))]
    assert kinds[1] == [("regress", ("a",)), ("label", ("b",))]


@pytest.mark.parametrize(
    ("requested", "sentence"),
    [
        ({"": "colour"}, "There is no task 'colour'; --task takes classify, label"),
        ({"z9": "classify"}, "--task names the output 'z9'; the network has y"),
        ({"": "label"}, "--task label does not fit output 'y'"),
        ({"y": "detect"}, "--task detect"),
        ({"": "detect"}, "--task detect"),
    ],
)
def test_requests_that_do_not_fit_are_refused(requested, sentence):
    with pytest.raises(ConverterError) as error:
        tasks_of(vector("y = Identity (z)"), requested=requested)
    assert sentence in str(error.value)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize("kind", ["classify", "embed"])
def test_an_image_is_no_vector_of_classes(kind):
    model = image("y = Identity (z)") if kind == "classify" else vector("y = Identity (z)", width=1)
    with pytest.raises(ConverterError, match=f"--task {kind} does not fit output 'y'"):
        tasks_of(model, requested={"y": kind})


# detectors


def test_a_detector_is_found():
    """Boxes in pixels and class scores of a YOLOv8 head; a class map beside is a mask."""
    text = "g (float[N, 3, 64, 64] x) => (float[N, 12, A] boxes, float[N, 4, H, W] map) "
    text += "{ z = Conv <strides = [4, 4]> (x, w) m = Conv <strides = [4, 4]> (x, v) "
    text += "map = Softmax <axis = 1> (m) s = Reshape (z, flat) t = Sigmoid (s) "
    text += "a = Slice (t, zero, two, axis) b = Slice (t, two, four, axis) "
    text += "c = Slice (t, four, many, axis) p = Add (grid, a) xy = Mul (p, four_f) "
    text += "wh = Mul (b, twenty) boxes = Concat <axis = 1> (xy, wh, c) }"
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16)), 0).reshape(1, 2, 256)
    model = network(
        text,
        w=noise(12, 3, 4, 4),
        v=noise(4, 3, 4, 4),
        flat=np.array([0, 12, -1]),
        axis=np.array([1]),
        zero=np.array([0]),
        two=np.array([2]),
        four=np.array([4]),
        many=np.array([99]),
        four_f=np.float32(4),
        twenty=np.float32(20),
        grid=grid.astype(np.float32),
    )
    assert names_of(tasks_of(model)) == [("detect", ("boxes",)), ("label", ("map",))]
    requested = {"": "detect"}
    assert names_of(tasks_of(model, requested=requested))[0] == ("detect", ("boxes",))
    alone = tasks_of(model, requested={"boxes": "regress"})
    assert names_of(alone) == [("regress", ("boxes",)), ("label", ("map",))]
    assert alone[0].channels.axis == 1
    assert [len(group) for group in alone[0].channels.groups] == [2, 2, 8]
