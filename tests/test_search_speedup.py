"""A speedup is reached for the least loss, also where tables and races disagree."""

import math

import pytest
from search_cases import EVERY, SPACE, candidates, loss, ms

from converter.search.search_space import SearchSpace
from converter.search.speedup import reach_speedup
from converter.search.trials import Limits


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
