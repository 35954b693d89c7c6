"""Scores of networks on data, against numpy: hits, agreement, errors, drop of accuracy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import make_net, noise
from onnx import TensorProto, helper, numpy_helper

from converter.data.data import from_arrays
from converter.evaluation.score import drop_interval, fixed_batch, renamed, score
from converter.evaluation.tasks.classify import Classify
from converter.evaluation.tasks.regress import Regress
from converter.graph.network import load, open_session
from converter.runtime.runtime import ExclusiveSession

# drop of accuracy


def drop(hits_before, hits_after):
    """The interval of the drop, for hits of class 1 of two."""
    labels = np.ones(len(hits_before), int)
    before, after = (np.stack([~h, h], 1).astype(float) for h in (hits_before, hits_after))
    task = Classify.of("y", before)
    return drop_interval(task.judge(task.compare({"y": before}, {"y": after}, labels)))


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
    found = drop(before | both, after | both)
    assert found.median == pytest.approx(median)
    assert found.high - found.median == pytest.approx(half, rel=1e-3)
    assert found.median - found.low == pytest.approx(half, rel=1e-3)


def test_pairing_narrows_the_drop():
    rng = np.random.default_rng(0)
    before = rng.random(1000) < 0.8
    after = before ^ (rng.random(1000) < 0.01)
    paired, shuffled = drop(before, after), drop(before, rng.permutation(after))
    assert paired.median == pytest.approx(shuffled.median)
    assert paired.high - paired.low < 0.3 * (shuffled.high - shuffled.low)


# scores


def heads(*weights, batch="N", inputs=("x",), turned=False):
    """A network with one linear output x @ w for each of ``weights``, in reverse if ``turned``."""
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
        ][:: -1 if turned else 1],
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
    a, b = x @ first, x @ second
    task = Classify.of("y0", a)
    one, other = score([heads(first), heads(second)], data, [task], batch_size)
    assert one.judgement.score_after == np.mean(a.argmax(1) == labels)
    assert other.judgement.score_before == np.mean(a.argmax(1) == labels)
    assert other.judgement.score_after == np.mean(b.argmax(1) == labels)
    assert (one.judgement.lost, one.output_error) == (0.0, 0.0)
    agreement = other.judgement.details["agreement"]
    assert agreement == np.mean(a.argmax(1) == b.argmax(1))
    assert 0 < agreement < 1
    wanted = np.sqrt(np.square(a - b).mean(0)) / a.std(0)
    assert other.output_error == pytest.approx(wanted.max(), rel=1e-5)
    assert other.unit == "accuracy"


def test_there_is_no_accuracy_without_labels():
    task = Classify.of("y0", noise(5, 4))
    (found,) = score([heads(noise(6, 4))], from_arrays({"x": noise(5, 6)}, "numbers"), [task], 2)
    assert found.judgement.score_before is None and found.judgement.score_after is None
    assert found.judgement.details["agreement"] == 1.0


def test_the_worst_output_counts():
    data = from_arrays({"x": noise(20, 6)}, "numbers")
    one, two = noise(6, 4, seed=1), noise(6, 3, seed=2)
    x = data.read(np.arange(20))["x"]
    tasks = [Regress.of("y0", x @ one), Regress.of("y1", x @ two)]
    _, found = score([heads(one, two), heads(one * np.float32(1.01), two * 2)], data, tasks, 8)
    rms, deviation = np.sqrt(np.square(x @ two).mean(0)), (x @ two).std(0)
    assert found.output_error == pytest.approx((rms / deviation).max(), rel=1e-5)
    assert found.judgement is found.by_output["y1"]


@pytest.mark.parametrize("sizes", [(4, 4), (4, 3)])
def test_outputs_of_equal_names_are_compared_by_name(sizes):
    data = from_arrays({"x": noise(20, 6)}, "numbers")
    weights = [noise(6, size, seed=size + n) for n, size in enumerate(sizes)]
    tasks = [Regress.of(f"y{n}", data.read(np.arange(20))["x"] @ w) for n, w in enumerate(weights)]
    _, found = score([heads(*weights), heads(*weights, turned=True)], data, tasks, 8)
    assert found.output_error == 0


def test_labels_are_those_of_the_output_that_they_fit():
    x, wide, narrow = noise(50, 6), noise(6, 9, seed=1), noise(6, 3, seed=2)
    labels = (x @ wide).argmax(1)
    data = from_arrays({"x": x, "y": labels}, "numbers")
    tasks = [Classify.of("y0", x @ narrow), Classify.of("y1", x @ wide)]
    assert labels.max() > 2
    (found,) = score([heads(narrow, wide)], data, tasks, 8)
    assert found.judgement is found.by_output["y1"]
    assert found.judgement.score_before == 1.0


def test_outputs_that_are_no_vectors_have_no_agreement(tmp_path):
    model = onnx.load(make_net(tmp_path / "net.onnx", (3, 4)))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("relu0", TensorProto.FLOAT, ["N"] * 4))
    session = open_session(ir.from_proto(model))
    data = from_arrays({"x": noise(4, 3, 8, 8), "y": np.zeros(4, int)}, "numbers")
    task = Regress.of("relu0", np.zeros((4, 4, 8, 8)))
    _, found = score([session, session], data, [task], 2)
    assert "agreement" not in found.judgement.details
    assert found.judgement.score_before is None
    assert (found.judgement.lost, found.output_error) == (0.0, 0.0)


def test_scoring_tells_how_far_it_is():
    told = []
    data, task = from_arrays({"x": noise(5, 6)}, "numbers"), Regress.of("y0", noise(5, 4))
    score([heads(noise(6, 4))], data, [task], 2, told.append)
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
    tasks = [Classify.of("logits", noise(20, 4))]
    one, other = score(sessions, data, tasks, 2)[1], score(turns, data, tasks, 2)[1]
    assert len(opened) == openings
    assert one.output_error == pytest.approx(other.output_error, rel=1e-12)
    assert one.judgement == other.judgement
