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
        bias: The part of the standard error that more examples do not lower.
    """

    lost: float
    standard_error: float
    examples: int
    bias: float = 0.0

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
        """Return about how many examples would decide; infinite if the loss is at the limit.

        It is at the limit, too, if the bias alone reaches from one to the other.
        """
        remaining = ((limit - self.lost) / Z_95) ** 2 - self.bias**2
        if remaining <= 0:
            return math.inf
        return math.ceil(self.examples * (self.standard_error**2 - self.bias**2) / remaining)


@dataclass(frozen=True)
class Unseen:
    """What inputs that no layer was fit to show of a converted network.

    Attributes:
        lost: Loss of the tasks; None if no such inputs were scored.
        output_error: RMS error over standard deviation, of the worst channel; None as above.
        accuracy: Accuracy of the original, of which a relative limit is a share; None for 1.
    """

    lost: Estimate | None = None
    output_error: float | None = None
    accuracy: float | None = None


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
    bias = EXPECTED_BIAS * lost
    standard_error = max(math.hypot(standard_error, bias), UNSEEN / examples)
    return Estimate(lost, standard_error, examples, bias)


def combined(estimates: Sequence[Estimate]) -> Estimate:
    """Average estimates of one loss by the inverse squares of their standard errors."""
    best = min(estimates, key=lambda e: e.standard_error)
    if best.standard_error == 0 or math.isinf(best.standard_error):
        return best
    weights = [e.standard_error**-2 for e in estimates]
    shares = [weight / sum(weights) for weight in weights]
    lost = sum(share * e.lost for share, e in zip(shares, estimates))
    bias = math.hypot(*(share * e.bias for share, e in zip(shares, estimates)))
    return Estimate(lost, sum(weights) ** -0.5, max(e.examples for e in estimates), bias)
