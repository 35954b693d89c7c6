"""What outputs mean is found from requests, labels, operators, values, names and metadata."""

import numpy as np
import onnx_ir as ir
import pytest
from helpers import from_text, noise
from scipy.special import softmax

from converter.errors import ConverterError
from converter.evaluation.tasks.endings import SmallRun, find_channels, words
from converter.evaluation.tasks.find import find_tasks
from converter.evaluation.tasks.states import find_states
from converter.graph.network import inputs, open_session
from converter.graph.outputs import comparison_outputs, with_outputs
from converter.runtime.ort import run


def network(text, metadata=None, **weights):
    model = ir.from_proto(from_text(text, **weights))
    model.metadata_props.update(metadata or {})
    return model


def vector(tail, width=10, name="y", metadata=None):
    """A linear layer; ``tail`` computes the output from ``z`` (N, width)."""
    text = f"g (float[N, 6] x) => (float[N, K] {name}) {{ z = MatMul (x, w) {tail} }}"
    return network(text, metadata, w=noise(6, width), two=np.float32(2))


def image(tail, channels=4, dtype="float"):
    """A convolution; ``tail`` computes the output from ``z`` (N, channels, 8, 8)."""
    text = f"g (float[N, 3, 8, 8] x) => ({dtype} y) {{ z = Conv (x, w) {tail} }}"
    return network(text, w=noise(channels, 3, 1, 1))


def outputs_of(model, feeds):
    return run(open_session(with_outputs(model, comparison_outputs(model))), feeds)


def tasks_of(model, labels=None, count=16, requested=None, **feeds):
    for item in inputs(model):
        shape = [count, *(size or 8 for size in item.shape[1:])]
        feeds.setdefault(item.name, noise(*shape).astype(item.dtype))
    shapes = {name: (1, *array.shape[1:]) for name, array in feeds.items()}
    return find_tasks(model, outputs_of(model, feeds), shapes, labels, requested or {})


def names_of(tasks):
    return [(task.name, task.outputs) for task in tasks]


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


# channels


def channels_of(model, name="y", **feeds):
    (item,) = inputs(model)
    feeds = feeds or {"x": noise(5, *(size or 8 for size in item.shape[1:]))}
    outputs = outputs_of(model, feeds)
    shapes = {key: (1, *array.shape[1:]) for key, array in feeds.items()}
    return find_channels(model, outputs, SmallRun.of(model, list(outputs), shapes))[name]


@pytest.mark.parametrize(
    ("tail", "axis"),
    [
        ("y = Relu (z)", 1),
        ("y = Transpose <perm = [0, 2, 3, 1]> (z)", 3),
        ("y = Transpose <perm = [0, 3, 1, 2]> (z)", 2),
        ("y = Reshape (z, flat)", 1),
        ("f = Reshape (z, flat) y = Transpose <perm = [0, 2, 1]> (f)", 2),
    ],
)
def test_channels_are_followed_from_the_convolution(tail, axis):
    text = f"g (float[N, 3, 8, 8] x) => (float y) {{ z = Conv (x, w) {tail} }}"
    model = network(text, w=noise(40, 3, 1, 1), flat=np.array([0, 40, -1]))
    assert (channels_of(model).axis, channels_of(model).groups) == (axis, ())


def test_channels_of_a_product_are_last():
    text = "g (float[N, 64, 6] x) => (float[N, 64, 40] y) { z = MatMul (x, w) y = Add (z, b) }"
    assert channels_of(network(text, w=noise(6, 40), b=noise(40))).axis == 2


def test_the_inputs_of_the_last_concat_are_groups():
    text = "g (float[N, 3, 8, 8] x) => (float y) { a = Conv (x, v) b = Conv (x, w) "
    text += "c = Concat <axis = 1> (a, b) f = Reshape (c, flat) d = Concat <axis = 2> (f, f) "
    text += "s = Sigmoid (d) y = Transpose <perm = [0, 2, 1]> (s) }"
    model = network(text, v=noise(4, 3, 1, 1), w=noise(7, 3, 1, 1), flat=np.array([0, 11, -1]))
    channels = channels_of(model)
    assert channels.axis == 2
    assert channels.groups == (tuple(range(4)), tuple(range(4, 11)))


def test_the_classes_of_a_softmax_share_a_unit():
    channels = channels_of(vector("y = Softmax <axis = 1> (z)"))
    assert channels.groups == (tuple(range(10)),)


def test_a_network_that_zeros_stop_is_told_from_its_shapes():
    text = "g (float[N, 3, 8, 8] x, int64[1] n) => (float y) { z = Conv (x, w) "
    text += "s = Reshape (z, n) y = Reshape (s, back) }"
    weights = {"w": noise(4, 3, 1, 1), "back": np.array([-1, 4, 8, 8])}
    model = network(text, **weights)
    feeds = {"x": noise(5, 3, 8, 8), "n": np.array([-1])}
    shapes = {name: array.shape for name, array in feeds.items()}
    run_ = SmallRun.of(model, ["y"], shapes)
    assert run_.shapes == {}
    (task,) = find_tasks(model, outputs_of(model, feeds), shapes, None, {})
    assert (task.name, task.channels.axis) == ("regress", 1)


# states, masks and lengths


def states_of(model, **feeds):
    outputs = outputs_of(model, feeds)
    shapes = {name: array.shape for name, array in feeds.items()}
    return find_states(model, outputs, SmallRun.of(model, list(outputs), shapes).shapes)


def recurrent(state_in, state_out):
    text = f"g (float[N, 6] x, float[N, 5] {state_in}) => (float[N, 5] {state_out}, float[N, 2] y) "
    text += f"{{ a = MatMul (x, v) b = MatMul ({state_in}, u) s = Add (a, b) "
    text += f"{state_out} = Tanh (s) y = MatMul ({state_out}, w) }}"
    return network(text, v=noise(6, 5), u=noise(5, 5), w=noise(5, 2))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h", "hn"),
        ("c0", "cn"),
        ("state", "stateN"),
        ("state", "new_state"),
        ("cache_in", "cache_out"),
        ("past_key", "present_key"),
        ("r1i", "r1o"),
    ],
)
def test_the_next_value_of_an_input_is_a_state(before, after):
    model = recurrent(before, after)
    assert states_of(model, x=noise(3, 6), **{before: noise(3, 5)}) == (after,)
    tasks = tasks_of(model, **{before: noise(16, 5)})
    assert names_of(tasks) == [("regress", ("y",))]


@pytest.mark.parametrize("after", ["points", "h_error", "y2"])
def test_other_outputs_of_that_shape_are_answers(after):
    assert states_of(recurrent("h", after), x=noise(3, 6), h=noise(3, 5)) == ()


def test_a_denoised_image_is_no_state():
    text = "g (float[N, 3, 8, 8] image_in, float[N, 1] t) => (float image_out, float other) "
    text += "{ image_out = Conv (image_in, w) other = MatMul (t, v) }"
    model = network(text, w=noise(3, 3, 1, 1), v=noise(1, 1))
    assert states_of(model, image_in=noise(2, 3, 8, 8), t=noise(2, 1)) == ()


def test_the_last_states_of_an_lstm_are_states():
    text = "g (float[T, N, 6] x) => (float ys, float packed) "
    text += "{ ys, hn, cn = LSTM <hidden_size = 5> (x, w, r) packed = Concat <axis = 0> (hn, cn) }"
    model = network(text, w=noise(1, 20, 6), r=noise(1, 20, 5))
    assert states_of(model, x=noise(7, 3, 6)) == ("packed",)


def test_what_no_layer_computes_is_no_answer():
    text = "g (float[N, 6] x, int64[N] lengths) => (float[N, 4] y, bool[N, 6] mask, "
    text += "int64[N] out_lengths) { y = MatMul (x, w) c = Unsqueeze (lengths, one) "
    text += "mask = Less (steps, c) out_lengths = Div (lengths, two) }"
    model = network(
        text, w=noise(6, 4), one=np.array([1]), steps=np.arange(6)[None], two=np.array(2)
    )
    feeds = {"x": noise(3, 6), "lengths": np.array([2, 4, 6])}
    assert states_of(model, **feeds) == ("mask", "out_lengths")
    assert names_of(tasks_of(model, lengths=np.full(16, 4))) == [("regress", ("y",))]


def test_an_output_that_is_all_there_is_is_judged():
    text = "g (float[N, 6] x) => (float[N, 6] y) { y = Relu (x) }"
    assert names_of(tasks_of(network(text))) == [("regress", ("y",))]


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
