"""Variants of a network: which layers have which form, and the ranks that are timed."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import from_text, make_net, noise

from converter.decomposition.form import MAX_MACS_SHARE, skeleton
from converter.decomposition.forms import find_form
from converter.graph.network import load, open_session
from converter.graph.survey import survey
from converter.runtime.ort import run
from converter.timing import variants as timing_variants
from converter.timing.variants import Variants

SHAPES = {"x": (1, 16, 16, 16)}


def variants_of(network, shapes):
    feeds = {name: noise(*shape) for name, shape in shapes.items()}
    return Variants.of(network, survey(network, feeds))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=(16, 32, 32), size=16)


@pytest.fixture(scope="module")
def grid(path):
    return variants_of(load(path), SHAPES).with_grid(16)


def test_a_variant_has_the_options_of_its_number_and_prefixed_nodes(grid):
    for number in (0, 1, len(grid) - 1):
        model = grid.variant(number)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        names = [str(node.name) for node in model.graph]
        for index, options in enumerate(grid.options):
            whole = [name for name in names if name == f"flatconv_{index}"]
            steps = [name for name in names if name.startswith(f"flatconv_{index}.")]
            replaced = 0 < number <= len(options)
            assert bool(whole) != replaced and bool(steps) == replaced


def test_the_first_variant_computes_what_the_network_computes(path, grid):
    x = {"x": noise(2, 16, 16, 16)}
    expected = run(open_session(path), x)["logits"]
    assert np.array_equal(run(open_session(grid.variant(0)), x)["logits"], expected)


def test_zeros_take_the_place_of_the_weights_in_a_copy(path, grid):
    stripped = grid.without_weights()
    for name in ("conv0.weight", "fc.weight"):
        zeros = stripped.network.graph.initializers[name].const_value
        weight = grid.network.graph.initializers[name].const_value
        assert not zeros.numpy().any() and weight.numpy().any()
        assert zeros.shape == weight.shape and zeros.dtype == weight.dtype


@pytest.mark.parametrize("block", [8, 16])
def test_ranks_to_be_timed_are_in_blocks_and_save_something(path, block):
    for layer in survey(load(path), {"x": noise(*SHAPES["x"])}):
        options = timing_variants.rank_grid(layer.conv, layer.size, block)
        for form, rank in options:
            assert form == "decoupled" or all(r % block == 0 for r in rank)
            chain = skeleton(layer.conv, find_form(form), rank)
            assert chain.macs(layer.size) <= MAX_MACS_SHARE * layer.macs
        for form in {form for form, _ in options}:
            ranks = [rank for name, rank in options if name == form]
            assert ranks == sorted(set(ranks))


def test_a_layer_with_a_computed_weight_is_timed_as_it_is():
    graph = """g (float[1, 16, 8, 8] x, float[16, 16, 3, 3] w) => (float[1, 16, 8, 8] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, v)
        z = Conv <pads = [1, 1, 1, 1]> (a, w)
    }"""
    network = ir.from_proto(from_text(graph, v=noise(16, 16, 3, 3)))
    grid = variants_of(network, {"x": (1, 16, 8, 8), "w": (16, 16, 3, 3)}).with_grid(16)
    assert [layer.output for layer in grid.layers] == ["a", "z"]
    assert grid.options[0] and not grid.options[1]
