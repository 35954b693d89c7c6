"""The multiple-choice knapsack against brute force."""

import ctypes
import itertools

import numpy as np
from conv_cases import FEW
from hypothesis import given
from hypothesis import strategies as st

from converter.search.knapsack import Limit, _silent_stdout, choose


@FEW
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_the_choice_is_the_best_of_all(seed, sizes):
    rng = np.random.default_rng(seed)
    goal, cost = ([rng.integers(0, 50, n).astype(float) for n in sizes] for _ in range(2))
    most = float(rng.integers(0, 30 * len(sizes)))
    allowed = [
        sum(g[n] for g, n in zip(goal, numbers))
        for numbers in itertools.product(*map(range, sizes))
        if sum(c[n] for c, n in zip(cost, numbers)) <= most
    ]
    found = choose(goal, [Limit(cost, most)])
    if not allowed:
        assert found is None
        return
    assert sum(c[n] for c, n in zip(cost, found)) <= most + 1e-6
    assert sum(g[n] for g, n in zip(goal, found)) <= min(allowed) * (1 + 1e-3) + 1e-9


def test_two_limits_hold_together():
    goal = [np.array([0.0, 1.0, 5.0])]
    limits = [Limit([np.array([9.0, 4.0, 1.0])], 5.0), Limit([np.array([1.0, 9.0, 2.0])], 5.0)]
    assert choose(goal, limits) == [2]


def test_nothing_to_choose():
    assert choose([], []) == []


def test_what_the_solver_prints_stays_off_standard_output(capfd):
    print("before", flush=True)
    with _silent_stdout():
        ctypes.CDLL(None).puts(b"debug")
    print("after", flush=True)
    assert capfd.readouterr().out.split() == ["before", "after"]
