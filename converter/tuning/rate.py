"""How fast to learn, found by short trainings: a network that lost little must move little.

Adam's steps are as long as the learning rate says however small the gradient is, so that what wins
half of a network's knowledge back makes another, that lost a hundredth of it, worse.
"""

from __future__ import annotations

from collections.abc import Callable

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
FIRST = RATES.index(3e-4)


def find_lr(trial: Callable[[float], float]) -> float:
    """Climb the learning rates up, else down, from the usual one, until the next is no better.

    Args:
        trial: Trains with a highest learning rate for a little while, and says what is lost then.
    """
    losses = {FIRST: trial(RATES[FIRST])}
    for way in (1, -1):
        number = FIRST + way
        while 0 <= number < len(RATES):
            losses[number] = trial(RATES[number])
            if losses[number] >= losses[number - way]:
                break
            number += way
        if min(losses, key=losses.__getitem__) != FIRST:
            break
    return RATES[min(losses, key=losses.__getitem__)]
