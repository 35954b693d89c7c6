"""Scores of networks on data, against numpy: hits, agreement, errors, drop of accuracy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import make_net, noise
from onnx import TensorProto, helper, numpy_helper

from converter.data.data import from_arrays
from converter.evaluation.score import drop_interval, fixed_batch, renamed, score
from converter.graph.network import load, open_session
from converter.runtime.runtime import ExclusiveSession

# drop of accuracy


@pytest.mark.parametrize(
    ("lost", "won", "count", "median", "half"),
    [
        (0, 0, 100, 0.0, 0.0),
        (1, 0, 1, 100.0, 0.0),
        (10, 10, 100, 0.0, 257.6 * np.sqrt(0.2) / 10),
        (5, 0, 100, 5.0, 257.6 * np.sqrt(0.05 - 0.05**2) / 10),
        (0, 5, 100, -5.0, 257.6 * np.sqrt(0.05 - 0.05**2) / 10),
        (30, 10, 1000, 2.0, 257.6 * np.sqrt(0.04 - 0.02**2) / np.sqrt(1000)),
    ],
)
def test_the_drop_counts_what_changed(lost, won, count, median, half):
    before, after = np.zeros(count, bool), np.zeros(count, bool)
    before[:lost] = True
    after[lost : lost + won] = True
    both = np.arange(count) >= lost + won + (count - lost - won) // 2  # right in both: no matter
    found = drop_interval(before | both, after | both)
    assert found.median == pytest.approx(median)
    assert found.high - found.median == pytest.approx(half, rel=1e-3)
    assert found.median - found.low == pytest.approx(half, rel=1e-3)


def test_pairing_narrows_the_drop():
    rng = np.random.default_rng(0)
    before = rng.random(1000) < 0.8
    after = before ^ (rng.random(1000) < 0.01)
    paired, shuffled = drop_interval(before, after), drop_interval(before, rng.permutation(after))
    assert paired.median == pytest.approx(shuffled.median)
    assert paired.high - paired.low < 0.3 * (shuffled.high - shuffled.low)


# scores


def heads(*weights, batch="N", inputs=("x",)):
    """A network with one linear output x @ w for each of ``weights``."""
    size = len(weights[0])
    nodes = [
        helper.make_node("MatMul", [inputs[0], f"w{n}"], [f"y{n}"]) for n in range(len(weights))
    ]
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, size]) for n in inputs],
        [
            helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, [batch, w.shape[1]])
            for n, w in enumerate(weights)
        ],
        [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    return open_session(ir.from_proto(model))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_scores_are_what_numpy_says(batch_size):
    x, first, second = noise(50, 6), noise(6, 4, seed=1), noise(6, 4, seed=1)
    second += 0.5 * noise(6, 4, seed=2)
    labels = np.random.default_rng(3).integers(0, 4, 50)
    data = from_arrays({"x": x, "y": labels}, "numbers")
    one, other = score([heads(first), heads(second)], data, batch_size)
    a, b = x @ first, x @ second
    np.testing.assert_array_equal(one.hits, a.argmax(1) == labels)
    np.testing.assert_array_equal(other.hits, b.argmax(1) == labels)
    assert one.accuracy == pytest.approx(np.mean(a.argmax(1) == labels))
    assert other.accuracy == pytest.approx(np.mean(b.argmax(1) == labels))
    assert (one.agreement, one.rel_output_error) == (1.0, 0.0)
    assert other.agreement == pytest.approx(np.mean(a.argmax(1) == b.argmax(1)))
    assert 0 < other.agreement < 1
    wanted = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert other.rel_output_error == pytest.approx(wanted, rel=1e-5)


def test_there_is_no_accuracy_without_labels():
    (found,) = score([heads(noise(6, 4))], from_arrays({"x": noise(5, 6)}, "numbers"), 2)
    assert found.accuracy is None and found.hits is None
    assert found.agreement == 1.0


def test_the_worst_output_counts():
    data = from_arrays({"x": noise(20, 6)}, "numbers")
    one, two = noise(6, 4, seed=1), noise(6, 3, seed=2)
    _, found = score([heads(one, two), heads(one * np.float32(1.01), two * 2)], data, 8)
    assert found.rel_output_error == pytest.approx(1.0, rel=1e-5)


def test_outputs_that_are_no_vectors_have_no_agreement(tmp_path):
    model = onnx.load(make_net(tmp_path / "net.onnx", (3, 4)))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("relu0", TensorProto.FLOAT, ["N"] * 4))
    session = open_session(ir.from_proto(model))
    data = from_arrays({"x": noise(4, 3, 8, 8), "y": np.zeros(4, int)}, "numbers")
    _, found = score([session, session], data, 2)
    assert found.agreement is None and found.accuracy is None
    assert found.rel_output_error == 0.0


def test_scoring_tells_how_far_it_is():
    told = []
    score([heads(noise(6, 4))], from_arrays({"x": noise(5, 6)}, "numbers"), 2, told.append)
    assert told == [0.4, 0.8, 1.0]


# sessions


@pytest.mark.parametrize(("batch", "wanted"), [("N", None), (4, 4)])
def test_a_network_may_insist_on_a_batch_size(batch, wanted):
    assert fixed_batch(heads(noise(6, 4), batch=batch)) == wanted


def test_inputs_are_found_by_name_else_in_order():
    session = heads(noise(6, 4), inputs=("image", "mask"))
    image, mask = noise(2, 6), noise(2, 6, seed=1)
    for feeds in ({"mask": mask, "image": image, "more": mask}, {"a": image, "b": mask}):
        found = renamed(feeds, session)
        assert list(found) == ["image", "mask"]
        np.testing.assert_array_equal(found["image"], image)
        np.testing.assert_array_equal(found["mask"], mask)


# sessions that take turns


@pytest.mark.parametrize("turn_bytes, openings", [(1, 20), (2**20, 4)])
def test_a_turn_scores_as_many_batches_as_memory_holds(turn_bytes, openings, tmp_path, monkeypatch):
    models = [load(make_net(tmp_path / f"{n}.onnx", seed=n)) for n in range(2)]
    data = from_arrays({"x": noise(20, 3, 8, 8)}, "noise")
    sessions = [open_session(model) for model in models]
    opened, open_now = [], {}

    def opener(session):
        return lambda: opened.append(session) or session

    turns = [ExclusiveSession(opener(session), open_now) for session in sessions]
    opened.clear()
    monkeypatch.setattr("converter.evaluation.score.MAX_GROUP_BYTES", turn_bytes)
    one, other = score(sessions, data, 2)[1], score(turns, data, 2)[1]
    assert len(opened) == openings
    assert one.rel_output_error == pytest.approx(other.rel_output_error, rel=1e-12)
    assert one.agreement == other.agreement
