"""Channels are followed through the last operators; states, masks and lengths are found."""

import numpy as np
import pytest
from networks import noise
from task_networks import names_of, network, outputs_of, tasks_of, vector

from converter.evaluation.tasks.endings import SmallRun, find_channels
from converter.evaluation.tasks.find import find_tasks
from converter.evaluation.tasks.states import find_states
from converter.graph.network import inputs

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
