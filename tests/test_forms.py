"""Laws that every form obeys: exact at full rank, geometry kept, errors that fall with the rank."""

import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from helpers import (
    EXACT_FORMS,
    FEW,
    LITTLE,
    SPLITTING_FORMS,
    at_full_rank,
    compute,
    convolutions_for,
    difference,
    input_for,
    make_conv,
)
from hypothesis import given
from hypothesis import strategies as st

from converter.decomposition.approximation import cancellation, estimate_errors, relative_error
from converter.decomposition.conv import PADDING_MODES, Chain, Conv, assemble
from converter.decomposition.decompose import decompose, decompose_ranks
from converter.decomposition.form import fit_rank, full_rank, refusal, show_rank, skeleton
from converter.decomposition.forms import FORMS, find_form
from converter.decomposition.metric import Metric
from converter.decomposition.problem import SolverSettings
from converter.decomposition.ranks import all_ranks, parse_rank
from converter.decomposition.refit import refit
from converter.errors import ConverterError

SVD_FORMS = ["spatial", "channel", "decoupled"]
CP_FORMS = ["flattened", "separable"]
WINDOW_FORMS = [name for name in SPLITTING_FORMS if name != "channel"]


def some_rank(draw, conv, form):
    """A rank that ``conv`` takes."""
    unit = 1 if form.per_channel else conv.groups
    return tuple(unit * draw(st.integers(1, most // unit)) for most in full_rank(form, conv))


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
    bones, chain = skeleton(conv, form, rank), decompose(conv, form, rank, LITTLE)
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
    found = decompose(conv, FORMS[name], rank, LITTLE).dense()
    parts = [decompose(half, FORMS[name], own, LITTLE).dense().kernel for half in halves]
    assert found.groups == 2
    assert difference(found.kernel, np.concatenate(parts)) < 1e-5


@pytest.mark.parametrize("name", SVD_FORMS)
@FEW
@given(data=st.data())
def test_the_error_never_rises_with_the_rank(name, data):
    form, conv = FORMS[name], data.draw(convolutions_for(name))
    unit = 1 if form.per_channel else conv.groups
    ranks = range(unit, full_rank(form, conv)[0] + 1, unit)
    errors = [relative_error(conv, decompose(conv, form, (rank,))) for rank in ranks]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))


@FEW
@given(data=st.data())
def test_the_error_of_tucker_never_rises_with_its_ranks(data):
    form, conv = FORMS["tucker"], data.draw(convolutions_for("tucker"))
    full = full_rank(form, conv)
    steps = [(conv.groups, conv.groups)]
    while steps[-1] != full:
        steps.append(tuple(min(r + conv.groups, most) for r, most in zip(steps[-1], full)))
    errors = [relative_error(conv, decompose(conv, form, rank)) for rank in steps]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("name", CP_FORMS)
@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (8, 12, 5, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_of_a_sum_of_terms_falls_between_ranks_far_apart(name, shape, seed):
    form, conv = FORMS[name], make_conv(shape, seed=seed)
    (full,) = full_rank(form, conv)
    ranks = [(2,), (8,), (24,), (full,)]
    errors = [relative_error(conv, decompose(conv, form, rank)) for rank in ranks]
    assert all(later < 0.95 * earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_one_seed_gives_the_same_bytes(name):
    conv = make_conv((12, 8, 3, 3), dtype=np.float32)
    rank = fit_rank(parse_rank("0.8", FORMS[name], conv), FORMS[name], conv)
    once, again = (decompose(conv, FORMS[name], rank, SolverSettings(seed=3)) for _ in range(2))
    for first, second in zip(once.steps, again.steps, strict=True):
        assert first.kernel.tobytes() == second.kernel.tobytes()


@pytest.mark.parametrize("name", CP_FORMS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_kernel_of_known_rank_is_recovered(name, groups, seed):
    rng = np.random.default_rng(seed)
    kernels = []
    for _ in range(groups):
        factors = [np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (8, 6, 3, 4)]
        kernels.append(np.einsum("r,or,ir,hr,wr->oihw", [3.0, 2.0, 1.5], *factors))
    conv = Conv(np.concatenate(kernels), None, (1, 1), ((1, 1),) * 2, (1, 1), groups=groups)
    assert relative_error(conv, decompose(conv, FORMS[name], (3 * groups,))) < 1e-5


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
    steps = decompose(conv, FORMS[name], fit_rank((2, 2), FORMS[name], conv)).steps
    assert [step.stride for step in steps] == STEPS[name]
    for axis, (stride, pads, dilation) in enumerate(zip(conv.stride, conv.padding, conv.dilation)):
        owners = [step for step in steps if step.stride[axis] == stride]
        assert [step.padding[axis] for step in owners] == [pads]
        assert [step.dilation[axis] for step in owners] == [dilation]
        others = [step for step in steps if step.stride[axis] != stride]
        assert {(s.padding[axis], s.dilation[axis]) for s in others} <= {((0, 0), 1)}


def test_two_stages_pad_first_and_stride_last():
    conv = make_conv(
        (8, 4, 3, 5), stride=(2, 3), padding=((1, 0), (2, 1)), dilation=(3, 2), groups=2
    )
    steps = decompose(conv, FORMS["lvh2"], (8,)).steps
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
    chain = decompose(conv, FORMS["lvh2"], some_rank(data.draw, conv, FORMS["lvh2"]), LITTLE)
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


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_ranks_that_do_not_fit_are_refused(name):
    form, conv = FORMS[name], make_conv((8, 4, 3, 3), groups=2)
    full = full_rank(form, conv)
    wrong = [
        tuple(0 for _ in full),
        tuple(-2 for _ in full),
        tuple(most + conv.groups for most in full),
        (*full, full[0]),
        (),
    ]
    if not form.per_channel:
        wrong.append(tuple(most - 1 for most in full))
    for rank in wrong:
        for use in (decompose, skeleton):
            with pytest.raises(ConverterError, match=r"Rank .* (does not fit|must be a multiple)"):
                use(conv, form, rank)


def test_the_sentence_names_the_ranks_that_fit():
    conv = make_conv((8, 4, 3, 3), groups=2)
    with pytest.raises(ConverterError, match="Rank 9,2 does not fit; tucker takes 1 to 8,8 here"):
        decompose(conv, FORMS["tucker"], (9, 2))
    with pytest.raises(ConverterError, match="Rank 3 must be a multiple of 2 groups"):
        decompose(conv, FORMS["channel"], (3,))


@pytest.mark.parametrize("name", ["", "Flattened", "winograd"])
def test_an_unknown_form_is_refused_with_the_known_ones(name):
    with pytest.raises(ConverterError, match=r"There is no form .* flattened, separable, lvh"):
        find_form(name)


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_a_form_is_found_by_its_name(name):
    assert find_form(name).name == name


@pytest.mark.parametrize(
    ("name", "text", "rank"),
    [
        ("flattened", "16", (16,)),
        ("flattened", " 16 ", (16,)),
        ("flattened", "1.0", (12,)),
        ("flattened", "0.5", (6,)),
        ("flattened", "1e-9", (1,)),
        ("separable", "2.0", (24,)),
        ("separable", "999", (999,)),
        ("tucker", "16,32", (16, 32)),
        ("tucker", "0.5,0.25", (4, 3)),
        ("tucker", "0.5", (4, 6)),
        ("tucker", "3,0.5", (3, 6)),
        ("decoupled", "2", (2,)),
        ("decoupled", "0.5", (8,)),
        ("lvh", "1", (1,)),
    ],
)
def test_a_rank_is_read_as_written(name, text, rank):
    assert parse_rank(text, FORMS[name], make_conv((12, 8, 3, 5))) == rank


@pytest.mark.parametrize("name", ["flattened", "tucker"])
@pytest.mark.parametrize("text", ["", "half", "1/2", "0x10", "16;16", "--4", "²"])
def test_a_rank_that_is_not_a_number_is_refused(name, text):
    with pytest.raises(ConverterError, match=r"is not a number; write 16 or 0\.5"):
        parse_rank(text, FORMS[name], make_conv((12, 8, 3, 5)))


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "-0.5", "nan", "inf", "-inf", "1e999"])
def test_a_rank_that_is_not_above_zero_is_refused(text):
    with pytest.raises(ConverterError, match="must be above 0"):
        parse_rank(text, FORMS["flattened"], make_conv((12, 8, 3, 5)))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("flattened", "4,4", "has 2 parts; flattened takes 1"),
        ("tucker", "4,4,4", "has 3 parts; tucker takes 2"),
        ("tucker", "4,", "is not a number"),
        ("tucker", "4,0", "must be above 0"),
        ("tucker", "nan,4", "must be above 0"),
    ],
)
def test_a_wrong_number_of_ranks_or_half_a_pair_is_refused(name, text, sentence):
    with pytest.raises(ConverterError, match=sentence):
        parse_rank(text, FORMS[name], make_conv((12, 8, 3, 5)))


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@FEW
@given(data=st.data())
def test_a_rank_brought_to_fit_fits(name, data):
    form, conv = FORMS[name], data.draw(convolutions_for(name))
    count = len(full_rank(form, conv))
    wanted = data.draw(st.tuples(*[st.integers(1, 200)] * count))
    rank = fit_rank(wanted, form, conv)
    skeleton(conv, form, rank)
    assert fit_rank(rank, form, conv) == rank
    unit = 1 if form.per_channel else conv.groups
    for got, want, most in zip(rank, wanted, full_rank(form, conv)):
        assert got == most or abs(got - want) <= max(unit - 1, unit / 2)


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_grid_holds_ranks_that_fit_in_blocks(name, groups):
    form, conv = FORMS[name], make_conv((36 * groups, 12, 3, 3), groups=groups)
    grid = all_ranks(form, conv, 4)
    full = full_rank(form, conv)
    assert full in grid
    assert len(set(grid)) == len(grid)
    for rank in grid:
        skeleton(conv, form, rank)
        if not form.per_channel:
            assert all(r % 4 == 0 or r == most for r, most in zip(rank, full))


def test_the_grid_of_a_layer_smaller_than_a_block_is_its_full_rank():
    assert all_ranks(FORMS["channel"], make_conv((6, 4, 3, 3)), 16) == [(6,)]


@pytest.mark.parametrize("name", ["spatial", "channel"])
@FEW
@given(data=st.data())
def test_the_estimated_error_is_the_error(name, data):
    form, conv = FORMS[name], data.draw(convolutions_for(name))
    rank = some_rank(data.draw, conv, form)
    true = relative_error(conv, decompose(conv, form, rank))
    assert abs(estimate_errors(conv, form)(rank) - true) < 1e-6


@FEW
@given(data=st.data())
def test_the_estimated_error_of_tucker_is_a_bound(data):
    form, conv = FORMS["tucker"], data.draw(convolutions_for("tucker"))
    rank = some_rank(data.draw, conv, form)
    true = relative_error(conv, decompose(conv, form, rank))
    bound = estimate_errors(conv, form)(rank)
    assert true <= bound + 1e-6
    assert bound <= np.sqrt(2) * true + 1e-6


@pytest.mark.parametrize("name", ["flattened", "separable", "lvh", "lvh2"])
def test_forms_without_a_closed_form_give_no_estimate(name):
    assert estimate_errors(make_conv((8, 4, 3, 3)), FORMS[name]) is None


@pytest.mark.parametrize("name", ["spatial", "channel", "tucker"])
def test_no_error_is_estimated_for_a_rank_that_does_not_fit(name):
    form, conv = FORMS[name], make_conv((8, 4, 3, 3))
    error_at = estimate_errors(conv, form)
    for rank in (tuple(0 for _ in full_rank(form, conv)), (99,), (1, 2, 3)):
        with pytest.raises(ConverterError, match="does not fit"):
            error_at(rank)


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_a_kernel_of_zeros_gives_zeros(name):
    conv = Conv(np.zeros((6, 4, 3, 3)), np.ones(6), (1, 1), ((0, 0),) * 2, (1, 1))
    chain = decompose(conv, FORMS[name], fit_rank((2, 2), FORMS[name], conv))
    assert not chain.dense().kernel.any()
    assert relative_error(conv, chain) == 0


def patches_for(conv, count, seed=0):
    """Random patches (groups, count, n) whose entries are unequal and correlated."""
    rng = np.random.default_rng(seed)
    n = conv.kernel[0].size
    mixing = rng.standard_normal((conv.groups, n, n)) * 0.9 ** np.arange(n)
    return rng.standard_normal((conv.groups, count, n)) @ mixing


def metrics_of(conv, patches):
    """What the patches (groups, count, n) of each group make of its metric."""
    return [Metric.of(x.T @ x / len(x), conv.I // conv.groups) for x in patches]


def metrics_for(conv, count=400, kronecker=False):
    metrics = metrics_of(conv, patches_for(conv, count))
    return [Metric.kronecker(m.channels, m.window) for m in metrics] if kronecker else metrics


def responses(conv, patches):
    """What the filters give on the patches of their group: (groups, count, O/groups)."""
    filters = conv.kernel.reshape(conv.groups, conv.O // conv.groups, -1)
    return patches @ filters.swapaxes(1, 2)


@FEW
@given(conv=convolutions_for("channel"), count=st.integers(1, 60), data=st.data())
def test_the_error_under_moments_is_that_of_the_responses(conv, count, data):
    chain = decompose(conv, FORMS["channel"], some_rank(data.draw, conv, FORMS["channel"]))
    patches = patches_for(conv, count)
    found = responses(chain.dense(), patches)
    wanted = difference(found, responses(conv, patches))
    found = relative_error(conv, chain, metrics_of(conv, patches))
    # What no patch shows counts a millionth of the mean power.
    assert abs(found**2 - wanted**2) < 1e-4 * (1 + wanted**2)


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@FEW
@given(data=st.data())
def test_refitting_never_raises_the_error_of_the_responses(name, data):
    form, conv = FORMS[name], data.draw(convolutions_for(name))
    patches = patches_for(conv, data.draw(st.integers(1, 80)))
    metrics = metrics_of(conv, patches)
    chain = decompose(conv, form, some_rank(data.draw, conv, form))
    again = refit(conv, chain, metrics)
    assert relative_error(conv, again, metrics) <= relative_error(conv, chain, metrics) + 1e-6
    for before, after in zip(chain.steps[:-1], again.steps[:-1], strict=True):
        assert after is before
    for field in ("stride", "padding", "dilation", "groups", "bias"):
        assert getattr(again.steps[-1], field) is getattr(chain.steps[-1], field)


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@pytest.mark.parametrize("groups", [1, 2])
def test_refitting_lowers_the_error_where_inputs_are_unequal(name, groups):
    conv = make_conv((8, 8 // groups, 3, 3), groups=groups)
    chain = decompose(conv, FORMS[name], fit_rank((4, 4), FORMS[name], conv))
    metrics = metrics_for(conv, 500)
    before = relative_error(conv, chain, metrics)
    assert relative_error(conv, refit(conv, chain, metrics), metrics) < 0.97 * before


@pytest.mark.parametrize("name", EXACT_FORMS)
def test_refitting_leaves_an_exact_chain_exact(name):
    conv = make_conv((6, 4, 3, 4), groups=2)
    again = refit(conv, at_full_rank(conv, name), metrics_for(conv, 7))
    assert relative_error(conv, again) < 1e-5


@pytest.mark.parametrize("name", ["spatial", "channel"])
def test_refitting_to_white_inputs_keeps_what_is_the_best(name):
    conv = make_conv((8, 4, 3, 3))
    chain = decompose(conv, FORMS[name], fit_rank((3, 3), FORMS[name], conv))
    again = refit(conv, chain, [Metric.of(np.eye(4 * 9), 4)])
    assert difference(again.dense().kernel, chain.dense().kernel) < 1e-5


@pytest.mark.parametrize("name", EXACT_FORMS)
@FEW
@given(data=st.data())
def test_full_rank_reproduces_the_kernel_under_a_metric_too(name, data):
    conv = data.draw(convolutions_for(name))
    count, kronecker = data.draw(st.integers(1, 200)), data.draw(st.booleans())
    form, metrics = FORMS[name], metrics_for(conv, count, kronecker)
    chain = decompose(conv, form, full_rank(form, conv), metrics=metrics)
    assert relative_error(conv, chain, metrics) < 1e-5
    assert relative_error(conv, chain) < 1e-5
    x = input_for(conv)
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5


@pytest.mark.parametrize("kronecker", [False, True])
@pytest.mark.parametrize("k", [(5,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_a_chain_solved_under_a_metric_is_closer_there(name, k, kronecker):
    form, conv = FORMS[name], make_conv((12, 6, *k), groups=2, dilation=(2,) * len(k))
    metrics = metrics_for(conv, kronecker=kronecker)
    if refusal(form, conv):
        with pytest.raises(ConverterError, match="cannot stand in"):
            decompose(conv, form, (4,), metrics=metrics)
        return
    rank = fit_rank((4,) * len(full_rank(form, conv)), form, conv)
    aware = relative_error(conv, decompose(conv, form, rank, metrics=metrics), metrics)
    assert aware < 0.98 * relative_error(conv, decompose(conv, form, rank), metrics)


@FEW
@given(conv=convolutions_for("channel"), data=st.data())
def test_channel_is_the_best_under_any_metric(conv, data):
    rank = some_rank(data.draw, conv, FORMS["channel"])
    metrics = metrics_for(conv)
    discarded = total = 0.0
    for part, metric in zip(np.split(conv.kernel, conv.groups), metrics):
        seen = part.reshape(len(part), -1) @ np.linalg.cholesky(metric.dense())
        power = np.linalg.svd(seen, compute_uv=False) ** 2
        discarded += power[rank[0] // conv.groups :].sum()
        total += power.sum()
    found = relative_error(conv, decompose(conv, FORMS["channel"], rank, metrics=metrics), metrics)
    assert abs(found - np.sqrt(discarded / total)) < 1e-6


@pytest.mark.parametrize("under", [None, "kronecker", "full"])
@pytest.mark.parametrize("name", EXACT_FORMS)
def test_the_error_never_rises_along_a_path(name, under):
    form, conv = FORMS[name], make_conv((12, 6, 3, 3), groups=2)
    metrics = metrics_for(conv, kronecker=under == "kronecker") if under else None
    full = full_rank(form, conv)
    ranks = sorted({fit_rank((r,) * len(full), form, conv) for r in (2, 4, 6, 8, 12, 20, 999)})
    chains = decompose_ranks(conv, form, ranks[::-1], metrics=metrics)
    assert sorted(chains) == ranks
    errors = [relative_error(conv, chains[rank], metrics) for rank in ranks]
    assert all(later <= 1.001 * earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("name", CP_FORMS)
@pytest.mark.parametrize("rank", [4, 8])
def test_a_chain_to_start_from_is_never_made_worse(name, rank):
    form, conv = FORMS[name], make_conv((12, 6, 3, 3), groups=2, dtype=np.float32)
    metrics = metrics_for(conv)
    start = decompose(conv, form, (4,), metrics=metrics)
    found = decompose(conv, form, (rank,), SolverSettings(seed=7), metrics=metrics, start=start)
    before = relative_error(conv, start, metrics)
    assert relative_error(conv, found, metrics) <= 1.001 * before


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_one_seed_gives_the_same_bytes_under_a_metric(name):
    form, conv = FORMS[name], make_conv((12, 8, 3, 3), dtype=np.float32)
    rank = fit_rank(parse_rank("0.5", form, conv), form, conv)
    once, again = (
        decompose(conv, form, rank, SolverSettings(seed=3), metrics=metrics_for(conv))
        for _ in range(2)
    )
    for first, second in zip(once.steps, again.steps, strict=True):
        assert first.kernel.tobytes() == second.kernel.tobytes()


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_a_rank_that_does_not_fit_is_refused_under_a_metric(name):
    form, conv = FORMS[name], make_conv((8, 4, 3, 3))
    with pytest.raises(ConverterError, match="does not fit"):
        decompose(
            conv, form, tuple(r + 1 for r in full_rank(form, conv)), metrics=metrics_for(conv)
        )


def test_a_metric_too_few_is_not_passed_over():
    conv = make_conv((8, 4, 3, 3), groups=2)
    chain = decompose(conv, FORMS["channel"], (2,))
    with pytest.raises(ValueError, match="argument 2"):
        decompose(conv, FORMS["channel"], (2,), metrics=metrics_for(conv)[:1])
    with pytest.raises(ValueError, match="argument 2"):
        relative_error(conv, chain, metrics_for(conv)[:1])


@pytest.mark.parametrize(("rank", "text"), [((16,), "16"), ((16, 32), "16,32")])
def test_a_rank_is_shown_as_it_is_written(rank, text):
    assert show_rank(rank) == text


def test_terms_that_cancel_are_told_from_those_that_do_not():
    conv = make_conv((16, 8, 3, 3))
    chain = decompose(conv, FORMS["separable"], (12,))
    assert 0.5 < cancellation(chain) < 5
    lateral, window, out = (step.kernel for step in chain.steps)
    opposite = [
        np.concatenate([lateral, lateral]),
        np.concatenate([window, window]),
        np.concatenate([101 * out, -100 * out], axis=1),
    ]
    same = assemble(conv, list(zip(opposite, (1, 24, 1), strict=True)))
    assert relative_error(chain.dense(), same) < 1e-4
    assert cancellation(same) > 100
