"""The learning rate is found by climbing, and stays within bounds."""

import pytest

from converter.tuning.rate import FIRST, RATES, find_lr


@pytest.mark.parametrize("best", RATES)
def test_the_best_rate_is_found_with_few_trials(best):
    tried = []

    def trial(lr):
        tried.append(lr)
        return abs(RATES.index(lr) - RATES.index(best))

    assert find_lr(trial) == best
    assert len(tried) == len(set(tried)) <= abs(RATES.index(best) - FIRST) + 3


def test_where_every_step_does_harm_the_smallest_are_taken():
    assert find_lr(lambda lr: lr) == RATES[0]
