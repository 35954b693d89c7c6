"""Transposed convolutions: chains that compute the same, their costs, patches and refits."""

import math

import numpy as np
import pytest
from conv_cases import (
    EXACT_FORMS,
    FEW,
    SOME,
    SPLITTING_FORMS,
    at_full_rank,
    compute,
    difference,
    drawn_chain,
    make_conv,
    small_input,
    transposed,
)
from hypothesis import given
from hypothesis import strategies as st
from networks import noise

from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, assemble
from converter.decomposition.decompose import decompose
from converter.decomposition.form import fit_rank, refusal
from converter.decomposition.forms import FORMS
from converter.decomposition.metric import Metric
from converter.decomposition.refit import refit
from converter.decomposition.taps import swap_in_out
from converter.errors import ConverterError
from converter.reconstruction.moments import choose_positions, cut_patches


@FEW
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    groups=st.integers(1, 3),
)
def test_turning_a_kernel_twice_gives_it_back(shape, groups):
    kernel = noise(groups * shape[0], *shape[1:])
    again = swap_in_out(swap_in_out(kernel, groups), groups)
    assert again.tobytes() == kernel.tobytes()
    assert swap_in_out(kernel, groups).shape == (groups * shape[1], shape[0], shape[2])


@SOME
@given(conv=transposed())
def test_sizes_and_costs_are_those_of_the_computation(conv):
    x = small_input(conv)
    assert conv.output_size(x.shape[2:]) == compute([conv], x).shape[2:]
    assert conv.macs(x.shape[2:]) == conv.kernel.size * np.prod(x.shape[2:])


@pytest.mark.parametrize("name", EXACT_FORMS)
@FEW
@given(conv=transposed(smallest=2), data=st.data())
def test_full_rank_reproduces_kernel_and_response(name, conv, data):
    if refusal(FORMS[name], conv):  # spatial over one axis
        with pytest.raises(ConverterError):
            at_full_rank(conv, name)
        return
    chain = at_full_rank(conv, name)
    x = small_input(conv)
    assert relative_error(conv, chain) < 1e-5
    found = compute(chain.steps, x)
    assert difference(found, compute([conv], x)) < 1e-5
    size = x.shape[2:]
    for step in chain.steps:
        size = step.output_size(size)
    assert size == found.shape[2:]


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@FEW
@given(conv=transposed(smallest=2))
def test_the_dense_kernel_is_what_the_steps_compute(name, conv):
    name = "channel" if refusal(FORMS[name], conv) else name
    chain = drawn_chain(conv, name, 0.5)
    dense, x = chain.dense(), small_input(conv)
    assert difference(compute([dense], x), compute(chain.steps, x)) < 1e-5
    for field in ("stride", "padding", "k", "O", "I", "groups"):
        assert getattr(dense, field) == getattr(conv, field)


def test_two_transposed_steps_that_both_stride_are_composed():
    first = make_conv(
        (3, 2, 3, 2),
        bias=False,
        stride=(2, 1),
        dilation=(1, 3),
        transposed=True,
        output_padding=(1, 0),
    )
    second = make_conv(
        (4, 3, 2, 3), seed=1, stride=(3, 2), dilation=(2, 1), transposed=True, output_padding=(0, 1)
    )
    chain, x = Chain((first, second)), noise(2, 2, 4, 5).astype(np.float64)
    assert difference(compute([chain.dense()], x), compute(chain.steps, x)) < 1e-5


def test_pointwise_steps_are_plain():
    conv = make_conv(
        (8, 4, 4, 4),
        stride=(2, 2),
        padding=((1, 1), (1, 1)),
        transposed=True,
        output_padding=(1, 0),
    )
    steps = decompose(conv, FORMS["flattened"], (6,)).steps
    assert [step.transposed for step in steps] == [False, True, True, False]
    assert [step.stride for step in steps] == [(1, 1), (2, 1), (1, 2), (1, 1)]
    assert [tuple(step.output_padding) for step in steps] == [(), (1, 0), (0, 0), ()]
    assert steps[1].padding == ((1, 1), (0, 0))


def test_a_pointwise_kernel_that_strides_stays_transposed():
    conv = make_conv((6, 4, 1, 1), stride=(2, 3), transposed=True)
    chain = at_full_rank(conv, "channel")
    assert [step.transposed for step in chain.steps] == [True, False]
    x = small_input(conv)
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5


def test_a_plain_window_beside_a_transposed_one_is_refused():
    up = make_conv((4, 4, 3, 3), bias=False, transposed=True)
    with pytest.raises(ConverterError, match="Beside a transposed step the others are pointwise"):
        Chain((up, make_conv((4, 4, 3, 3))))
    with pytest.raises(ConverterError, match="Beside a transposed step the others are pointwise"):
        Chain((make_conv((4, 4, 1, 1), bias=False, stride=(2, 1)), up))


def test_a_transposed_convolution_has_no_padding_mode():
    with pytest.raises(ConverterError, match="it has no mode"):
        make_conv((4, 4, 3, 3), transposed=True, padding_mode="circular")


@pytest.mark.parametrize("name", ["flattened", "tucker", "decoupled"])
def test_a_depthwise_transposed_convolution_is_refused(name):
    conv = make_conv((4, 1, 3, 3), groups=4, transposed=True)
    with pytest.raises(ConverterError, match="depthwise"):
        decompose(conv, FORMS[name], (1,))


def test_a_depthwise_transposed_convolution_is_split():
    conv = make_conv((4, 1, 3, 3), groups=4, stride=(2, 2), transposed=True)
    chain, x = at_full_rank(conv, "spatial"), small_input(conv)
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5
    assert assemble(conv, [(s.kernel, s.groups) for s in chain.steps]).dense().groups == 4


@SOME
@given(conv=transposed(), seed=st.integers(0, 9))
def test_patches_give_the_responses(conv, seed):
    x = small_input(conv).astype(np.float32)
    at = choose_positions(conv, x.shape, 20, np.random.default_rng(seed))
    patches = cut_patches(x, conv, at)
    there = len(x) * math.prod(conv.output_size(x.shape[2:]))
    assert patches.shape == (conv.groups, min(20, there), conv.kernel[0].size)
    O = conv.O // conv.groups
    found = patches @ conv.kernel.reshape(conv.groups, O, -1).swapaxes(1, 2)  # (g, P, O/g)
    wanted = at.read(compute([Chain((conv,)).with_bias(None).steps[0]], x.astype(np.float64)))
    assert np.abs(np.concatenate(list(found), axis=1) - wanted).max() < 1e-3


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_last_step_is_solved_again(name, groups):
    conv = make_conv(
        (8, 8 // groups, 4, 3),
        groups=groups,
        stride=(2, 2),
        padding=((1, 1), (1, 0)),
        transposed=True,
    )
    inputs = noise(9, 8, 7, 6).cumsum(1)
    at = choose_positions(conv, inputs.shape, 800, np.random.default_rng(0))
    metrics = [
        Metric.of(part.T @ part / 800, conv.I // groups)
        for part in cut_patches(inputs, conv, at).astype(np.float64)
    ]
    chain = decompose(conv, FORMS[name], fit_rank((4, 4), FORMS[name], conv))
    before = relative_error(conv, chain, metrics)
    assert relative_error(conv, refit(conv, chain, metrics), metrics) < 0.995 * before
