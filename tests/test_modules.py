"""Convolutions as torch modules, and torch modules as convolutions."""

import numpy as np
import pytest
import torch
from helpers import (
    FEW,
    at_full_rank,
    compute,
    convolutions,
    difference,
    input_for,
    make_conv,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from converter.decomposition.conv import PADDING_MODES, Chain
from converter.decomposition.form import skeleton
from converter.decomposition.forms import FORMS
from converter.models import export as torch_export
from converter.models.modules import read_module, replace_module, to_modules


class Branches(nn.Module):
    """Every geometry and padding mode once, each with an output of its own."""

    def __init__(self):
        """Make the branches."""
        super().__init__()
        self.branches = nn.ModuleDict(
            {
                "plain": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)),
                "valid": nn.Sequential(nn.Conv2d(4, 6, (2, 3), padding="valid", bias=False)),
                "strided": nn.Sequential(nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2))),
                "dilated": nn.Sequential(nn.Conv2d(4, 6, 3, dilation=(2, 1), padding=2)),
                "grouped": nn.Sequential(nn.Conv2d(4, 6, (3, 2), padding=1, groups=2)),
                "reflect": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
                "replicate": nn.Sequential(
                    nn.Conv2d(4, 6, (3, 5), padding=(1, 2), padding_mode="replicate")
                ),
                "circular": nn.Sequential(
                    nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="circular")
                ),
                "same": nn.Sequential(nn.Conv2d(4, 6, (4, 2), padding="same")),
                "same_circular": nn.Sequential(
                    nn.Conv2d(4, 6, (2, 4), padding="same", padding_mode="circular")
                ),
                "normed": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)),
                "dead": nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
            }
        )

    def forward(self, x):
        """Run every branch on ``x``."""
        return {name: branch(x) for name, branch in self.branches.items()}


X = np.random.default_rng(0).standard_normal((3, 4, 9, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    """``Branches`` in training mode, its norms unlike the identity, one scale zero."""
    torch.manual_seed(0)
    made = Branches()
    with torch.no_grad():
        for name in ("normed", "dead"):
            norm = made.branches[name][1]
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.copy_(torch.randn(6))
            norm.running_var.copy_(torch.rand(6) + 0.5)
        made.branches["dead"][1].weight[2] = 0
    return made.train()


def torch_outputs(model, x=X):
    with torch.no_grad():
        return [t.numpy() for t in torch_export.flat_outputs(model(torch.from_numpy(x)))]


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_chain_as_modules_computes_what_the_convolution_does(mode, axes, symmetric):
    pads = ((1, 1), (2, 2), (0, 0)) if symmetric else ((1, 2), (1, 1), (0, 2))
    conv = make_conv(
        (6, 3, *(3, 4, 2)[:axes]),
        groups=2,
        stride=(2, 1, 1)[:axes],
        padding=pads[:axes],
        dilation=(1, 2, 1)[:axes],
        padding_mode=mode,
    )
    x = input_for(conv)
    chain = at_full_rank(conv, "flattened")
    assert difference(torch_outputs(to_modules(chain), x)[0], compute([conv], x)) < 1e-5


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_a_pad_stands_only_where_a_convolution_has_none(mode):
    even = make_conv((6, 4, 3, 3), padding=((1, 1), (2, 2)), padding_mode=mode)
    uneven = make_conv((6, 4, 3, 3), padding=((1, 1), (2, 1)), padding_mode=mode)
    assert [type(module) for module in to_modules(Chain((even,)))] == [nn.Conv2d]
    pad, conv = to_modules(Chain((uneven,)))
    assert pad.padding == (2, 1, 1, 1)
    assert (conv.padding, conv.padding_mode) == ((0, 0), "zeros")


@FEW
@given(conv=convolutions() | convolutions(axes=1) | convolutions(axes=3))
def test_a_module_read_back_is_the_convolution_it_was_made_of(conv):
    modules = to_modules(Chain((conv,)))
    found = read_module(modules[-1])
    assert found.kernel.tobytes() == conv.kernel.tobytes()
    assert (found.bias is None) == (conv.bias is None)
    assert (found.stride, found.dilation, found.groups) == (conv.stride, conv.dilation, conv.groups)
    x = input_for(conv)
    assert difference(torch_outputs(modules, x)[0], compute([conv], x)) < 1e-5


@FEW
@given(
    k=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    mode=st.sampled_from(PADDING_MODES),
    padding=st.sampled_from(["same", "valid", 1, (2, 0)]),
)
def test_paddings_by_name_or_number_are_read_as_torch_means_them(k, dilation, mode, padding):
    module = nn.Conv2d(4, 6, k, dilation=dilation, padding=padding, padding_mode=mode)
    x = np.random.default_rng(0).standard_normal((2, 4, 11, 12)).astype(np.float32)
    assert difference(compute([read_module(module)], x), torch_outputs(module, x)[0]) < 1e-5


def test_reading_a_module_copies_its_weights():
    module = nn.Conv2d(4, 6, 3)
    conv = read_module(module)
    before = conv.kernel.copy()
    with torch.no_grad():
        module.weight.zero_()
    assert conv.kernel.tobytes() == before.tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_modules_keep_the_type_of_the_weights(dtype):
    module = nn.Conv2d(4, 6, 3).to(dtype)
    conv = read_module(module)
    assert conv.kernel.dtype.name == str(dtype).removeprefix("torch.")
    (again,) = to_modules(Chain((conv,)))
    assert again.weight.dtype == again.bias.dtype == dtype
    assert torch.equal(again.weight, module.weight)
    assert torch.equal(again.bias, module.bias)


@pytest.mark.parametrize("training", [True, False])
def test_a_replacement_takes_the_mode_of_what_it_replaces(training):
    root = nn.Sequential(nn.Conv2d(4, 6, 3)).train(training)
    bones = skeleton(read_module(root[0]), FORMS["channel"], (2,))
    replace_module(root, "0", bones, root[0])
    assert {module.training for module in root[0].modules()} == {training}
