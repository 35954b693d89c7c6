"""Plans by error: the cheapest form whose error is small enough."""

import pytest
from plan_cases import chosen, layer, plan_of, reasons

from converter.decomposition.approximation import estimate_errors, relative_error
from converter.decomposition.decompose import decompose
from converter.decomposition.form import full_rank, refusal
from converter.decomposition.forms import FORMS
from converter.decomposition.ranks import all_ranks
from converter.search.candidates import cheapest
from converter.search.manual import MAX_MACS, MAX_WEIGHT_ERROR


@pytest.fixture(scope="module")
def mixed():
    """Layers with much to save, and with nothing."""
    return (
        layer("noise", 32, 32, 3, 3),
        layer("low", 32, 32, 3, 3, low_rank=4),
        layer("lower", 64, 32, 3, 3, low_rank=2),
        layer("pointwise", 64, 64, 1, 1, low_rank=8),
        layer("depthwise", 32, 1, 3, 3, groups=32),
        layer("up", 16, 16, 3, 3, reason="its weight is shared by 2 layers"),
    )


def test_the_default_saves_macs_within_the_error(mixed):
    plan = plan_of(mixed)
    assert set(chosen(plan)) == {"low", "lower", "pointwise"}
    for part in mixed:
        if part.name in chosen(plan):
            form, rank = plan.chosen()[part.name]
            chain = decompose(part.conv, form, rank)
            assert relative_error(part.conv, chain) <= MAX_WEIGHT_ERROR
            assert chain.macs(part.size) <= MAX_MACS * part.macs
    assert "no form saves 25% of its MACs" in reasons(plan)["noise"]
    assert reasons(plan)["up"] == "its weight is shared by 2 layers"


def test_the_default_takes_the_cheapest(mixed):
    for part, choice in zip(mixed, plan_of(mixed).choices):
        if choice.form:
            assert cheapest(part, MAX_WEIGHT_ERROR)[:2] == (choice.form, choice.rank)


def test_the_default_keeps_what_the_user_keeps(mixed):
    assert set(chosen(plan_of(mixed, keep=("low*",)))) == {"pointwise"}


@pytest.mark.parametrize("max_error", [0.02, 0.25, 0.6])
def test_no_chain_within_the_weight_error_is_cheaper(mixed, max_error):
    for part in mixed[:4]:
        within = {}
        for form in FORMS.values():
            error_at = None if refusal(form, part.conv) else estimate_errors(part.conv, form)
            for rank in all_ranks(form, part.conv, 16) if error_at else ():
                if rank != full_rank(form, part.conv) and error_at(rank) <= max_error:
                    chain = decompose(part.conv, form, rank)
                    assert relative_error(part.conv, chain) <= max_error + 1e-5
                    within[form.name, rank] = chain.macs(part.size)
        chosen_chain = cheapest(part, max_error)
        assert (chosen_chain is None) is (not within)
        if chosen_chain is not None:
            assert chosen_chain[2] == within[chosen_chain[:2]] == min(within.values())
