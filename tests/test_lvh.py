"""The forms of the paper's networks: three filters per output, once and twice in a row."""

from dataclasses import replace

import numpy as np
import pytest
from conv_cases import (
    FEW,
    ONE_STEP,
    compute,
    convolutions_for,
    difference,
    input_for,
    make_conv,
    some_rank,
)
from hypothesis import given
from hypothesis import strategies as st

from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_lvh_gives_back_a_layer_made_of_three_filters_per_output(groups, stride):
    spatial = {"groups": 6, "bias": False}
    lateral = make_conv((6, 4 // groups, 1, 1), seed=1, groups=groups, bias=False)
    vertical = make_conv(
        (6, 1, 3, 1), 2, stride=(stride[0], 1), padding=((1, 1), (0, 0)), **spatial
    )
    horizontal = make_conv((6, 1, 1, 5), 3, groups=6, padding=((0, 0), (2, 1)))
    made = Chain((lateral, vertical, horizontal))
    conv = made.dense()
    found = decompose(conv, FORMS["lvh"], (1,))
    assert [step.kernel.shape for step in found.steps] == [s.kernel.shape for s in made.steps]
    assert [step.bias is None for step in found.steps] == [True, True, False]
    assert relative_error(conv, found) < 1e-5
    x = input_for(conv)
    assert difference(compute(found.steps, x), compute(made.steps, x)) < 1e-5


def test_lvh_leaves_an_error_on_a_filter_of_higher_rank():
    conv = make_conv((4, 4, 3, 3))
    assert 0.1 < relative_error(conv, decompose(conv, FORMS["lvh"], (1,))) < 1


def test_no_filter_of_lvh_is_better_by_another_start():
    conv = make_conv((8, 5, 3, 3), seed=5)
    dense = decompose(conv, FORMS["lvh"], (1,)).dense().kernel
    for wanted, found in zip(conv.kernel, dense):
        alone = Conv(wanted[None], None, conv.stride, conv.padding, conv.dilation)
        rival = decompose(alone, FORMS["flattened"], (1,)).dense().kernel[0]
        assert np.linalg.norm(wanted - found) < 1.02 * np.linalg.norm(wanted - rival)


def test_two_stages_pad_first_and_stride_last():
    conv = make_conv(
        (8, 4, 3, 5), stride=(2, 3), padding=((1, 0), (2, 1)), dilation=(3, 2), groups=2
    )
    steps = decompose(conv, FORMS["lvh2"], (8,), ONE_STEP).steps
    assert [step.k for step in steps] == [(1, 1), (2, 1), (1, 3), (1, 1), (2, 1), (1, 3)]
    assert [step.groups for step in steps] == [2, 8, 8, 2, 8, 8]
    assert [step.stride for step in steps] == [(1, 1)] * 4 + [(2, 1), (1, 3)]
    assert [step.padding[0] for step in steps] == [(0, 0), (1, 0)] + [(0, 0)] * 4
    assert [step.padding[1] for step in steps] == [(0, 0)] * 2 + [(2, 1)] + [(0, 0)] * 3
    assert [step.dilation for step in steps] == [(1, 1), (3, 1), (1, 2)] * 2


@FEW
@given(data=st.data())
def test_two_stages_compute_their_dense_kernel(data):
    conv = data.draw(convolutions_for("lvh2"))
    chain = decompose(conv, FORMS["lvh2"], some_rank(data.draw, conv, FORMS["lvh2"]), ONE_STEP)
    dense, x = replace(conv, kernel=chain.dense().kernel), input_for(conv)
    assert dense.k == conv.k
    assert difference(compute(chain.steps, x), compute([dense], x)) < 1e-5
    assert relative_error(conv, chain) < 1


def test_two_stages_err_less_than_one():
    conv = make_conv((8, 5, 5, 5), seed=5)
    once, twice = (
        relative_error(conv, decompose(conv, FORMS[name], rank))
        for name, rank in (("lvh", (1,)), ("lvh2", (8,)))
    )
    assert twice < 0.95 * once


def test_no_channel_between_two_stages_is_idle():
    conv = make_conv((40, 2, 3, 5))  # of exact rank 30, below the channels asked for
    chain = decompose(conv, FORMS["lvh2"], (40,))
    for step in chain.steps:
        norms = np.linalg.norm(step.kernel.reshape(len(step.kernel), -1), axis=1)
        assert norms.min() > 1e-3 * norms.max()
    taken = np.linalg.norm(chain.steps[3].kernel[:, :, 0, 0], axis=0)
    assert taken.min() > 1e-3 * taken.max()


@pytest.mark.parametrize("rank", [0, 9])
def test_two_stages_take_as_many_channels_as_there_are_outputs_at_most(rank):
    with pytest.raises(ConverterError, match="does not fit; lvh2 takes 1 to 8 here"):
        decompose(make_conv((8, 4, 3, 3)), FORMS["lvh2"], (rank,))


@pytest.mark.parametrize("k", [(1, 1), ()])
def test_two_stages_need_a_window(k):
    with pytest.raises(ConverterError, match="lvh2 cannot stand in"):
        decompose(make_conv((8, 4, *k)), FORMS["lvh2"], (8,))


def test_terms_as_small_as_the_first_stage_are_recovered():
    rng = np.random.default_rng(0)
    out, lateral, vertical, horizontal = (rng.standard_normal((n, 4)) for n in (6, 5, 3, 3))
    kernel = np.zeros((6, 5, 5, 5))
    kernel[..., 1:4, 1:4] = np.einsum("or,ir,hr,wr->oihw", out, lateral, vertical, horizontal)
    conv = Conv(kernel, None, (1, 1), ((2, 2),) * 2, (1, 1))
    assert relative_error(conv, decompose(conv, FORMS["lvh2"], (4,))) < 1e-3
