"""``Verdict``: whether a limit is kept, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from converter.evaluation.tasks.task import Judgement

Verdict = Literal["kept", "missed", "undecided"]
Z_95 = 1.645  # standard errors to a one-sided 95 % bound
EXPECTED_BIAS = 0.25  # share by which an expected loss may be wrong however many examples there are
UNSEEN = 0.25  # changes that no example shows although they happen


@dataclass(frozen=True)
class Estimate:
    """A loss with its standard error, from one source or several.

    Attributes:
        lost: The loss, a fraction.
        standard_error: Its standard error.
        examples: Number of examples.
    """

    lost: float
    standard_error: float
    examples: int

    @property
    def low(self) -> float:
        """Lower bound at 95 % confidence."""
        return self.lost - Z_95 * self.standard_error

    @property
    def high(self) -> float:
        """Upper bound at 95 % confidence."""
        return self.lost + Z_95 * self.standard_error

    def verdict(self, limit: float) -> Verdict:
        """Compare the loss with a limit."""
        if self.high <= limit:
            return "kept"
        return "missed" if self.low > limit else "undecided"

    def examples_to_decide(self, limit: float) -> float:
        """Return about how many examples would decide; infinite if the loss is at the limit."""
        distance = abs(limit - self.lost)
        share = Z_95 * self.standard_error / distance if distance else math.inf
        return math.inf if math.isinf(share) else math.ceil(self.examples * share**2)


def estimate(judgement: Judgement, examples: int) -> Estimate:
    """Combine the counted loss with the expected one for the same examples, if there is one.

    Each counts by the inverse of its squared error. The expected loss relies on the original's
    probabilities, so its error never falls below ``EXPECTED_BIAS`` of it.
    """
    labelled = judgement.score_before is not None
    # A count of no change at all still leaves about one change in as many examples possible.
    least = (1 if labelled else UNSEEN) / examples
    counted = Estimate(judgement.lost, max(judgement.standard_error, least), examples)
    if judgement.expected is None:
        return counted
    predicted = expected_estimate(*judgement.expected, examples)
    return combined([counted, predicted]) if labelled else predicted


def expected_estimate(lost: float, standard_error: float, examples: int) -> Estimate:
    """Return the estimate of a loss that the original's probabilities predict."""
    standard_error = math.hypot(standard_error, EXPECTED_BIAS * lost)
    return Estimate(lost, max(standard_error, UNSEEN / examples), examples)


def combined(estimates: Sequence[Estimate]) -> Estimate:
    """Average estimates of one loss by the inverse squares of their standard errors."""
    best = min(estimates, key=lambda e: e.standard_error)
    if best.standard_error == 0 or math.isinf(best.standard_error):
        return best
    weights = [e.standard_error**-2 for e in estimates]
    lost = sum(w * e.lost for w, e in zip(weights, estimates)) / sum(weights)
    return Estimate(lost, sum(weights) ** -0.5, max(e.examples for e in estimates))
