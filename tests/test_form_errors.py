"""The error of a form: it falls with the rank, is estimated, and is zero where it can be."""

import itertools

import numpy as np
import pytest
from conv_cases import FEW, QUICK, SPLITTING_FORMS, convolutions_for, make_conv, some_rank
from hypothesis import given
from hypothesis import strategies as st

from converter.decomposition.approximation import cancellation, estimate_errors, relative_error
from converter.decomposition.conv import Conv, assemble
from converter.decomposition.decompose import decompose
from converter.decomposition.form import fit_rank, full_rank
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError

SVD_FORMS = ["spatial", "channel", "decoupled"]
CP_FORMS = ["flattened", "separable"]


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
def test_the_error_of_a_sum_of_terms_falls_between_ranks_far_apart(name, shape):
    form, conv = FORMS[name], make_conv(shape)
    (full,) = full_rank(form, conv)
    ranks = [(2,), (8,), (24,), (full,)]
    errors = [relative_error(conv, decompose(conv, form, rank, QUICK)) for rank in ranks]
    assert all(later < 0.95 * earlier for earlier, later in itertools.pairwise(errors))


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
