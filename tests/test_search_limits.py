"""Searches under several limits at once: kept together, or the one in the way is measured."""

import pytest
from search_cases import EVERY, SPACE, effort, loss, measures, ms

from converter.search.search import search
from converter.search.trials import Limits, Measures


def drop_limit(most):
    return measures(lambda built: {"max_drop": loss(built) / most})


def test_a_drop_and_a_speedup_are_both_kept_and_both_measured():
    limits = Limits(loss=0.1, speedup=1.8, ms_at=lambda speedup: 30.0 / speedup)
    outcome = search([SPACE], limits, drop_limit(0.5), effort())
    assert outcome.kept
    assert set(outcome.best.usage) == {"max_drop", "target_speedup"}
    assert loss(outcome.best.assignment) <= 0.5
    assert outcome.best.speedup == 30.0 / ms(outcome.best.assignment) >= 1.8


def test_a_table_that_promises_too_much_does_not_hide_a_missed_speedup():
    """The network is really half as fast as the table says."""
    measure = Measures(
        lambda assignment, near, effort: dict(assignment),
        lambda built: {"max_drop": loss(built) / 0.5},
        lambda assignment: 15.0 / ms(assignment),
        loss,
    )
    limits = Limits(loss=0.1, speedup=2.5, ms_at=lambda speedup: 30.0 / speedup)
    outcome = search([SPACE], limits, measure, effort())
    assert not outcome.kept
    others = {name: t.usage[name] for t in outcome.trials for name in t.usage if t.worst > 1}
    assert others


def test_limits_that_contradict_each_other_are_each_tried_alone():
    limits = Limits(loss=0.01, speedup=4.0, ms_at=lambda speedup: 30.0 / speedup)
    outcome = search([SPACE], limits, drop_limit(0.02), effort())
    assert not outcome.kept
    slow = [t for t in outcome.trials if t.usage.get("max_drop", 9) <= 1 and t.speedup]
    lossy = [t for t in outcome.trials if t.usage.get("target_speedup", 9) <= 1]
    assert slow and all(trial.speedup < 4.0 for trial in slow)
    assert lossy and all(trial.usage["max_drop"] > 1 for trial in lossy)


def four_limits(most_loss, speedup, macs, size):
    def usage(built):
        return {
            "max_drop": loss(built) / most_loss,
            "max_macs": SPACE.total(built, "macs") / macs,
            "max_bytes": SPACE.total(built, "bytes") / size,
        }

    limits = Limits(
        loss=most_loss,
        speedup=speedup,
        sums={"macs": macs, "bytes": size},
        ms_at=lambda speedup: 30.0 / speedup,
    )
    return search([SPACE], limits, measures(usage), effort())


def test_four_limits_hold_together():
    outcome = four_limits(most_loss=0.6, speedup=2.0, macs=14_000, size=1400)
    assert outcome.kept
    best = outcome.best.assignment
    assert loss(best) <= 0.6 and 30.0 / ms(best) >= 2.0
    assert SPACE.total(best, "macs") <= 14_000 and SPACE.total(best, "bytes") <= 1400


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"most_loss": 0.001}, "max_drop"),
        ({"speedup": 50.0}, "target_speedup"),
        ({"macs": 5_500}, "max_macs"),
        ({"size": 550}, "max_bytes"),
    ],
)
def test_of_four_limits_the_one_in_the_way_is_measured(change, option):
    usual = {"most_loss": 0.3, "speedup": 1.5, "macs": 25_000, "size": 2500}
    outcome = four_limits(**(usual | change))
    assert not outcome.kept
    others_kept = [
        trial.usage[option]
        for trial in outcome.trials
        if option in trial.usage
        and all(u <= 1 for name, u in trial.usage.items() if name != option)
        and len(trial.usage) == 4
    ]
    assert others_kept and min(others_kept) > 1


def test_without_a_limit_on_loss_or_time_the_least_loss_is_built():
    outcome = search([SPACE], Limits(sums={"macs": 15_000}, goal="loss"), measures(), effort())
    assert SPACE.total(outcome.best.assignment, "macs") <= 15_000
    fitting = [a for a in EVERY if SPACE.total(a, "macs") <= 15_000]
    assert loss(outcome.best.assignment) == pytest.approx(min(map(loss, fitting)))


def test_the_same_tables_give_the_same_assignment():
    limits = Limits(loss=0.1, speedup=1.8, ms_at=lambda speedup: 30.0 / speedup)
    one, other = (search([SPACE], limits, drop_limit(0.5), effort()) for _ in range(2))
    assert one.best.assignment == other.best.assignment
    assert [t.allowance for t in one.trials] == [t.allowance for t in other.trials]
