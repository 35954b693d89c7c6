"""The search on a network whose losses and times are known."""

import itertools
import math

import pytest

from converter.search.candidates import Candidate
from converter.search.drafts import DRAFT_EFFORT, DRAFT_EXCESS
from converter.search.search import EXTRA_TRIALS, search, stay_within
from converter.search.search_space import SearchSpace, spaces_by_prior
from converter.search.speedup import reach_speedup
from converter.search.trials import TIGHT, Effort, Limits, Measures


def candidates(*errors_and_ms):
    """To do nothing, and other forms with (error, ms); MACs are a thousand times the ms."""
    others = [
        Candidate("spatial", (n,), e, int(1000 * t), int(100 * t), t)
        for n, (e, t) in enumerate(errors_and_ms)
    ]
    return [Candidate(None, None, 0.0, 10_000, 1000, 10.0), *others]


SPACE = SearchSpace(
    {
        "a": candidates((0.1, 8.0), (0.2, 5.0), (0.4, 3.0), (0.8, 1.0)),
        "b": candidates((0.05, 9.0), (0.1, 6.0), (0.2, 4.0), (0.5, 2.0)),
        "c": candidates((0.3, 5.0), (0.6, 2.0)),
    },
    {"a": 1.0, "b": 2.0, "c": 0.5},
)
EVERY = [dict(zip(SPACE.candidates, o)) for o in itertools.product(*SPACE.candidates.values())]


def loss(assignment):
    return SPACE.total(assignment, "loss")


def ms(assignment):
    return SPACE.total(assignment, "ms")


def measures(usage=lambda built: {}, speedup=lambda assignment: 30.0 / ms(assignment)):
    """Networks are their assignments."""
    return Measures(lambda assignment, near, effort: dict(assignment), usage, speedup, loss)


def effort(trials=6, improve=0):
    return Effort(trials, TIGHT, improve)


def within(value, first, trials=6, space=SPACE, sums=None):
    """Walk to the fastest network whose ``value`` is at most 1."""
    limits = Limits(loss=first, sums=sums or {})
    return stay_within(
        space, limits, measures(lambda built: {"loss": value(built)}), effort(trials)
    )


def best_of(trials):
    return min((t for t in trials if t.worst <= 1), key=lambda t: ms(t.assignment), default=None)


def test_the_least_time_keeps_to_the_loss():
    for limit in (0.0, 0.01, 0.1, 0.5, 5.0):
        assignment = SPACE.minimize("ms", {"loss": limit})
        assert loss(assignment) <= limit + 1e-6
        assert ms(assignment) == min(ms(a) for a in EVERY if loss(a) <= limit + 1e-9)
    assert SPACE.minimize("ms", {"loss": 0.0}) == SPACE.unchanged()
    assert SPACE.minimize("ms", {"loss": 5.0}) == SPACE.least("ms")


def test_the_least_loss_keeps_to_time_and_macs():
    assert ms(SPACE.minimize("loss", {"ms": 15.0})) <= 15.0
    both = SPACE.minimize("loss", {"ms": 20.0, "macs": 12_000})
    assert SPACE.total(both, "macs") <= 12_000
    assert SPACE.minimize("loss", {"ms": 4.9}) is None
    least = SPACE.total(SPACE.least("macs"), "macs")
    assert SPACE.minimize("loss", {"macs": least}) is not None


def test_candidates_that_gain_nothing_or_are_beaten_are_pruned():
    crowded = SearchSpace(
        {"a": candidates((0.1, 9.9), (0.2, 5.0), (0.3, 6.0), (0.3, 4.0))}, {"a": 1.0}
    )
    assert [c.rel_error for c in crowded.pruned().candidates["a"]] == [0.0, 0.2, 0.3]
    assert [c.ms for c in crowded.pruned().candidates["a"]] == [10.0, 5.0, 4.0]


def test_a_smaller_candidate_is_kept_where_bytes_count():
    small = Candidate("channel", (1,), 0.4, 5000, 10, 5.5)
    space = SearchSpace({"a": [*candidates((0.3, 5.0)), small]}, {"a": 1.0})
    assert small not in space.pruned().candidates["a"]
    assert small in space.pruned(("rel_error", "ms", "macs", "bytes")).candidates["a"]


def test_priors_keep_the_sum_of_the_weights():
    spaces = spaces_by_prior(SPACE.candidates, SPACE.weights, ("rel_error", "ms", "macs"), True)
    assert len(spaces) == 3
    for space in spaces:
        assert sum(space.weights.values()) == pytest.approx(sum(SPACE.weights.values()))
    (alone,) = spaces_by_prior(SPACE.candidates, SPACE.weights, ("rel_error", "ms"), False)
    assert alone.weights == pytest.approx(SPACE.weights)


@pytest.mark.parametrize("growth", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("first", [1e-4, 0.1, 3.0])
def test_the_measured_loss_comes_close_to_its_limit(growth, first):
    def value(assignment):  # losses of several layers do more than add up
        return growth * loss(assignment) ** 1.3 / 0.3

    trials = within(value, first)
    assert len(trials) <= 6 + EXTRA_TRIALS + 1
    best = best_of(trials)
    if best is None:
        assert all(value(trial.assignment) > 1 for trial in trials)
    else:
        assert value(best.assignment) <= 1


def test_a_limit_that_nothing_reaches_ends_at_the_fastest():
    assert best_of(within(lambda built: 1e-6, 1e-3)).assignment == SPACE.least("ms")


def test_allowances_fall_while_no_network_is_within_the_limit():
    trials = within(lambda built: 1e6 * (loss(built) + 1), 1.0)
    assert best_of(trials) is None
    allowances = [trial.allowance for trial in trials]
    assert allowances == sorted(allowances, reverse=True)


def test_few_trials_are_not_the_end_while_none_is_within():
    trials = within(lambda built: 40 * loss(built), 1.0, trials=1)
    assert trials[0].worst > 1
    assert trials[-1].worst <= 1 and len(trials) <= 1 + EXTRA_TRIALS
    assert sum(trial.worst <= 1 for trial in trials) == 1


def reached(space, target, measured, ms_at=lambda speedup: 30.0 / speedup, sums=None):
    limits = Limits(speedup=target, ms_at=ms_at, sums=sums or {}, goal="loss")
    return reach_speedup(space, limits, measured)


@pytest.mark.parametrize("truth", [0.7, 1.0, 1.2, 1.5])
def test_a_speedup_is_reached_for_the_least_loss(truth):
    """The network is really ``truth`` times as fast as the table says."""

    def measured(assignment):
        return truth * 30.0 / ms(assignment)

    target = 1.8
    best, *_ = reached(SPACE, target, measured)
    assert best.speedup == measured(best.assignment) >= target
    assert loss(best.assignment) < loss(SPACE.least("ms"))
    fast = [a for a in EVERY if measured(a) >= 1.02 * target]
    assert loss(best.assignment) <= 1.1 * min(map(loss, fast))


@pytest.mark.parametrize("truth", [0.76, 0.9])
def test_a_coarse_space_is_searched_to_its_end(truth):
    coarse = SearchSpace({"a": candidates((0.1, 4.0), (0.5, 2.0))}, {"a": 1.0})
    raced = []

    def measured(assignment):
        raced.append(assignment)
        return truth * 10.0 / coarse.total(assignment, "ms")

    best, *_ = reached(coarse, 2.0, measured, lambda speedup: 10.0 / speedup)
    assert best.speedup == measured(best.assignment) >= 2.0
    assert best.assignment == (coarse.least("ms") if truth < 0.8 else raced[0])
    assert len(raced) <= 4


@pytest.mark.parametrize(("really_ms", "least_error"), [(2.05, 0.1), (2.8, 0.4)])
def test_a_candidate_that_is_faster_than_the_tables_say_is_chosen(really_ms, least_error):
    space = SearchSpace(
        {
            "a": candidates((0.4, 2.0), (0.1, 2.8)),
            "b": candidates((0.2, 2.0), (0.1, 2.1), (0.05, 2.3)),
        },
        {"a": 0.1, "b": 1.0},
    )
    mistaken = space.candidates["a"][2]

    def measured(assignment):
        times = [really_ms if c is mistaken else c.ms for c in assignment.values()]
        return 20.0 / sum(times)

    best, *_ = reached(space, 4.4, measured, lambda speedup: 20.0 / speedup)
    assert best.speedup == measured(best.assignment) >= 4.4
    assert best.assignment["a"].rel_error == least_error


def test_swaps_keep_to_the_macs_that_are_allowed():
    space = SearchSpace({"a": candidates((0.4, 4.0), (0.1, 5.0))}, {"a": 1.0})

    def measured(assignment):
        assert space.total(assignment, "macs") <= 4_500
        return 3.0

    best, *_ = reached(space, 2.0, measured, lambda speedup: math.inf, {"macs": 4_500})
    assert best.assignment["a"].rel_error == 0.4


def test_a_speedup_out_of_reach_gives_the_fastest():
    best, *_ = reached(SPACE, 50.0, lambda assignment: 30.0 / ms(assignment))
    assert best.assignment == SPACE.least("ms")
    assert best.speedup == pytest.approx(6.0)


def test_other_priors_only_make_it_faster():
    wrong = SearchSpace(SPACE.candidates, {"a": 10.0, "b": 0.1, "c": 0.5})
    measure = measures(lambda built: {"max_drop": loss(built) / 0.3})
    limits = Limits(loss=0.3)
    alone = search([wrong], limits, measure, effort()).best
    helped = search([wrong, SPACE], limits, measure, effort(12, improve=3)).best
    assert helped.worst <= 1 and ms(helped.assignment) < ms(alone.assignment)


def test_a_prior_that_loses_too_much_is_not_taken():
    measure = measures(lambda built: {"max_drop": loss(built) / 0.3})
    alone = search([SPACE], Limits(loss=0.3), measure, effort()).best
    both = search([SPACE, SPACE], Limits(loss=0.3), measure, effort(12, improve=5)).best
    assert both.worst <= 1 and ms(both.assignment) <= ms(alone.assignment)


# drafts


class Counting:
    """Builds networks, and notes the effort of each; drafts lose more."""

    def __init__(self, most=0.3):
        self.efforts, self.most = [], most

    def measures(self):
        def build(assignment, near, effort):
            self.efforts.append(effort)
            return dict(assignment), effort

        def usage(built):
            return {"max_drop": (DRAFT_EXCESS if built[1] < 1 else 1) * loss(built[0]) / self.most}

        return Measures(
            build, usage, lambda assignment: 30.0 / ms(assignment), lambda b: loss(b[0])
        )


def test_a_search_begins_where_drafts_expect_the_limit():
    counting = Counting()
    far = search([SPACE], Limits(loss=3.0), counting.measures(), effort())
    assert far.kept and counting.efforts[0] == DRAFT_EFFORT
    full = counting.efforts.count(1.0)
    counting.efforts.clear()
    plain = search([SPACE], Limits(loss=3.0), counting.measures(), Effort(6, TIGHT, drafts=False))
    assert ms(far.best.assignment) <= ms(plain.best.assignment)
    assert set(counting.efforts) == {1.0} and len(counting.efforts) > full


def test_a_network_of_another_prior_whose_draft_loses_too_much_is_not_built():
    counting = Counting()
    search([SPACE], Limits(loss=0.3), counting.measures(), effort())
    alone = counting.efforts.count(1.0)
    counting.efforts.clear()
    worse = SearchSpace(SPACE.candidates, {"a": 0.0, "b": 1.0, "c": 1.0})
    outcome = search([SPACE, worse], Limits(loss=0.3), counting.measures(), effort(12, improve=1))
    assert outcome.kept and counting.efforts[-1] == DRAFT_EFFORT
    assert counting.efforts.count(1.0) == alone


def test_of_several_priors_only_the_best_draft_is_built_in_full():
    counting = Counting()
    wrong = SearchSpace(SPACE.candidates, {"a": 0.1, "b": 5.0, "c": 5.0})
    limits = Limits(sums={"macs": 15_000}, goal="loss")
    best = search([wrong, SPACE], limits, counting.measures(), effort()).best
    assert counting.efforts == [DRAFT_EFFORT, DRAFT_EFFORT, 1.0]
    alone = search([SPACE], limits, measures(), effort()).best
    assert best.assignment == alone.assignment


# several limits at once


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
