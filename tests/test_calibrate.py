"""Second moments of what a layer sees, and the last step of a chain solved under them."""

import numpy as np
import pytest
import torch
from conftest import make_net, noise

from converter.data import from_arrays
from converter.kernels.conv import Conv
from converter.kernels.form import decompose, full_rank, refit, relative_error
from converter.kernels.forms import FORMS
from converter.networks.onnx_network import load
from converter.networks.survey import survey
from converter.planning import calibrate
from converter.planning.calibrate import sample_patches, second_moments


def make_conv(groups=1, stride=(2, 1), padding=((1, 0), (1, 2)), dilation=(1, 2)):
    rng = np.random.default_rng(groups)
    kernel = rng.normal(size=(8, 8 // groups, 3, 3)).astype(np.float32)
    return Conv(
        kernel, rng.normal(size=8).astype(np.float32), stride, padding, dilation, "zeros", groups
    )


def moments_of(conv, seed=0):
    rng = np.random.default_rng(seed)
    n = conv.kernel[0].size
    root = rng.normal(size=(conv.groups, n, n)) * np.linspace(0.1, 3, n)
    return root.transpose(0, 2, 1) @ root / n


def half_rank(form, conv):
    if form.per_channel:
        return (1,)
    unit = conv.groups
    return tuple(max(r // 2 // unit, 1) * unit for r in full_rank(form, conv))


@pytest.mark.parametrize("groups", [1, 2])
def test_patches_are_those_of_the_convolution(groups):
    conv = make_conv(groups)
    inputs = noise(3, 8, 9, 7)
    found = sample_patches(inputs, conv, 40, np.random.default_rng(0))
    (top, bottom), (left, right) = conv.padding
    padded = torch.nn.functional.pad(torch.from_numpy(inputs), (left, right, top, bottom))
    columns = torch.nn.functional.unfold(padded, (3, 3), conv.dilation, 0, conv.stride)
    every = columns.permute(0, 2, 1).reshape(-1, groups, 72 // groups).numpy()
    for group in range(groups):
        nearest = np.abs(found[group][:, None] - every[None, :, group]).max(-1).min(1)
        assert nearest.max() < 1e-6


def test_moments_converge_to_those_of_all_patches(tmp_path, monkeypatch):
    make_net(tmp_path / "net.onnx")
    network = load(tmp_path / "net.onnx")
    data = from_arrays({"x": noise(32, 3, 8, 8)}, "noise")
    layer = survey(network, data.read(np.arange(1)))[0]
    monkeypatch.setattr(calibrate, "FEWEST_PATCHES", 60_000)
    found = second_moments(network, layer, data, None, 0)
    conv = layer.conv
    pads = [p for pair in reversed(conv.padding) for p in pair]
    padded = torch.nn.functional.pad(torch.from_numpy(data.read(np.arange(32))["x"]), pads)
    columns = torch.nn.functional.unfold(padded, conv.k, 1, 0, conv.stride)
    every = columns.permute(0, 2, 1).reshape(-1, columns.shape[1]).double().numpy()
    expected = every.T @ every / len(every)
    assert np.linalg.norm(found[0] - expected) < 0.05 * np.linalg.norm(expected)


def test_moments_are_seeded(tmp_path):
    make_net(tmp_path / "net.onnx")
    network = load(tmp_path / "net.onnx")
    data = from_arrays({"x": noise(8, 3, 8, 8)}, "noise")
    layer = survey(network, data.read(np.arange(1)))[0]
    first, again, other = (second_moments(network, layer, data, None, s) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_filters_too_wide_for_their_moments_are_left_out(tmp_path, monkeypatch):
    make_net(tmp_path / "net.onnx")
    network = load(tmp_path / "net.onnx")
    data = from_arrays({"x": noise(8, 3, 8, 8)}, "noise")
    layer = survey(network, data.read(np.arange(1)))[0]
    monkeypatch.setattr(calibrate, "LARGEST", 8)
    assert second_moments(network, layer, data, None, 0) is None


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", FORMS)
def test_solving_the_last_step_never_raises_the_error(name, groups):
    conv, form = make_conv(groups), FORMS[name]
    moments = moments_of(conv)
    chain = decompose(conv, form, half_rank(form, conv))
    fitted = refit(conv, chain, moments)
    before, after = (relative_error(conv, c, moments) for c in (chain, fitted))
    assert after < 0.999 * before
    assert [s.kernel.shape for s in fitted.steps] == [s.kernel.shape for s in chain.steps]
    assert np.array_equal(fitted.steps[-1].bias, conv.bias)


def test_the_last_step_is_where_the_gradient_vanishes():
    conv, form = make_conv(), FORMS["spatial"]
    moments = moments_of(conv)
    fitted = refit(conv, decompose(conv, form, (6,)), moments)
    best = relative_error(conv, fitted, moments)
    rng = np.random.default_rng(0)
    for _ in range(20):
        *head, last = fitted.steps
        moved = last.kernel + 0.01 * rng.normal(size=last.kernel.shape).astype(np.float32)
        shaken = type(fitted)(
            (*head, Conv(moved, last.bias, last.stride, last.padding, last.dilation))
        )
        assert relative_error(conv, shaken, moments) > best


@pytest.mark.parametrize("name", FORMS)
def test_an_exact_chain_stays_exact(name):
    conv, form = make_conv(), FORMS[name]
    if name == "lvh":
        lateral, vertical, horizontal = noise(8, 8), noise(8, 3, seed=1), noise(8, 3, seed=2)
        kernel = np.einsum("oi,oh,ow->oihw", lateral, vertical, horizontal)
        conv = Conv(kernel, conv.bias, conv.stride, conv.padding, conv.dilation)
    moments = moments_of(conv)
    fitted = refit(conv, decompose(conv, form, full_rank(form, conv)), moments)
    assert relative_error(conv, fitted, moments) < 1e-5
    assert relative_error(conv, fitted) < 1e-5


def test_moments_of_no_power_change_nothing():
    conv, form = make_conv(), FORMS["channel"]
    chain = decompose(conv, form, (4,))
    fitted = refit(conv, chain, np.zeros((1, 72, 72)))
    assert np.allclose(fitted.steps[-1].kernel, chain.steps[-1].kernel, atol=1e-7)
