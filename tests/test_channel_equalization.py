"""Channels between two linear steps, scaled alike for int8: outputs stay as they are."""

import numpy as np
import onnx_ir as ir
import pytest
from conv_cases import FEW, difference
from hypothesis import given
from hypothesis import strategies as st
from networks import from_text, noise
from scaled_chain import chain, outputs

from converter.data.data import from_arrays
from converter.quantization.channel_equalization import MAX_SCALE, equalize
from converter.quantization.quantize import observed_ranges, quantized


@FEW
@given(st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(0, 100))
def test_components_are_brought_to_the_same_range_and_nothing_changes(groups, matrix, seed):
    network, data = chain(groups, matrix, seed)
    before = observed_ranges(network, data, 8)
    copy, told = equalize(network, before)
    assert difference(outputs(copy, data), outputs(network, data)) < 1e-5
    seen = observed_ranges(copy, data, 8)
    old, largest = (np.maximum(-ranges["a"][0], ranges["a"][1]) for ranges in (before, seen))
    scaled = old >= old.max() / MAX_SCALE  # by no more than that
    assert np.allclose(largest[scaled], old.max(), rtol=1e-3)
    for name, (low, high) in seen.items():
        assert np.allclose(told[name][0], low, rtol=1e-3, atol=1e-5)
        assert np.allclose(told[name][1], high, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_an_equalized_chain_errs_less_in_int8(seed):
    network, data = chain(groups=8, seed=seed)
    wanted, ranges = outputs(network, data), observed_ranges(network, data, 32)
    plain = difference(outputs(quantized(network, ranges), data), wanted)
    equalized = difference(outputs(quantized(*equalize(network, ranges)), data), wanted)
    assert equalized < min(0.03, plain / 3)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kinds", ["tc", "ct", "tt"])
def test_components_of_transposed_convolutions_are_equalized_too(groups, kinds):
    rng = np.random.default_rng(groups)
    sizes = 10.0 ** rng.uniform(-1.5, 1.5, 8)
    first, second = ("ConvTranspose" if kind == "t" else "Conv" for kind in kinds)
    w = rng.standard_normal((8, 8 // groups, 3, 3))
    along = np.repeat(sizes.reshape(groups, -1), 8 // groups, axis=0)[..., None, None]
    w *= along if first == "ConvTranspose" else sizes[:, None, None, None]
    v = rng.standard_normal((8, 8, 1, 1))
    v /= sizes[:, None, None, None] if second == "ConvTranspose" else sizes[None, :, None, None]
    text = f"""net (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {{
        a = {first} <group = {groups}, pads = [1, 1, 1, 1]> (x, w)
        y = {second} (a, v) }}"""
    model = from_text(text, w=w.astype(np.float32), v=v.astype(np.float32))
    network, data = ir.from_proto(model), from_arrays({"x": noise(32, 8, 6, 6)}, "noise")
    ranges, wanted = observed_ranges(network, data, 8), outputs(network, data)
    copy, told = equalize(network, ranges)
    assert difference(outputs(copy, data), wanted) < 1e-5
    largest = np.maximum(-told["a"][0], told["a"][1])
    assert np.allclose(largest, largest[0], rtol=1e-3)
    assert difference(outputs(quantized(copy, told), data), wanted) < 0.05


UNEVEN = {
    "a relu between": "a = Conv (x, w) r = Relu (a) y = Conv (r, v)",
    "products over more axes": "a = MatMul (x, m) y = MatMul (a, n)",
    "another use": "a = Conv (x, w) b = Conv (a, v) s = Conv (a, v) y = Add (b, s)",
    "shared weights": "a = Conv (x, w) b = Conv (a, v) y = Conv (b, v)",
}


@pytest.mark.parametrize("body", UNEVEN.values(), ids=UNEVEN)
def test_what_is_not_free_is_left_alone(body):
    text = f"net (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {{ {body} }}"
    weights = {name: noise(8, 8, 1, 1, seed=n) for n, name in enumerate("wv")}
    weights |= {name: noise(6, 6, seed=n) for n, name in enumerate("mn")}
    network = ir.from_proto(from_text(text, **weights))
    data = from_arrays({"x": noise(8, 8, 6, 6)}, "noise")
    copy, _ = equalize(network, observed_ranges(network, data, 8))
    for name, weight in weights.items():
        assert np.array_equal(copy.graph.initializers[name].const_value.numpy(), weight)


CROSSED = {
    "a product of rows of pictures": "a = Conv (x, w) y = MatMul (a, m)",
    "a convolution of products": "a = MatMul (x, m) y = Conv (a, w)",
}


@pytest.mark.parametrize("body", CROSSED.values(), ids=CROSSED)
def test_steps_whose_components_lie_along_other_axes_are_not_scaled(body):
    text = f"net (float[N, 6, 6, 6] x) => (float[N, 6, 6, 6] y) {{ {body} }}"
    weights = {"w": noise(6, 6, 1, 1), "m": noise(6, 6, seed=1)}
    network = ir.from_proto(from_text(text, **weights))
    data = from_arrays({"x": noise(8, 6, 6, 6, seed=2)}, "noise")
    copy, _ = equalize(network, observed_ranges(network, data, 8))
    assert difference(outputs(copy, data), outputs(network, data)) == 0
