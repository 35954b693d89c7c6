"""Forms under a metric: solved and refitted for inputs whose entries are unequal."""

import itertools

import numpy as np
import pytest
from conv_cases import (
    EXACT_FORMS,
    FEW,
    ONE_STEP,
    QUICK,
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
from converter.decomposition.decompose import decompose, decompose_ranks
from converter.decomposition.form import fit_rank, full_rank, refusal
from converter.decomposition.forms import FORMS
from converter.decomposition.metric import Metric
from converter.decomposition.problem import SolverSettings
from converter.decomposition.ranks import parse_rank
from converter.decomposition.refit import refit
from converter.errors import ConverterError


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
    form, conv = FORMS[name], make_conv((8, 4, *k), groups=2, dilation=(2,) * len(k))
    metrics = metrics_for(conv, kronecker=kronecker)
    if refusal(form, conv):
        with pytest.raises(ConverterError, match="cannot stand in"):
            decompose(conv, form, (4,), metrics=metrics)
        return
    rank = fit_rank((4,) * len(full_rank(form, conv)), form, conv)
    aware, blind = (
        decompose(conv, form, rank, SolverSettings(effort=0.1), metrics=under)
        for under in (metrics, None)
    )
    assert relative_error(conv, aware, metrics) < 0.98 * relative_error(conv, blind, metrics)


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
    ranks = sorted({fit_rank((r,) * len(full), form, conv) for r in (2, 6, 12, 999)})
    settings = SolverSettings() if under == "full" else QUICK
    chains = decompose_ranks(conv, form, ranks[::-1], settings, metrics=metrics)
    assert sorted(chains) == ranks
    errors = [relative_error(conv, chains[rank], metrics) for rank in ranks]
    assert all(later <= 1.001 * earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("name", ["flattened", "separable"])
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
    form, conv = FORMS[name], make_conv((8, 6, 3, 3), dtype=np.float32)
    rank = fit_rank(parse_rank("0.5", form, conv), form, conv)
    settings = SolverSettings(seed=3, effort=0.05)
    once, again = (
        decompose(conv, form, rank, settings, metrics=metrics_for(conv)) for _ in range(2)
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


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@FEW
@given(data=st.data())
def test_refitting_never_raises_the_error_of_the_responses(name, data):
    form, conv = FORMS[name], data.draw(convolutions_for(name))
    patches = patches_for(conv, data.draw(st.integers(1, 80)))
    metrics = metrics_of(conv, patches)
    chain = decompose(conv, form, some_rank(data.draw, conv, form), ONE_STEP)
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
    chain = decompose(conv, FORMS[name], fit_rank((4, 4), FORMS[name], conv), ONE_STEP)
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
