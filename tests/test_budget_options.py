"""Options of budgets: refused out of range, recorded and made again, reached in steps."""

import pytest

import converter
from converter.errors import ConverterError
from converter.options import Options
from converter.search.budgets import BUDGETS, budgets_of, make_budgets


def test_budgets_that_make_no_sense_are_refused():
    with pytest.raises(ConverterError, match="leave out form, rank and plan"):
        converter.convert("net.onnx", target_speedup=2.0, form="spatial")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": 0.0}, "--max-drop. It must be above 0"),
        ({"max_drop": 1.5}, "--max-drop. It must be above 0 and below 1"),
        ({"max_error": -1.0}, "--max-error. It must be a number above 0"),
        ({"max_macs": 1.0}, "--max-macs. It must be above 0 and below 1"),
        ({"max_bytes": 0.0}, "--max-bytes. It must be a number above 0"),
        ({"target_speedup": 1.0}, "--target-speedup. It must be above 1"),
        ({"target_speedup": 2.0, "form": ("spatial",)}, "leave out --form"),
        ({"max_macs": 0.5, "rank": ("0.5",)}, "--max-macs"),
    ],
)
def test_limits_out_of_range_are_refused(options, words):
    with pytest.raises(ConverterError, match=words):
        Options.of(**options)


# the classes


def test_every_budget_has_its_option():
    fields = Options().budget.__dataclass_fields__.keys() - {"drop_type"}
    assert {budget.option for budget in BUDGETS} == fields


def test_budgets_are_recorded_and_made_again():
    options = Options.of(
        max_drop=0.01, drop_type="relative", max_error=0.1, target_speedup=2.0, max_macs=0.5
    )
    budgets = budgets_of(options.budget)
    assert make_budgets({b.option: b.limit for b in budgets}, relative=True) == budgets
    with pytest.raises(ValueError, match="there is no budget max_joules"):
        make_budgets({"max_joules": 1.0})


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_steps_of_a_schedule_end_at_the_budget(count):
    options = Options.of(
        max_drop=0.01, max_error=0.1, target_speedup=2.0, max_macs=0.5, max_bytes=1e5
    )
    for budget in budgets_of(options.budget):
        limits = [budget.step(number, count).limit for number in range(1, count + 1)]
        assert limits[-1] == pytest.approx(budget.limit)
        falling = budget.option in ("max_macs", "max_bytes")
        assert limits == sorted(limits, reverse=falling)
