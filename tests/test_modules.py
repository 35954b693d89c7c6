"""Convolutions as torch modules, and torch modules as convolutions."""

import numpy as np
import pytest
import torch
from branches import X, make_branches
from conv_cases import FEW, at_full_rank, compute, convolutions, difference, input_for, make_conv
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from converter.decomposition.conv import PADDING_MODES, Chain
from converter.decomposition.form import skeleton
from converter.decomposition.forms import FORMS
from converter.models import export as torch_export
from converter.models.modules import read_module, replace_module, to_modules


@pytest.fixture(scope="module")
def model():
    return make_branches()


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
