"""Layers refitted on few, constant or degenerate inputs."""

import numpy as np
import pytest
from networks import make_net, noise
from refit_networks import (
    WEIGHTS,
    bytes_of,
    choose,
    error,
    refit,
    rewritten,
    setting,
    solve_alone,
)

from converter.data.data import from_arrays
from converter.graph.network import load
from converter.graph.survey import survey
from converter.reconstruction.moments import second_moments
from converter.reconstruction.ridge import RIDGES, Patches, choose_ridge
from converter.reconstruction.solve import solve_layers


def test_a_batch_size_that_the_network_insists_on_is_kept(tmp_path):
    make_net(tmp_path / "net.onnx", batch=4)
    network = load(tmp_path / "net.onnx")
    x = noise(10, 3, 8, 8)
    x[8:] = np.nan  # of the last batch, which is incomplete
    data = from_arrays({"x": x}, "noise")
    layers = [layer for layer in survey(network, data.read(np.arange(4))) if layer.conv.k]
    chains, errors = refit(network, layers, data, choose(layers, 0.5))
    assert len(chains) == 2
    assert all(np.isfinite(found) for found in errors.values())
    assert all(np.isfinite(array).all() for array in map(np.frombuffer, bytes_of(chains)))


def test_fewer_examples_than_the_batch_are_repeated(tmp_path):
    make_net(tmp_path / "net.onnx", batch=4)
    network = load(tmp_path / "net.onnx")
    x = noise(3, 3, 8, 8)
    few, same = (from_arrays({"x": array}, "noise") for array in (x, x[[0, 1, 2, 0]]))
    layers = [la for la in survey(network, same.read(np.arange(4))) if la.conv.k]
    chosen = choose(layers, 0.5)
    one, two = (refit(network, layers, data, chosen)[0] for data in (few, same))
    assert bytes_of(one) == bytes_of(two)
    one, two = (second_moments(network, layers, data) for data in (few, same))
    for name in one:
        assert np.array_equal(one[name][0].full, two[name][0].full)


@pytest.mark.parametrize("name", ["residual", "pooled", "strided", "signals"])
def test_activations_that_are_always_zero_do_no_harm(name):
    bias = np.full(8, -1e3, np.float32)
    model, layers, data = setting(name, b0=bias, **({"s0": -abs(WEIGHTS["s0"])}))
    chains, errors = refit(model, layers, data, choose(layers, 0.4))
    assert all(np.isfinite(step.kernel).all() for c in chains.values() for step in c.steps)
    assert all(np.isfinite(found) for found in errors.values())
    assert error(model, rewritten(model, layers, chains), data) < 1


def test_inputs_that_are_all_zero_do_no_harm():
    model, layers, _ = setting("residual")
    data = from_arrays({"x": np.zeros((8, 4, 8, 8), np.float32)}, "zeros")
    chains, errors = refit(model, layers, data, choose(layers, 0.4))
    assert all(np.isfinite(found) for found in errors.values())
    assert all(np.isfinite(step.kernel).all() for c in chains.values() for step in c.steps)
    assert error(model, rewritten(model, layers, chains), data) < 0.2


def test_layers_whose_channels_have_no_room_are_solved_by_their_weights():
    model, layers, data = setting("residual")
    chosen = choose(layers, 0.5)
    chains, _ = refit(model, layers, data, chosen, memory_bytes=100)
    assert set(chains) == set(chosen)
    by_weights = solve_layers(layers, chosen, {})
    alone = error(model, rewritten(model, layers, by_weights), data)
    assert error(model, rewritten(model, layers, chains), data) < 1.1 * alone


@pytest.mark.parametrize("kind", ["constant", "the same in every channel"])
def test_inputs_of_few_dimensions_are_solved_for(kind):
    model, layers, _ = setting("residual")
    x = np.ones((8, 4, 8, 8), np.float32) if kind == "constant" else noise(8, 1, 8, 8)
    data = from_arrays({"x": np.broadcast_to(x, (8, 4, 8, 8)).copy()}, "few dimensions")
    chosen = choose(layers, 0.5)
    plain = solve_alone(model, layers, data, chosen)
    for chains in (plain, refit(model, layers, data, chosen)[0]):
        assert error(model, rewritten(model, layers, chains), data) < 0.5


def test_few_examples_hold_a_layer_that_no_rank_limits_to_what_it_was():
    rng = np.random.default_rng(0)
    few = rng.standard_normal((50, 40)).astype(np.float32)
    noise = 5 * rng.standard_normal((50, 3))
    change = few @ rng.standard_normal((40, 3))
    assert choose_ridge(few, noise) >= 10  # noise is not learnt
    assert choose_ridge(np.tile(few, (8, 1)), np.tile(change, (8, 1))) == RIDGES[0]


def test_an_input_that_never_changes_takes_the_first_ridge():
    assert choose_ridge(np.zeros((60, 30), np.float32), np.ones((60, 2))) == RIDGES[0]


@pytest.mark.parametrize("P", [20, 60])
def test_both_ways_to_solve_a_regression_are_the_least_squares(P):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((P, 30)), rng.standard_normal((P, 4))
    change = Patches.of(X).with_ridge(0.1).fit(Y)
    ridge = 0.1 * np.mean(X**2)
    gradient = X.T @ (X @ change - Y) / P + ridge * change
    assert np.abs(gradient).max() < 1e-12
