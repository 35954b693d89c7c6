"""Closing a budget on a make-believe network whose losses are known."""

import itertools
import math

import pytest

from converter.search.candidates import Option
from converter.search.search import (
    MORE,
    Constraints,
    SearchSpace,
    Trial,
    close,
    improve,
    reach,
    total_ms,
)


def options(*errors_and_ms):
    """To do nothing, and other forms with (error, ms); MACs are a thousand times the ms."""
    others = [
        Option("spatial", (n,), e, int(1000 * t), t) for n, (e, t) in enumerate(errors_and_ms)
    ]
    return [Option(None, None, 0.0, 10_000, 10.0), *others]


MENU = SearchSpace(
    {
        "a": options((0.1, 8.0), (0.2, 5.0), (0.4, 3.0), (0.8, 1.0)),
        "b": options((0.05, 9.0), (0.1, 6.0), (0.2, 4.0), (0.5, 2.0)),
        "c": options((0.3, 5.0), (0.6, 2.0)),
    },
    {"a": 1.0, "b": 2.0, "c": 0.5},
)


def loss(choice):
    return sum(MENU.weights[name] * option.rel_error**2 for name, option in choice.items())


def test_the_quickest_keeps_to_the_loss():
    for most in (0.0, 0.01, 0.1, 0.5, 5.0):
        choice = MENU.min_latency(most, Constraints())
        assert loss(choice) <= most + 1e-6
    assert all(option.form is None for option in MENU.min_latency(0.0, Constraints()).values())
    assert MENU.min_latency(5.0, Constraints()) == MENU.fastest()


def test_the_gentlest_keeps_to_time_and_work():
    assert total_ms(MENU.min_loss(Constraints(ms=15.0))) <= 15.0
    both = MENU.min_loss(Constraints(ms=20.0, macs=12_000))
    assert sum(option.macs for option in both.values()) <= 12_000
    assert MENU.min_loss(Constraints(ms=4.9)) is None
    assert MENU.min_loss(Constraints(macs=MENU.least_macs())) is not None


def test_what_gains_nothing_or_is_beaten_is_left_out():
    crowded = SearchSpace(
        {"a": options((0.1, 9.9), (0.2, 5.0), (0.3, 6.0), (0.3, 4.0))}, {"a": 1.0}
    )
    assert [o.rel_error for o in crowded.sensible().options["a"]] == [0.0, 0.2, 0.3]
    assert [o.ms for o in crowded.sensible().options["a"]] == [10.0, 5.0, 4.0]


@pytest.mark.parametrize("growth", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("first", [1e-4, 0.1, 3.0])
def test_the_budget_is_closed_on_what_is_really_lost(growth, first):
    def value(choice):  # losses of several layers do more than add up
        return growth * loss(choice) ** 1.3 / 0.3

    best, trials = close(MENU, Constraints(), first, dict, value, 6)
    assert len(trials) <= 6 or all(value(t.choice) > 1 for t in trials[:6])
    assert len(trials) <= 6 + MORE
    within = [t for t in trials if value(t.choice) <= 1]
    if not within:
        assert best is None
        return
    assert best.value <= 1
    assert total_ms(best.choice) == min(total_ms(t.choice) for t in within)


def test_a_limit_that_nothing_reaches_ends_at_the_fastest():
    best, _ = close(MENU, Constraints(), 1e-3, dict, lambda choice: 1e-6, 6)
    assert best.choice == MENU.fastest()


def test_a_limit_that_nothing_keeps_leaves_the_original_last():
    best, trials = close(MENU, Constraints(), 1.0, dict, lambda choice: 1e6 * (loss(choice) + 1), 6)
    assert best is None
    budgets = [trial.budget for trial in trials]
    assert budgets == sorted(budgets, reverse=True)


@pytest.mark.parametrize("truth", [0.7, 1.0, 1.2, 1.5])
def test_a_speedup_is_reached_for_the_least_loss(truth):
    """The network is really ``truth`` times as fast as the table says."""

    def measured(choice):
        return truth * 30.0 / total_ms(choice)

    target = 1.8
    choice, speedup = reach(MENU, lambda s: Constraints(ms=30.0 / s), target, measured)
    assert speedup == measured(choice) >= target
    assert loss(choice) < loss(MENU.fastest())
    every = [dict(zip(MENU.options, o)) for o in itertools.product(*MENU.options.values())]
    assert loss(choice) <= 1.1 * min(loss(c) for c in every if measured(c) >= 1.02 * target)


@pytest.mark.parametrize("truth", [0.76, 0.9])
def test_a_coarse_menu_is_searched_to_its_end(truth):
    coarse = SearchSpace({"a": options((0.1, 4.0), (0.5, 2.0))}, {"a": 1.0})
    raced = []

    def measured(choice):
        raced.append(choice)
        return truth * 10.0 / total_ms(choice)

    choice, speedup = reach(coarse, lambda s: Constraints(ms=10.0 / s), 2.0, measured)
    assert speedup == measured(choice) >= 2.0
    assert choice == (coarse.fastest() if truth < 0.8 else raced[0])
    assert len(raced) <= 4


@pytest.mark.parametrize(("really_ms", "least_error"), [(2.05, 0.1), (2.8, 0.4)])
def test_an_option_that_is_faster_than_the_tables_say_is_found(really_ms, least_error):
    menu = SearchSpace(
        {"a": options((0.4, 2.0), (0.1, 2.8)), "b": options((0.2, 2.0), (0.1, 2.1), (0.05, 2.3))},
        {"a": 0.1, "b": 1.0},
    )
    mistaken = menu.options["a"][2]

    def measured(choice):
        ms = {name: really_ms if o is mistaken else o.ms for name, o in choice.items()}
        return 20.0 / sum(ms.values())

    choice, speedup = reach(menu, lambda s: Constraints(ms=20.0 / s), 4.4, measured)
    assert speedup == measured(choice) >= 4.4
    assert choice["a"].rel_error == least_error


def test_what_is_gentler_keeps_to_the_work_that_is_allowed():
    menu = SearchSpace({"a": options((0.4, 4.0), (0.1, 5.0))}, {"a": 1.0})
    most = Constraints(macs=4_500)

    def measured(choice):
        assert sum(option.macs for option in choice.values()) <= most.macs
        return 3.0

    choice, _ = reach(menu, lambda s: most, 2.0, measured)
    assert choice["a"].rel_error == 0.4


def test_a_speedup_out_of_reach_gives_the_fastest():
    def measured(choice):
        return 30.0 / total_ms(choice)

    choice, speedup = reach(MENU, lambda s: Constraints(ms=30.0 / s), 50.0, measured)
    assert choice == MENU.fastest()
    assert speedup == pytest.approx(6.0)
    assert math.isfinite(speedup)


def test_few_trials_are_not_the_end_while_none_is_within():
    def value(choice):
        return 40 * loss(choice)

    best, trials = close(MENU, Constraints(), 1.0, dict, value, 1)
    assert value(trials[0].choice) > 1
    assert best is not None and best.value <= 1 and len(trials) <= 1 + MORE
    assert sum(trial.value <= 1 for trial in trials) == 1


def test_other_guesses_of_what_is_lost_only_make_it_faster():
    wrong = SearchSpace(MENU.options, {"a": 10.0, "b": 0.1, "c": 0.5})  # of what is lost, that is

    def value(choice):
        return loss(choice) / 0.3

    best, _ = close(wrong, Constraints(), 0.3, dict, value, 6)
    better = improve([MENU], Constraints(), best, dict, value, 3)
    assert better.value <= 1 and total_ms(better.choice) < total_ms(best.choice)
    assert improve([MENU], Constraints(), better, dict, value, 0) == better


def test_what_other_guesses_lose_too_much_by_is_not_taken():
    choice = MENU.min_latency(0.3, Constraints())
    best = Trial(choice, choice, 1.0, 0.3)
    assert improve([MENU], Constraints(), best, dict, lambda built: loss(built) / 0.3, 5) == best
