"""What outputs mean is found from operators, values, names and metadata."""

import numpy as np
import pytest
from networks import noise
from scipy.special import softmax
from task_networks import image, names_of, network, tasks_of, vector

from converter.evaluation.tasks.endings import words
from converter.evaluation.tasks.find import find_tasks

# operators and values


@pytest.mark.parametrize(
    ("tail", "task"),
    [
        ("y = Softmax <axis = 1> (z)", "classify"),
        ("y = LogSoftmax <axis = 1> (z)", "classify"),
        ("p = Softmax <axis = 1> (z) y = Identity (p)", "classify"),
        ("e = Exp (z) s = ReduceSum <keepdims = 1> (e, one) y = Div (e, s)", "classify"),
        ("y = Sigmoid (z)", "classify"),
        ("y = LpNormalization <axis = 1, p = 2> (z)", "embed"),
        ("n = ReduceL2 <keepdims = 1> (z, one) y = Div (z, n)", "embed"),
        ("q = Mul (z, z) s = ReduceSum (q, one) n = Sqrt (s) y = Div (z, n)", "embed"),
        ("y = Identity (z)", "regress"),
        ("y = Relu (z)", "regress"),
        ("y = Tanh (z)", "regress"),
        ("s = Sigmoid (z) y = Mul (s, two)", "regress"),
    ],
)
def test_the_end_of_a_vector_says_what_it_is(tail, task):
    text = f"g (float[N, 6] x) => (float[N, 10] y) {{ z = MatMul (x, w) {tail} }}"
    model = network(text, w=noise(6, 10), two=np.float32(2), one=np.array([1]))
    (found,) = tasks_of(model)
    assert (found.name, found.outputs) == (task, ("y",))


def test_several_sigmoids_are_independent_classes():
    (task,) = tasks_of(vector("y = Sigmoid (z)"))
    assert task.independent
    (single,) = tasks_of(vector("y = Sigmoid (z)", width=1))
    assert (single.name, single.independent) == ("classify", False)


def test_a_vector_of_which_nothing_is_known_is_judged_as_numbers_and_says_so():
    (task,) = tasks_of(vector("y = Identity (z)"))
    sentence = "Output 'y' (N, 10) is judged as numbers; if it holds class scores, add "
    assert task.doubt == sentence + "--task classify."
    (asked,) = tasks_of(vector("y = Identity (z)"), requested={"": "regress"})
    assert (asked.name, asked.doubt) == ("regress", None)


@pytest.mark.parametrize(
    ("tail", "task"),
    [
        ("y = Softmax <axis = 1> (z)", "label"),
        ("s = Softmax <axis = 1> (z) y = Transpose <perm = [0, 2, 3, 1]> (s)", "label"),
        ("y = Sigmoid (z)", "regress"),  # heat maps
        ("y = Relu (z)", "regress"),
    ],
)
def test_the_end_of_an_image_says_what_it_is(tail, task):
    (found,) = tasks_of(image(tail))
    assert found.name == task
    if task == "label":
        axis = 3 if "Transpose" in tail else 1
        assert (found.scores.class_axis, found.scores.classes) == (axis, 4)


def test_a_mask_of_one_sigmoid_is_a_label():
    (task,) = tasks_of(image("y = Sigmoid (z)", channels=1))
    assert (task.name, task.scores.classes, task.positions) == ("label", 1, (8, 8))


def test_classes_of_positions_are_labels():
    (task,) = tasks_of(image("y = ArgMax <axis = 1, keepdims = 0> (z)", dtype="int64"))
    assert (task.name, task.scores.class_axis, task.positions) == ("label", None, (8, 8))
    (cast,) = tasks_of(
        image("a = ArgMax <axis = 1> (z) y = Cast <to = 6> (a)", dtype="int32"), count=5
    )
    assert cast.name == "label"


def test_one_class_for_each_example_is_a_label_of_one_position():
    text = "g (float[N, 6] x) => (int64[N] y) { z = MatMul (x, w) y = ArgMax <axis = 1, "
    (task,) = tasks_of(network(text + "keepdims = 0> (z) }", w=noise(6, 10)))
    assert (task.name, task.steps, task.unit) == ("label", 1, "accuracy")


def test_a_sequence_with_a_blank_is_a_text():
    text = "g (float[N, 12, 1, 24] x) => (float[T, N, C] y) { c = Conv (x, w) q = Squeeze (c, two) "
    text += "t = Transpose <perm = [2, 0, 1]> (q) y = Softmax <axis = 2> (t) }"
    model = network(text, w=np.eye(12, dtype=np.float32)[:, :, None, None], two=np.array([2]))
    symbols = np.zeros((16, 24), int)
    symbols[:, 1::3] = np.random.default_rng(0).integers(1, 12, (16, 8))
    x = 9 * np.moveaxis(np.eye(12, dtype=np.float32)[symbols], 2, 1)[:, :, None]
    (task,) = tasks_of(model, x=x)
    assert (task.name, task.blank, task.steps) == ("label", 0, 24)
    assert (task.scores.batch_axis, task.scores.class_axis) == (1, 2)


def text_network(tail):
    """A text recogniser that reads an image of one-hot columns; and such images."""
    text = (
        f"g (float[N, 12, 1, 24] x) => (float y) {{ c = Conv (x, w) q = Squeeze (c, two) {tail} }}"
    )
    model = network(text, w=np.eye(12, dtype=np.float32)[:, :, None, None], two=np.array([2]))
    symbols = np.zeros((16, 24), int)
    symbols[:, 1::3] = np.random.default_rng(0).integers(1, 12, (16, 8))
    return model, 9 * np.moveaxis(np.eye(12, dtype=np.float32)[symbols], 2, 1)[:, :, None]


@pytest.mark.parametrize(
    ("tail", "axes"),
    [
        ("y = Identity (q)", (0, 1)),
        ("y = Transpose <perm = [0, 2, 1]> (q)", (0, 2)),
        ("y = Transpose <perm = [2, 0, 1]> (q)", (1, 2)),
    ],
)
def test_logits_with_a_blank_are_a_text_without_a_softmax(tail, axes):
    model, x = text_network(tail)
    (task,) = tasks_of(model, x=x)
    assert (task.name, task.blank, task.steps) == ("label", 0, 24)
    assert (task.scores.batch_axis, task.scores.class_axis) == axes


def test_features_without_a_blank_are_numbers():
    model, x = text_network("y = Transpose <perm = [0, 2, 1]> (q)")
    (task,) = tasks_of(model, x=noise(*x.shape))
    assert task.name == "regress"


@pytest.mark.parametrize(
    ("tail", "task"),
    [("q = Squeeze (z, one) y = Sigmoid (q)", "label"), ("y = Squeeze (z, one)", "regress")],
)
def test_a_squeezed_map_has_one_channel(tail, task):
    text = f"g (float[N, 3, 8, 8] x) => (float y) {{ z = Conv (x, w) {tail} }}"
    (item,) = tasks_of(network(text, w=noise(1, 3, 1, 1), one=np.array([1])))
    assert item.name == task
    if task == "label":
        assert (item.scores.class_axis, item.scores.classes, item.positions) == (None, 1, (8, 8))
    else:
        assert (item.channels.axis, len(item.variances), item.doubt) == (None, 1, None)


def test_a_score_for_each_step_is_a_label():
    text = "g (float[N, 40, 6] x) => (float y) "
    text += "{ z = MatMul (x, w) q = Squeeze (z, two) y = Sigmoid (q) }"
    (task,) = tasks_of(network(text, w=noise(6, 1), two=np.array([2])))
    assert (task.name, task.unit, task.positions) == ("label", "mean IoU", (40,))


# names and metadata


@pytest.mark.parametrize("name", ["logits", "class_probs", "predLogits_1", "cls"])
def test_a_name_speaks_for_classes(name):
    (task,) = tasks_of(vector(f"{name} = Identity (z)", name=name))
    assert task.name == "classify"


@pytest.mark.parametrize("name", ["y", "embedding", "closest", "problem"])
def test_other_names_do_not(name):
    (task,) = tasks_of(vector(f"{name} = Identity (z)", name=name))
    assert task.name == "regress"


def test_points_between_0_and_1_are_no_classes():
    (task,) = tasks_of(vector("landmarks = Sigmoid (z)", name="landmarks"))
    assert task.name == "regress"


@pytest.mark.parametrize(
    ("metadata", "task"),
    [
        ({"task": "classify"}, "classify"),
        ({"names": str({n: f"class {n}" for n in range(10)})}, "classify"),
        ({"names": str({0: "a", 1: "b"})}, "regress"),
        ({"names": "{0: __import__('os')}"}, "regress"),
        ({"names": "(" * 5000}, "regress"),
        ({"task": "detect"}, "regress"),
    ],
)
def test_the_metadata_say_whether_a_vector_holds_classes(metadata, task):
    (found,) = tasks_of(vector("y = Identity (z)", metadata=metadata))
    assert found.name == task


def test_words_of_names():
    assert words("/head/classLogits_1") == {"head", "class", "logits"}
    assert words("output0") == {"output"}


# several outputs


def test_several_heads_are_several_tasks():
    text = "g (float[N, 6] x) => (float[N, K] age, float[N, K] kind, float[N, K] face) "
    text += "{ age = MatMul (x, u) z = MatMul (x, v) kind = Softmax <axis = 1> (z) "
    text += "e = MatMul (x, w) face = LpNormalization <axis = 1, p = 2> (e) }"
    model = network(text, u=noise(6, 1), v=noise(6, 5), w=noise(6, 8))
    expected = [("regress", ("age",)), ("classify", ("kind",)), ("embed", ("face",))]
    assert names_of(tasks_of(model)) == expected


def test_values_that_sum_to_one_by_chance_are_rare():
    rows = softmax(noise(16, 10), 1)
    model = vector("y = Identity (z)")
    shapes = {"x": (1, 6)}
    assert find_tasks(model, {"y": rows}, shapes, None, {})[0].name == "classify"
    assert find_tasks(model, {"y": rows + 0.01}, shapes, None, {})[0].name == "regress"
