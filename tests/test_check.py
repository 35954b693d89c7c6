"""Checks of a rewritten network: a sound one passes, and the first layer that is off is named."""

import numpy as np
import onnx_ir as ir
import pytest
from conversions import X

from converter.decomposition.decompose import decompose
from converter.decomposition.forms import FORMS
from converter.evaluation.check import check, check_graph, difference, tolerance
from converter.graph.network import load as load_onnx
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey


@pytest.fixture(scope="module")
def rewritten(place):
    """A network, its layers, chains for both, and the rewritten network."""
    network = load_onnx(place / "net.onnx")
    layers = survey(network, {"x": X})[:2]
    chains = {
        "conv0": decompose(layers[0].conv, FORMS["channel"], (4,)),
        "conv1": decompose(layers[1].conv, FORMS["tucker"], (8, 4)),
    }
    named = {layer.output: (layer.name, chains[layer.name]) for layer in layers}
    return network, layers, chains, rewrite(network, named)


def test_a_sound_rewrite_passes(rewritten):
    network, layers, chains, result = rewritten
    assert check(network, result, layers, chains, {"random inputs": {"x": X}}) is None


@pytest.mark.parametrize("name", ["conv0", "conv1"])
def test_a_sabotaged_layer_is_named(rewritten, name):
    network, layers, chains, result = rewritten
    broken = result.clone()
    weight = broken.graph.initializers[f"{name}.1.weight"]
    kernel = weight.const_value.numpy().copy()
    kernel[0] *= -1
    weight.const_value = ir.tensor(kernel, name=weight.name)
    problem = check(network, broken, layers, chains, {"random inputs": {"x": X}})
    assert f"on random inputs, beginning at layer {name}." in problem


def test_a_sabotaged_rest_is_named_by_its_output(rewritten):
    network, layers, chains, result = rewritten
    broken = result.clone()
    bias = broken.graph.initializers["fc.bias"]
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(1), name="fc.bias")
    problem = check(network, broken, layers, chains, {"real inputs": {"x": X}})
    assert "on real inputs, beginning at output logits." in problem


def test_nan_is_a_difference(rewritten):
    network, layers, chains, result = rewritten
    broken = result.clone()
    weight = broken.graph.initializers["conv1.0.weight"]
    kernel = np.full_like(weight.const_value.numpy(), np.nan)
    weight.const_value = ir.tensor(kernel, name=weight.name)
    problem = check(network, broken, layers, chains, {"random inputs": {"x": X}})
    assert "beginning at layer conv1." in problem


def test_an_invalid_graph_is_found(rewritten):
    network, layers, chains, result = rewritten
    broken = result.clone()
    broken.graph.initializers.pop("conv1.1.weight")
    assert check_graph(result) is None
    samples = {"random inputs": {"x": X}}
    for problem in (check_graph(broken), check(network, broken, layers, chains, samples)):
        assert problem.startswith("The rewritten network is not valid ONNX: ")


def test_a_rewritten_network_that_does_not_run_is_found(rewritten):
    network, layers, chains, result = rewritten
    broken = result.clone()
    broken.graph.inputs[0].name = "other"
    problem = check(network, broken, layers, chains, {"random inputs": {"x": X}})
    assert problem.startswith("The rewritten network does not run on random inputs: ")


@pytest.mark.parametrize(("flips", "wanted"), [(0, 0.0), (1, 0.0), (3, 0.02), (100, 0.99)])
def test_of_class_indices_the_share_that_differs_counts(flips, wanted):
    classes = np.arange(100) % 10
    other = np.where(np.arange(100) < flips, (classes + 5) % 10, classes)
    assert difference(classes, other) == pytest.approx(
        min(wanted, difference(1.0 * classes, other))
    )
    assert (difference(classes, other) <= tolerance(classes)) == (flips < 3)


def test_of_rounded_pixels_the_distance_counts():
    pixels = np.random.default_rng(0).integers(100, 200, 500).astype(np.uint8)
    assert (
        difference(pixels, pixels + np.uint8(1))
        < tolerance(pixels)
        < difference(pixels, pixels // 2)
    )


@pytest.mark.parametrize(
    ("expected", "got", "wanted"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([0.0, 0.0], [0.0, 2.0], 2.0),
        ([3.0, 4.0], [3.0, 4.0, 5.0], np.inf),
        ([3.0, 4.0], [[3.0, 4.0]], np.inf),
    ],
)
def test_a_difference_is_relative(expected, got, wanted):
    assert difference(np.array(expected), np.array(got)) == pytest.approx(wanted)
