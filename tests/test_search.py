"""The search on a network whose losses and times are known: its spaces, steps and drafts."""

import pytest
from search_cases import EVERY, SPACE, candidates, effort, loss, measures, ms

from converter.search.candidates import Candidate
from converter.search.drafts import DRAFT_EFFORT, DRAFT_EXCESS
from converter.search.search import EXTRA_TRIALS, search, stay_within
from converter.search.search_space import SearchSpace, spaces_by_prior
from converter.search.trials import TIGHT, Effort, Limits, Measures


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
