"""What a network loses: nothing where it is the same, the drop where labels tell."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import make_net, noise
from networks_for_tests import from_text

from converter.data import from_arrays
from converter.errors import ConverterError
from converter.networks.onnx_network import load, open_session
from converter.networks.runtime import run
from converter.networks.survey import survey
from converter.planning.judge import Judge, expected_drop, relative_error
from converter.planning.sensitivity import PROBE_ERROR, sensitivities


def model(tmp_path, name="net", **options):
    return load(make_net(tmp_path / f"{name}.onnx", channels=(3, 16), **options))


def data(count=200):
    return from_arrays({"x": noise(count, 3, 8, 8)}, "made up")


def test_the_original_loses_nothing(tmp_path):
    network = model(tmp_path)
    judge = Judge.of(network, data(), 1)
    loss = judge.loss(network)
    assert (loss.drop, loss.output_error) == (0.0, 0.0)
    assert judge.classes
    assert len(judge.outputs) == 13


def test_the_expected_drop_is_between_none_and_the_accuracy(tmp_path):
    judge = Judge.of(model(tmp_path), data(), 1)
    loss = judge.loss(model(tmp_path, "other", seed=3))
    assert 0 < loss.drop <= judge.accuracy <= 1
    assert loss.output_error > 0.1


def linear(off=0.0):
    """Ten classes of eight numbers, sure of each; weights moved by noise."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 10)) + off * rng.standard_normal((8, 10))
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 8] x) => (float[N, 10] y) '
        "{ y = MatMul (x, w) }"
    )
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array((1e4 * weight).astype(np.float32), "w")
    )
    return ir.from_proto(proto)


def disagreement(network, other, count):
    """Examples, and on which of them two networks disagree."""
    x = {"x": noise(count, 8)}
    mine, its = (run(open_session(n), x)["y"].argmax(1) for n in (network, other))
    return from_arrays(x, "made up"), mine != its


def test_a_sure_network_loses_what_it_disagrees_on():
    network, other = linear(), linear(0.1)
    data, wrong = disagreement(network, other, 4000)
    judge = Judge.of(network, data, 1)
    assert judge.accuracy == pytest.approx(1.0, abs=1e-3)
    assert 0.02 < wrong.mean() < 0.2
    assert judge.loss(other).drop == pytest.approx(wrong.mean(), rel=0.1)


def test_few_examples_say_what_many_would():
    network, other = linear(), linear(0.03)
    data, wrong = disagreement(network, other, 8000)
    parts = np.arange(8000).reshape(-1, 160)
    losses = [Judge.of(network, data.take(part), 1).loss(other) for part in parts]
    counted = wrong[parts].mean(1)
    assert np.std([loss.drop for loss in losses]) < 0.75 * counted.std()
    assert np.mean([loss.drop_high >= wrong.mean() for loss in losses]) >= 0.9


def test_a_single_output_is_no_class(tmp_path):
    judge = Judge.of(model(tmp_path, classes=1), data(), 1)
    loss = judge.loss(model(tmp_path, "other", classes=1, seed=3))
    assert not judge.classes
    assert loss.drop is None
    assert loss.output_error > 0


def test_a_fixed_batch_is_kept_to(tmp_path):
    judge = Judge.of(model(tmp_path, batch=8), data(20), 1)
    assert [len(feeds["x"]) for feeds in judge.batches] == [8, 8]


def test_some_batches_are_enough_for_a_probe(tmp_path):
    network = model(tmp_path)
    other = model(tmp_path, "other", seed=3)
    judge = Judge.of(network, data(64), 1)
    first = Judge.of(network, data(64).take(np.arange(16)), 1)
    assert judge.loss(other, 1).output_error == pytest.approx(first.loss(other).output_error)


def test_a_network_that_gives_no_numbers_loses_all():
    rows = noise(50, 4)
    assert expected_drop(rows, np.full((50, 4), np.nan), 1.0) == (1.0, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_err_without_limit(value):
    rows = noise(50, 4)
    wrong = rows.copy()
    wrong[3, 1] = value
    assert relative_error([rows, wrong], [rows, rows]) == np.inf


def test_a_network_that_overflows_cannot_be_judged_beside(tmp_path):
    network = linear()
    far = from_arrays({"x": np.full((20, 8), 3e38, np.float32)}, "made up")
    with pytest.raises(ConverterError, match=r"NaN or infinite values for made up \(output y\)"):
        Judge.of(network, far, 1)


def test_a_probe_that_overflows_counts_as_losing_all():
    text = "g (float[N, 4, 3, 3] x) => (float[N, 4, 3, 3] y) { y = Conv (x, w) }"
    weight = 1.7e38 * np.eye(4, dtype=np.float32)[..., None, None]
    network = ir.from_proto(from_text(text, w=weight))
    layers = survey(network, {"x": noise(1, 4, 3, 3)})
    judge = Judge.of(network, from_arrays({"x": np.full((4, 4, 3, 3), 2, np.float32)}, "twos"), 1)
    found = sensitivities(network, layers, {}, judge)
    assert found.weights["w"] == pytest.approx(1 / PROBE_ERROR**2, rel=1e-3)
