"""Second moments of input patches: of the patches cut, in one pass, within memory."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from conv_cases import FEW, compute, convolutions, difference, make_conv
from hypothesis import given
from hypothesis import strategies as st
from networks import from_text, make_net, noise

from converter.data.data import from_arrays
from converter.decomposition.conv import Conv
from converter.decomposition.metric import FLOOR
from converter.graph.network import load
from converter.graph.survey import survey
from converter.processes import Resources
from converter.reconstruction.moments import (
    MIN_PATCHES,
    fits_in_memory,
    metric_from_patches,
    patch_count,
    patch_size,
    second_moments,
)
from converter.reconstruction.positions import Positions, choose_positions, cut_patches


def unit_filters(conv):
    """The convolution whose filters each pick one entry of the patch: what ``conv`` sees."""
    n = patch_size(conv)
    taps = np.eye(n).reshape(n, *conv.kernel.shape[1:])
    kernel = np.tile(taps, (conv.groups, *[1] * (taps.ndim - 1)))
    return replace(conv, kernel=kernel, bias=None)


def everywhere(conv, shape):
    """Every position of every image."""
    places = np.indices((shape[0], *conv.output_size(shape[2:])))
    images, *outputs = (place.ravel() for place in places)
    return Positions(images, tuple(outputs))


def as_float64(conv):
    return replace(conv, kernel=conv.kernel.astype(np.float64), bias=None)


@st.composite
def plain_or_transposed(draw):
    """Convolutions over 1, 2 or 3 axes of any stride, padding, dilation and groups."""
    conv = draw(st.one_of(*(convolutions(axes=axes) for axes in (1, 2, 3))))
    if not draw(st.booleans()):
        return conv
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.k)]
    padding = tuple((min(a, s), min(b, s)) for (a, b), s in zip(conv.padding, spans))
    return replace(conv, transposed=True, padding=padding)


def image(conv, seed=0, batch=2):
    sizes = [d * (k - 1) + 4 for d, k in zip(conv.dilation, conv.k)]
    return np.random.default_rng(seed).standard_normal((batch, conv.I, *sizes)).astype(np.float32)


@FEW
@given(conv=plain_or_transposed())
def test_patches_are_what_filters_of_one_tap_give(conv):
    x = image(conv)
    at = everywhere(conv, x.shape)
    wanted = at.read(compute([unit_filters(conv)], x.astype(np.float64)))  # (P, groups n)
    found = np.concatenate(list(cut_patches(x, conv, at)), axis=1)
    assert np.array_equal(found, wanted.astype(np.float32))


@FEW
@given(conv=plain_or_transposed())
def test_the_metric_of_all_patches_weighs_a_kernel_by_its_responses(conv):
    x = image(conv)
    at = everywhere(conv, x.shape)
    responses = at.read(compute([as_float64(conv)], x.astype(np.float64)))
    parts = zip(
        cut_patches(x, conv, at),
        np.split(conv.kernel, conv.groups),
        np.split(responses, conv.groups, axis=1),
    )
    for patches, kernel, given_back in parts:
        metric = metric_from_patches(patches, conv.I // conv.groups, True, 0.0)
        power = np.square(given_back).sum(1).mean()
        assert metric.square(kernel) == pytest.approx(power, rel=1e-4, abs=1e-9)


@FEW
@given(conv=plain_or_transposed())
def test_the_kronecker_form_has_the_marginals_of_the_full_one(conv):
    x = image(conv)
    for patches in cut_patches(x, conv, everywhere(conv, x.shape)):
        full, factors = (
            metric_from_patches(patches, conv.I // conv.groups, f, 0.0) for f in (True, False)
        )
        if np.trace(full.full) == 0:
            continue
        assert factors.full is None
        assert difference(factors.channels, full.channels) < 1e-4
        assert difference(factors.window, full.window) < 1e-4


def test_windows_are_whole_and_in_order():
    conv = make_conv((2, 3, 3, 3), padding=((1, 1), (1, 1)))
    at = choose_positions(conv, (4, 3, 8, 6), 50, np.random.default_rng(0), (2, 3))
    assert len(at.images) == 54
    images = at.images.reshape(-1, 6)
    assert (images == images[:, :1]).all()
    row, column = (place.reshape(-1, 2, 3) for place in at.outputs)
    assert (row[:, 0] % 2 == 0).all() and (column[..., 0] % 3 == 0).all()
    assert (row == row[:, :1, :1] + np.arange(2)[:, None]).all()
    assert (column == column[:, :1, :1] + np.arange(3)).all()


def test_a_window_that_does_not_divide_stays_inside():
    conv = make_conv((2, 3, 3), padding=((1, 1),))
    at = choose_positions(conv, (4, 3, 9), 400, np.random.default_rng(0), (2,))
    assert set(at.outputs[0]) == set(range(8))


NETWORK = """g (float[N, 4, 12] x) => (float[N, 6, P] y, float[N, M, 4] z) {
    a = Conv <strides = [2], pads = [2, 1], dilations = [2]> (x, plain)
    y = ConvTranspose <strides = [2], group = 2> (a, up)
    t = Transpose <perm = [0, 2, 1]> (a)
    z = MatMul (t, linear)
}"""


def surveyed(count=64, **sizes):
    weights = {
        "plain": noise(6, 4, 3),
        "up": noise(6, 3, 4, seed=1),
        "linear": noise(6, 4, seed=2),
    }
    model = ir.from_proto(from_text(NETWORK, **weights))
    data = from_arrays({"x": noise(count, 4, 12).cumsum(1) + 1}, "noise")
    layers = survey(model, data.read(np.arange(1)))
    assert [layer.reason for layer in layers] == [None] * 3
    return model, layers, data


def brute_force(layer, inputs):
    """E[x x^T] over every patch of every input, group by group."""
    conv = layer.conv
    if not conv.k:
        rows = inputs.reshape(-1, conv.I).astype(np.float64)
        return [rows.T @ rows / len(rows)]
    every = compute([unit_filters(conv)], inputs.astype(np.float64))
    columns = np.moveaxis(every, 1, -1).reshape(-1, conv.groups, patch_size(conv))
    return [rows.T @ rows / len(rows) for rows in columns.swapaxes(0, 1)]


def test_moments_come_near_those_of_every_patch():
    model, layers, data = surveyed()
    found = second_moments(model, layers, data)
    x = data.read(np.arange(64))["x"]
    seen = {"x": x, "a": compute([as_float64(layers[0].conv)], x.astype(np.float64))}
    seen["t"] = seen["a"].swapaxes(1, 2)
    assert {name: len(groups) for name, groups in found.items()} == {
        "plain": 1,
        "up": 2,
        "linear": 1,
    }
    for layer in layers:
        for metric, wanted in zip(found[layer.name], brute_force(layer, seen[layer.source])):
            assert difference(metric.dense(), wanted) < 0.03


def test_the_data_is_read_once_for_all_layers():
    model, layers, data = surveyed(count=150)
    read = []

    def note(indices):
        read.extend(indices.tolist())
        return data.read(indices)

    second_moments(model, layers, replace(data, read=note))
    assert sorted(read) == sorted([0, *range(150)])  # the first tells how large a batch may be


def test_moments_are_seeded():
    model, layers, data = surveyed(count=600)
    first, again, other = (
        second_moments(model, layers, data, Resources(seed=s)) for s in (1, 1, 2)
    )
    for name in first:
        for one, two, three in zip(first[name], again[name], other[name]):
            assert one.full.tobytes() == two.full.tobytes()
            assert one.full.tobytes() != three.full.tobytes()


def test_a_batch_size_that_the_network_insists_on_is_kept(tmp_path):
    make_net(tmp_path / "net.onnx", batch=4)
    network = load(tmp_path / "net.onnx")
    x = noise(10, 3, 8, 8)
    x[8:] = np.nan  # of the last batch, which is incomplete
    data = from_arrays({"x": x}, "noise")
    layers = [layer for layer in survey(network, data.read(np.arange(4))) if layer.conv]
    found = second_moments(network, layers, data)
    assert all(np.isfinite(m.dense()).all() for groups in found.values() for m in groups)


EVERY = {"plain", "up", "linear"}


@pytest.mark.parametrize(
    ("memory", "full", "kept"),
    [
        (4 * 8 * 12**2, EVERY, EVERY),
        (4 * 8 * 12**2 - 1, {"linear"}, EVERY),
        (4 * 8 * 6**2 - 1, set(), {"plain", "up"}),  # linear has 6 channels
        (100, set(), set()),
    ],
)
def test_the_widest_layers_get_factors_or_nothing_where_memory_is_short(memory, full, kept):
    model, layers, data = surveyed()
    assert [patch_size(layer.conv) for layer in layers] == [12, 12, 6]
    found = second_moments(model, layers, data, Resources(memory_bytes=memory))
    assert {name for name, groups in found.items() if groups[0].full is not None} == full
    assert set(found) == kept
    for groups in found.values():
        for metric in groups:
            np.linalg.cholesky(metric.dense())


def test_the_moments_of_all_layers_share_the_memory(tmp_path):
    make_net(tmp_path / "net.onnx", channels=(3, *[4] * 8))
    network = load(tmp_path / "net.onnx")
    data = from_arrays({"x": noise(8, 3, 8, 8)}, "noise")
    layers = [layer for layer in survey(network, data.read(np.arange(1))) if layer.conv.k]
    memory = 4 * 8 * 36**2  # room to solve one layer of 36 entries
    found = second_moments(network, layers, data, Resources(memory_bytes=memory))
    full = [groups[0].full.nbytes for groups in found.values() if groups[0].full is not None]
    assert full == [8 * 27**2, *[8 * 36**2] * 3]
    assert sum(full) <= memory


@pytest.mark.parametrize("n", [9, 576, 4608, 40_000])
def test_what_patches_and_moments_take_stays_within_memory(n):
    for memory in (2.0**22, 2.0**31):
        few = 4 * n * MIN_PATCHES  # are taken whatever the memory
        assert 4 * n * patch_count(n, memory) <= max(memory / 4, few)
        assert not fits_in_memory(n, memory) or 4 * 8 * n**2 <= memory


@pytest.mark.parametrize("full", [True, False])
def test_inputs_of_no_power_leave_the_frobenius_norm(full):
    metric = metric_from_patches(np.zeros((50, 12), np.float32), 4, full, FLOOR)
    kernel = noise(5, 4, 3)
    ratio = metric.square(kernel) / np.square(kernel).sum()
    other = metric.square(2 * kernel[:, ::-1]) / np.square(2 * kernel).sum()
    assert ratio == pytest.approx(other)
    assert 0 < ratio < np.inf


def test_a_linear_layer_sees_the_rows_of_its_inputs():
    conv = Conv(noise(3, 5), None, (), (), ())
    x = noise(4, 7, 5)
    at = choose_positions(conv, x.shape, 200, np.random.default_rng(0))
    (patches,) = cut_patches(x, conv, at)
    assert np.array_equal(patches, at.read(x))
    assert set(map(bytes, patches)) == set(map(bytes, x.reshape(-1, 5)))
    metric = metric_from_patches(patches, 5, True, 0.0)
    assert difference(metric.dense(), patches.T @ patches / len(patches)) < 1e-5
