"""Refit layers: nothing is lost at full rank, the error never grows, the cache is used."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import from_text, noise
from refit_networks import (
    NETWORKS,
    WEIGHTS,
    bytes_of,
    choose,
    error,
    refit,
    rewritten,
    setting,
    smooth,
    solve_alone,
)

from converter.data.data import from_arrays
from converter.decomposition.forms import FORMS
from converter.graph.survey import survey
from converter.reconstruction.moments import fits_in_memory, patch_size
from converter.reconstruction.refit import refit_layers


@pytest.mark.parametrize("forms", [("channel",), ("spatial", "channel"), ("tucker", "channel")])
@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_rank_it_changes_nothing(name, forms):
    model, layers, data = setting(name)
    chains, errors = refit(model, layers, data, choose(layers, 1, forms))
    assert list(chains) == list(errors) == [layer.name for layer in layers]
    assert max(errors.values()) < 1e-4
    assert error(model, rewritten(model, layers, chains), data) < 1e-4


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("forms", [("channel",), ("spatial", "channel")])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_makes_nothing_worse_on_what_it_has_seen(name, forms, share):
    model, layers, data = setting(name)
    chosen = choose(layers, share, forms)
    chains, errors = refit(model, layers, data, chosen)
    after = error(model, rewritten(model, layers, chains), data)
    before = error(model, rewritten(model, layers, solve_alone(model, layers, data, chosen)), data)
    assert after <= before
    assert min(errors.values()) > 0 and max(errors.values()) < 1


def test_it_makes_a_residual_network_much_better():
    model, layers, data = setting("residual")
    chosen = choose(layers, 0.4)
    chains, _ = refit(model, layers, data, chosen)
    after = error(model, rewritten(model, layers, chains), data)
    before = error(model, rewritten(model, layers, solve_alone(model, layers, data, chosen)), data)
    assert after < 0.9 * before


def test_what_follows_an_error_makes_up_for_it():
    """The second of two products sees what the first makes; its rank allows to undo that."""
    text = """g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) {
        a = Conv (x, first)
        y = Conv (a, w1)
    }"""
    first = WEIGHTS["w3"]
    model = ir.from_proto(from_text(text, first=first, w1=WEIGHTS["w1"]))
    data = from_arrays({"x": smooth((4, 8, 8))}, "smooth")
    layers = survey(model, data.read(np.arange(2)))
    chosen = {"first": (FORMS["channel"], (2,))}
    alone, _ = refit(model, layers[:1], data, chosen)
    chosen["w1"] = (FORMS["channel"], (8,))
    both, _ = refit(model, layers, data, chosen)
    once, twice = (
        error(model, rewritten(model, layers[:n], chains), data)
        for n, chains in ((1, alone), (2, both))
    )
    assert twice < once


def test_layers_that_are_not_chosen_are_left_alone():
    model, layers, data = setting("residual")
    chosen = {layers[1].name: choose(layers, 0.4)[layers[1].name]}
    chains, errors = refit(model, layers, data, chosen)
    assert list(chains) == list(errors) == [layers[1].name]


def test_the_same_seed_gives_the_same_bytes():
    model, layers, data = setting("pooled")
    chosen = choose(layers, 0.4)
    (one, _), (two, _) = (refit(model, layers, data, chosen, seed=1) for _ in range(2))
    assert bytes_of(one) == bytes_of(two)


def test_what_was_solved_before_comes_from_the_cache(tmp_path):
    model, layers, data = setting("residual")
    chosen = choose(layers, 0.4)
    first, second, alone = (
        refit(model, layers, data, chosen, cache=folder) for folder in (tmp_path, tmp_path, None)
    )
    assert bytes_of(first[0]) == bytes_of(second[0]) == bytes_of(alone[0])
    assert first[1] == second[1] == alone[1]
    entries = set(tmp_path.rglob("*.npz"))
    assert len(entries) == len(chosen)
    last = layers[-1].name
    other = chosen | {last: (FORMS["channel"], choose(layers, 0.8)[last][1])}
    kept, fresh = (refit(model, layers, data, other, cache=folder) for folder in (tmp_path, None))
    assert len(set(tmp_path.rglob("*.npz")) - entries) == 1
    assert bytes_of(kept[0]) == bytes_of(fresh[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"memory_bytes": 2.0**24},
        {"solver": "tensorly"},
        {"data": "other"},
        {"network": "other"},
    ],
)
def test_what_a_correction_depends_on_makes_other_entries(changed, tmp_path):
    model, layers, data = setting("residual")
    chosen = choose(layers, 0.4)
    refit(model, layers, data, chosen, cache=tmp_path)
    count = len(list(tmp_path.rglob("*.npz")))
    if changed.pop("data", None):
        data = data.take(np.arange(data.count - 1))
    if changed.pop("network", None):
        model, layers, _ = setting("residual", w1=WEIGHTS["w1"] * 2)
    refit(model, layers, data, chosen, cache=tmp_path, **changed)
    assert len(list(tmp_path.rglob("*.npz"))) == 2 * count


@pytest.mark.parametrize("name", ["residual", "grouped", "transposed", "linear"])
def test_with_little_memory_layers_are_solved_under_factors(name):
    model, layers, data = setting(name)
    assert not any(fits_in_memory(patch_size(layer.conv), 5000.0 / 2) for layer in layers)
    chains, errors = refit(model, layers, data, choose(layers, 0.5), memory_bytes=5000.0)
    assert max(errors.values()) < 1
    assert error(model, rewritten(model, layers, chains), data) < 1
    chains, _ = refit(model, layers, data, choose(layers, 1), memory_bytes=2000.0)
    assert error(model, rewritten(model, layers, chains), data) < 0.02


@pytest.mark.parametrize("kind", ["Conv <pads = [1, 1, 1, 1]>", "ConvTranspose"])
def test_a_bias_in_an_addition_is_refitted_around(kind):
    text = f"""g (float[N, 4, 8, 8] x) => (float[N, 8, P, Q] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (a)
        c = {kind} (r, v)
        d = Add (c, k)
        y = Relu (d)
    }}"""
    proto = from_text(text, w=noise(8, 4, 3, 3), v=noise(8, 8, 3, 3, seed=1))
    bias = onnx.numpy_helper.from_array(noise(1, 8, 1, 1), "k")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["k"], value=bias))
    model, x = ir.from_proto(proto), noise(40, 4, 8, 8)
    layers = survey(model, {"x": x[:2]})
    chosen = {layer.name: (FORMS["channel"], (4,)) for layer in layers}
    data = from_arrays({"x": x}, "noise")
    result = refit_layers(model, layers, chosen, data)
    assert set(result.chains) == {"w", "v"}
    assert all(0 < error < 1 for error in result.errors.values())
