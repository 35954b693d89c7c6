"""What a network loses: nothing where it is the same, the drop where labels tell."""

import numpy as np
import onnx_ir as ir
import pytest
from conftest import make_net, noise

from converter.data import from_arrays
from converter.networks.onnx_network import load, open_session
from converter.networks.runtime import run
from converter.planning.judge import Judge


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


def test_a_sure_network_loses_what_it_disagrees_on(tmp_path):
    network, other = model(tmp_path), model(tmp_path, "other", seed=3)
    for weight in network.graph.initializers.values():
        if weight.name == "fc.weight":
            weight.const_value = ir.tensor(weight.const_value.numpy() * 1e4, name="fc.weight")
    x = {"x": noise(200, 3, 8, 8)}
    mine, its = (run(open_session(n), x)["logits"].argmax(1) for n in (network, other))
    judge = Judge.of(network, data(), 1)
    assert judge.accuracy == pytest.approx(1.0)
    assert judge.loss(other).drop == pytest.approx(float((mine != its).mean()), abs=1e-6)


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
