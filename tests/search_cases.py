"""A search space whose losses and times are known, and measures that sum them."""

import itertools

from converter.search.candidates import Candidate
from converter.search.search_space import SearchSpace
from converter.search.trials import TIGHT, Effort, Measures


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
