"""Laws that every form obeys: exact at full rank, geometry kept, each group by itself."""

import ml_dtypes
import numpy as np
import pytest
from conv_cases import (
    EXACT_FORMS,
    FEW,
    ONE_STEP,
    SPLITTING_FORMS,
    at_full_rank,
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
from converter.decomposition.conv import PADDING_MODES, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import fit_rank, full_rank, refusal, skeleton
from converter.decomposition.forms import FORMS, find_form
from converter.decomposition.problem import SolverSettings
from converter.decomposition.ranks import parse_rank
from converter.errors import ConverterError

WINDOW_FORMS = [name for name in SPLITTING_FORMS if name != "channel"]


@pytest.mark.parametrize("name", EXACT_FORMS)
@FEW
@given(data=st.data())
def test_full_rank_reproduces_the_kernel(name, data):
    conv = data.draw(convolutions_for(name))
    chain = at_full_rank(conv, name)
    assert relative_error(conv, chain) < 1e-5
    x = input_for(conv)
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5


@pytest.mark.parametrize("name", EXACT_FORMS)
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_full_rank_keeps_the_padding_mode(name, mode):
    conv = make_conv(
        (6, 2, 3, 4),
        groups=2,
        stride=(2, 1),
        padding=((2, 1), (1, 2)),
        dilation=(1, 2),
        padding_mode=mode,
    )
    x = input_for(conv)
    assert difference(compute(at_full_rank(conv, name).steps, x), compute([conv], x)) < 1e-5


@pytest.mark.parametrize("name", [name for name in EXACT_FORMS if name != "spatial"])
@pytest.mark.parametrize(
    ("k", "padding"), [((5,), ((2, 1),)), ((3, 1, 2), ((1, 1), (0, 2), (1, 0)))]
)
def test_full_rank_reproduces_convolutions_over_one_and_three_axes(name, k, padding):
    conv = make_conv((6, 2, *k), groups=2, stride=(2,) * len(k), padding=padding)
    x = input_for(conv)
    assert difference(compute(at_full_rank(conv, name).steps, x), compute([conv], x)) < 1e-5


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@FEW
@given(data=st.data())
def test_the_skeleton_has_the_shapes_of_the_chain(name, data):
    form, conv = FORMS[name], data.draw(convolutions_for(name))
    rank = some_rank(data.draw, conv, form)
    bones, chain = skeleton(conv, form, rank), decompose(conv, form, rank, ONE_STEP)
    for bone, step in zip(bones.steps, chain.steps, strict=True):
        for field in ("stride", "padding", "dilation", "groups", "padding_mode"):
            assert getattr(bone, field) == getattr(step, field)
        assert bone.kernel.shape == step.kernel.shape
        assert bone.kernel.dtype == step.kernel.dtype
        assert not bone.kernel.any()
    size = input_for(conv).shape[2:]
    assert (bones.params, bones.macs(size)) == (chain.params, chain.macs(size))


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@FEW
@given(data=st.data())
def test_groups_are_solved_each_by_itself(name, data):
    conv = data.draw(convolutions_for(name).filter(lambda conv: conv.groups == 2))
    rank = some_rank(data.draw, conv, FORMS[name])
    halves = [
        Conv(kernel, None, conv.stride, conv.padding, conv.dilation)
        for kernel in np.split(conv.kernel, 2)
    ]
    own = rank if FORMS[name].per_channel else tuple(r // 2 for r in rank)
    found = decompose(conv, FORMS[name], rank, ONE_STEP).dense()
    parts = [decompose(half, FORMS[name], own, ONE_STEP).dense().kernel for half in halves]
    assert found.groups == 2
    assert difference(found.kernel, np.concatenate(parts)) < 1e-5


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_one_seed_gives_the_same_bytes(name):
    conv = make_conv((8, 6, 3, 3), dtype=np.float32)
    rank = fit_rank(parse_rank("0.8", FORMS[name], conv), FORMS[name], conv)
    settings = SolverSettings(seed=3, effort=0.01)
    once, again = (decompose(conv, FORMS[name], rank, settings) for _ in range(2))
    for first, second in zip(once.steps, again.steps, strict=True):
        assert first.kernel.tobytes() == second.kernel.tobytes()


STEPS = {
    "flattened": [(1, 1), (2, 1), (1, 3), (1, 1)],
    "separable": [(1, 1), (2, 3), (1, 1)],
    "lvh": [(1, 1), (2, 1), (1, 3)],
    "decoupled": [(2, 3), (1, 1)],
    "spatial": [(2, 1), (1, 3)],
    "tucker": [(1, 1), (2, 3), (1, 1)],
    "channel": [(2, 3), (1, 1)],
}


@pytest.mark.parametrize("name", list(STEPS))
def test_the_stride_is_on_the_first_step_that_covers_its_axis(name):
    conv = make_conv(
        (8, 4, 3, 5), stride=(2, 3), padding=((1, 0), (2, 1)), dilation=(3, 2), groups=2
    )
    steps = decompose(conv, FORMS[name], fit_rank((2, 2), FORMS[name], conv), ONE_STEP).steps
    assert [step.stride for step in steps] == STEPS[name]
    for axis, (stride, pads, dilation) in enumerate(zip(conv.stride, conv.padding, conv.dilation)):
        owners = [step for step in steps if step.stride[axis] == stride]
        assert [step.padding[axis] for step in owners] == [pads]
        assert [step.dilation[axis] for step in owners] == [dilation]
        others = [step for step in steps if step.stride[axis] != stride]
        assert {(s.padding[axis], s.dilation[axis]) for s in others} <= {((0, 0), 1)}


@pytest.mark.parametrize("name", [name for name in EXACT_FORMS if name != "spatial"])
@pytest.mark.parametrize("k", [(1, 3), (3, 1)])
def test_an_axis_of_size_one_is_strided_and_padded_at_the_first_step(name, k):
    conv = make_conv((6, 4, *k), stride=(2, 2), padding=((1, 1), (1, 1)))
    chain = at_full_rank(conv, name)
    axis = k.index(1)
    assert chain.steps[0].stride[axis] == 2
    assert chain.steps[0].padding[axis] == (1, 1)
    x = input_for(conv)
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5


@pytest.mark.parametrize("name", EXACT_FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 5e-3), (ml_dtypes.bfloat16, 4e-2)])
def test_half_precision_kernels_ship_as_they_came(name, dtype, tolerance):
    conv = make_conv((6, 4, 3, 3), dtype=dtype)
    chain = at_full_rank(conv, name)
    assert {step.kernel.dtype for step in chain.steps} == {np.dtype(dtype)}
    assert chain.steps[-1].bias is conv.bias
    bones = skeleton(conv, FORMS[name], full_rank(FORMS[name], conv))
    assert {step.kernel.dtype for step in bones.steps} == {np.dtype(dtype)}
    assert relative_error(conv, chain) < tolerance


@pytest.mark.parametrize("name", sorted({*SPLITTING_FORMS} - {"lvh", "spatial"}))
def test_a_depthwise_convolution_is_refused(name):
    conv = make_conv((8, 1, 3, 3), groups=8)
    assert "depthwise" in refusal(FORMS[name], conv)
    with pytest.raises(ConverterError, match=f"{name} cannot stand in .* depthwise"):
        decompose(conv, FORMS[name], (1,))


@pytest.mark.parametrize("name", WINDOW_FORMS)
def test_a_pointwise_convolution_has_nothing_to_separate_in_space(name):
    conv = make_conv((8, 4, 1, 1))
    assert refusal(FORMS[name], conv)
    with pytest.raises(ConverterError, match=f"{name} cannot stand in"):
        skeleton(conv, FORMS[name], (1,))


@pytest.mark.parametrize("k", [(1, 3), (3, 1), (3,), (1, 3, 1)])
def test_spatial_needs_two_axes(k):
    with pytest.raises(ConverterError, match="does not extend over two axes"):
        decompose(make_conv((8, 4, *k)), FORMS["spatial"], (1,))


@pytest.mark.parametrize("name", ["", "Flattened", "winograd"])
def test_an_unknown_form_is_refused_with_the_known_ones(name):
    with pytest.raises(ConverterError, match=r"There is no form .* flattened, separable, lvh"):
        find_form(name)


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_a_form_is_found_by_its_name(name):
    assert find_form(name).name == name
