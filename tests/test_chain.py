"""``Chain``: its dense kernel, its cost, how it is assembled and balanced, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from conv_cases import FEW, SOME, compute, convolutions, difference, input_for, make_conv
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from converter.decomposition.conv import PADDING_MODES, Chain, assemble
from converter.decomposition.form import full_rank, refusal, skeleton
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError


@st.composite
def chains(draw):
    """Chains of one to three steps; each axis is padded at the first step that covers it."""
    axes = draw(st.integers(1, 3))
    channels = draw(st.sampled_from([2, 4, 6]))
    covered = [False] * axes
    steps = []
    count = draw(st.integers(1, 3))
    for number in range(count):
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, 6) if channels % g == 0]))
        k = draw(st.tuples(*[st.integers(1, 2 if axes == 3 else 3)] * axes))
        padding = []
        for axis, size in enumerate(k):
            pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
            first = size > 1 and not covered[axis]
            padding.append(draw(pads) if first else (0, 0))
            covered[axis] |= first
        step = make_conv(
            (groups * draw(st.integers(1, 2)), channels // groups, *k),
            seed=draw(st.integers(0, 1000)),
            bias=number == count - 1 and draw(st.booleans()),
            groups=groups,
            stride=draw(st.tuples(*[st.integers(1, 2)] * axes)),
            padding=tuple(padding),
            dilation=draw(st.tuples(*[st.integers(1, 3)] * axes)),
        )
        steps.append(step)
        channels = step.O
    return Chain(tuple(steps))


def input_of(chain):
    """A random input for which every step of ``chain`` gives at least two values per axis."""
    size = [2] * len(chain.steps[0].k)
    for step in reversed(chain.steps):
        for axis, n in enumerate(size):
            span = step.dilation[axis] * (step.k[axis] - 1)
            size[axis] = max((n - 1) * step.stride[axis] + span + 1 - sum(step.padding[axis]), 2)
    return np.random.default_rng(0).standard_normal((1, chain.steps[0].I, *size))


@SOME
@given(chain=chains())
def test_the_dense_kernel_computes_what_the_steps_compute(chain):
    x = input_of(chain)
    dense = chain.dense()
    assert difference(compute([dense], x), compute(chain.steps, x)) < 1e-5
    assert dense.output_size(x.shape[2:]) == compute(chain.steps, x).shape[2:]


@FEW
@given(chain=chains())
def test_a_chain_costs_what_its_steps_cost(chain):
    x = input_of(chain)
    with FlopCounterMode(display=False) as counter:
        compute(chain.steps, x)
    assert 2 * chain.macs(x.shape[2:]) == counter.get_total_flops()
    biases = [step.bias for step in chain.steps if step.bias is not None]
    assert chain.params == sum(step.kernel.size for step in chain.steps) + sum(map(len, biases))


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_the_dense_kernel_keeps_the_padding_mode(mode):
    conv = make_conv(
        (4, 3, 3, 4),
        padding=((1, 2), (2, 1)),
        stride=(2, 1),
        dilation=(1, 2),
        padding_mode=mode,
    )
    rng = np.random.default_rng(1)
    chain = assemble(
        conv, [(rng.standard_normal((5, 3, 3, 1)), 1), (rng.standard_normal((4, 5, 1, 4)), 1)]
    )
    x = input_for(conv)
    assert chain.dense().padding == conv.padding
    assert difference(compute([chain.dense()], x), compute(chain.steps, x)) < 1e-5


def test_the_dense_kernel_of_depthwise_steps_stays_in_groups():
    first = make_conv((4, 1, 3, 1), bias=False, groups=4)
    second = make_conv((4, 1, 1, 3), groups=4)
    assert Chain((first, second)).dense().kernel.shape == (4, 1, 3, 3)
    assert Chain((first, make_conv((6, 2, 1, 3), groups=2))).dense().groups == 2


def test_a_chain_of_one_step_is_that_step():
    step = make_conv((4, 3, 3, 3), padding=((1, 1), (1, 1)))
    assert Chain((step,)).dense() is step


def test_steps_whose_channels_do_not_match_are_refused():
    with pytest.raises(ConverterError, match="gives 4 channels, the next takes 5"):
        Chain((make_conv((4, 3, 1, 1), bias=False), make_conv((4, 5, 1, 1))))


def test_grouped_steps_whose_channels_do_not_match_are_refused():
    with pytest.raises(ConverterError, match="gives 4 channels, the next takes 8"):
        Chain((make_conv((4, 3, 1, 1), bias=False), make_conv((4, 4, 1, 1), groups=2)))


def test_a_bias_before_the_last_step_is_refused():
    with pytest.raises(ConverterError, match="Only the last step"):
        Chain((make_conv((4, 3, 1, 1), bias=True), make_conv((4, 4, 1, 1))))


@FEW
@given(chain=chains(), seed=st.integers(0, 100))
def test_scaling_reaches_the_kernel_and_not_the_bias(chain, seed):
    scale = np.random.default_rng(seed).standard_normal(chain.steps[-1].O)
    before, after = chain.dense(), chain.scaled(scale).dense()
    factor = scale.reshape(-1, *[1] * (before.kernel.ndim - 1))
    assert difference(after.kernel, before.kernel * factor) < 1e-5
    assert after.bias is before.bias


def test_geometry_goes_to_the_first_step_that_covers_the_axis():
    conv = make_conv(
        (4, 3, 3, 1, 5),
        stride=(2, 3, 4),
        padding=((1, 0), (2, 2), (3, 1)),
        dilation=(2, 1, 3),
    )
    shapes = [((4, 3, 1, 1, 1), 1), ((4, 1, 3, 1, 1), 4), ((4, 1, 1, 1, 5), 4)]
    steps = assemble(conv, [(np.ones(shape), groups) for shape, groups in shapes]).steps
    assert [step.stride for step in steps] == [(1, 3, 1), (2, 1, 1), (1, 1, 4)]
    assert [step.dilation for step in steps] == [(1, 1, 1), (2, 1, 1), (1, 1, 3)]
    none = (0, 0)
    assert [step.padding for step in steps] == [
        (none, (2, 2), none),
        ((1, 0), none, none),
        (none, none, (3, 1)),
    ]
    assert [step.groups for step in steps] == [1, 4, 4]
    assert [step.bias is None for step in steps] == [True, True, False]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_factors_take_the_type_of_the_convolution(dtype):
    conv = make_conv((4, 3, 3, 3), dtype=dtype)
    chain = assemble(conv, [(np.ones((2, 3, 3, 1)), 1), (np.ones((4, 2, 1, 3)), 1)])
    assert [step.kernel.dtype for step in chain.steps] == [dtype, dtype]


def test_assembling_steps_that_do_not_follow_each_other_is_refused():
    conv = make_conv((4, 3, 3, 3))
    with pytest.raises(ConverterError, match="gives 2 channels, the next takes 5"):
        assemble(conv, [(np.ones((2, 3, 3, 1)), 1), (np.ones((4, 5, 1, 3)), 1)])


def test_assembling_for_another_number_of_outputs_is_refused():
    conv = make_conv((4, 3, 3, 3))
    with pytest.raises(ConverterError, match=r"must have shape \(6,\)"):
        assemble(conv, [(np.ones((2, 3, 3, 1)), 1), (np.ones((6, 2, 1, 3)), 1)])


# balancing


@FEW
@given(st.data())
def test_balancing_changes_nothing_that_is_computed(data):
    conv = data.draw(convolutions())
    form = data.draw(st.sampled_from([f for f in FORMS.values() if refusal(f, conv) is None]))
    chain = skeleton(conv, form, full_rank(form, conv))
    rng = np.random.default_rng(0)
    uneven = [
        replace(step, kernel=rng.standard_normal(step.kernel.shape) * 10.0 ** rng.integers(-3, 4))
        for step in chain.steps
    ]
    chain = Chain(tuple(uneven))
    assert difference(chain.balanced().dense().kernel, chain.dense().kernel) < 1e-9


def test_balanced_factors_are_of_one_size():
    rng = np.random.default_rng(0)
    conv = make_conv((12, 8, 3, 5))
    chain = skeleton(conv, FORMS["flattened"], (6,))
    steps = [
        replace(s, kernel=rng.standard_normal(s.kernel.shape) * rng.lognormal(0, 2, (s.O, 1, 1, 1)))
        for s in chain.steps
    ]
    first, rows, columns, last = (s.kernel for s in Chain(tuple(steps)).balanced().steps)
    norms = [np.linalg.norm(k.reshape(6, -1), axis=1) for k in (first, rows, columns)]
    norms.append(np.linalg.norm(last.reshape(12, 6), axis=0))
    assert np.ptp(np.log(norms), axis=0).max() < 0.05


def test_a_channel_that_is_zero_is_left_alone():
    conv = make_conv((4, 3, 3, 3))
    chain = skeleton(conv, FORMS["channel"], (2,))
    first = replace(chain.steps[0], kernel=np.ones(chain.steps[0].kernel.shape))
    assert np.isfinite(Chain((first, chain.steps[1])).balanced().steps[0].kernel).all()
