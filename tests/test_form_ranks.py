"""Ranks of forms: read, refused, brought to fit, and listed in blocks."""

import pytest
from conv_cases import FEW, SPLITTING_FORMS, convolutions_for, make_conv
from hypothesis import given
from hypothesis import strategies as st

from converter.decomposition.decompose import decompose
from converter.decomposition.form import fit_rank, full_rank, show_rank, skeleton
from converter.decomposition.forms import FORMS
from converter.decomposition.ranks import all_ranks, parse_rank
from converter.errors import ConverterError


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


@pytest.mark.parametrize(("rank", "text"), [((16,), "16"), ((16, 32), "16,32")])
def test_a_rank_is_shown_as_it_is_written(rank, text):
    assert show_rank(rank) == text


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
