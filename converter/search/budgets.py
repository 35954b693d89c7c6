"""Budgets: limits on loss, time, MACs and size, one class each.

A budget knows its limit on the candidate table, the share of it that a network uses, its part in a
schedule, and its sentence in the verdict. To add one, write its class here, list it in ``BUDGETS``
and give it a field in ``BudgetOptions``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, TypeVar

from converter.evaluation.comparison import Figures
from converter.evaluation.verdict import Unseen, Verdict
from converter.options import BudgetOptions
from converter.search.measured import Measured, Original

DEFAULT_DROP, DEFAULT_ERROR = 0.005, 0.05
Column = Literal["loss", "ms", "macs", "bytes"]
B = TypeVar("B", bound="Budget")


class Budget(Protocol):
    """One limit that the converted network has to keep."""

    option: ClassVar[str]
    column: ClassVar[Column]

    @property
    def limit(self) -> float:
        """The value of the option."""

    def allowance(self, original: Original) -> float:
        """Return the limit on the network's sum of ``column``; for the loss, a first guess."""

    def usage(self, measured: Measured, original: Original) -> float:
        """Return the share of the limit that a network uses; at most 1 keeps it, 0 if unknown."""

    def step(self: B, number: int, count: int) -> B:
        """Return the budget of step ``number`` (from 1) of a schedule of ``count`` steps."""

    def achieved(self, before: Figures, after: Figures, unseen: Unseen) -> float:
        """Return the measured value to compare with the limit."""

    def value_at(self, usage: float) -> float:
        """Return the measured value at which a share ``usage`` of the limit is used."""

    def verdict(self, before: Figures, after: Figures, unseen: Unseen) -> Verdict:
        """Say whether a measured network keeps the limit, and whether that is sure."""

    def describe(self, value: float) -> str:
        """Say a measured value in words."""


@dataclass(frozen=True)
class _AtMost:
    """A limit that a value must not exceed; in a schedule, losses add up over the steps."""

    limit: float

    def step(self: A, number: int, count: int) -> A:
        return replace(self, limit=self.limit * number / count)

    def value_at(self, usage: float) -> float:
        return self.limit * usage

    def verdict(self: A, before: Figures, after: Figures, unseen: Unseen) -> Verdict:
        kept = self.achieved(before, after, unseen) <= self.limit  # type: ignore[attr-defined]
        return "kept" if kept else "missed"


A = TypeVar("A", bound=_AtMost)


@dataclass(frozen=True)
class MaxDrop(_AtMost):
    """Accuracy that may be lost, a fraction; relative to the original's if ``relative``."""

    option: ClassVar[str] = "max_drop"
    column: ClassVar[Column] = "loss"
    relative: bool = False

    def allowance(self, original: Original) -> float:
        return self.limit / original.drop_per_loss if original.drop_per_loss > 0 else math.inf

    def usage(self, measured: Measured, original: Original) -> float:
        drop, limit, doubt = measured.drop, self.max_lost(original.accuracy), original.least_doubt
        if drop is None and measured.loss is not None:
            # With too few examples to decide anything, the limit is kept but for that doubt.
            drop = measured.loss.estimate.high - (doubt if doubt > limit else 0.0)
        return 0.0 if drop is None else drop / limit

    def achieved(self, before: Figures, after: Figures, unseen: Unseen) -> float:
        if unseen.lost is None:
            return math.nan
        return self.limit * unseen.lost.lost / self._max_lost(before, unseen)

    def verdict(self, before: Figures, after: Figures, unseen: Unseen) -> Verdict:
        if unseen.lost is None:
            return "undecided"
        return unseen.lost.verdict(self._max_lost(before, unseen))

    def examples_to_decide(self, before: Figures, unseen: Unseen) -> float:
        """Return about how many examples would decide; infinite if none can."""
        if unseen.lost is None:
            return math.inf
        return unseen.lost.examples_to_decide(self._max_lost(before, unseen))

    def describe(self, value: float) -> str:
        return f"it loses {100 * value:.2f} {'% of the score' if self.relative else 'points'}"

    def _max_lost(self, before: Figures, unseen: Unseen) -> float:
        return self.max_lost(unseen.accuracy if before.accuracy is None else before.accuracy)

    def max_lost(self, accuracy: float | None) -> float:
        """Return the loss that is allowed, a fraction, given the original's accuracy."""
        return self.limit * (abs(accuracy or 1.0) if self.relative else 1.0)


@dataclass(frozen=True)
class MaxError(_AtMost):
    """Relative output error that may be made, of the worst output."""

    option: ClassVar[str] = "max_error"
    column: ClassVar[Column] = "loss"

    def allowance(self, original: Original) -> float:
        return self.limit**2 / (original.squared_error_per_loss or 1.0)

    def usage(self, measured: Measured, original: Original) -> float:
        return 0.0 if measured.loss is None else measured.loss.output_error / self.limit

    def achieved(self, before: Figures, after: Figures, unseen: Unseen) -> float:
        error = unseen.output_error
        return after.rel_output_error if error is None else error

    def verdict(self, before: Figures, after: Figures, unseen: Unseen) -> Verdict:
        if not self.achieved(before, after, unseen) <= self.limit:
            return "missed"
        # The error is smaller on inputs that layers were fit to, or means nothing on random ones.
        return "undecided" if unseen.output_error is None else "kept"

    def describe(self, value: float) -> str:
        return f"its relative output error is {value:.3g}"


@dataclass(frozen=True)
class TargetSpeedup:
    """How much faster the network must become."""

    option: ClassVar[str] = "target_speedup"
    column: ClassVar[Column] = "ms"
    limit: float

    def allowance(self, original: Original) -> float:
        return original.ms / self.limit

    def usage(self, measured: Measured, original: Original) -> float:
        return 0.0 if measured.speedup is None else self.limit / measured.speedup

    def step(self, number: int, count: int) -> TargetSpeedup:
        return TargetSpeedup(self.limit ** (number / count))

    def achieved(self, before: Figures, after: Figures, unseen: Unseen) -> float:
        return after.speedup.median

    def value_at(self, usage: float) -> float:
        return self.limit / usage

    def verdict(self, before: Figures, after: Figures, unseen: Unseen) -> Verdict:
        if after.speedup.low >= self.limit:
            return "kept"
        return "missed" if after.speedup.high < self.limit else "undecided"

    def describe(self, value: float) -> str:
        return f"it is {value:.2f}x as fast"


@dataclass(frozen=True)
class MaxMacs(_AtMost):
    """Share of the original's multiply-accumulates that may be left."""

    option: ClassVar[str] = "max_macs"
    column: ClassVar[Column] = "macs"

    def allowance(self, original: Original) -> float:
        return self.limit * original.macs

    def usage(self, measured: Measured, original: Original) -> float:
        left = measured.macs
        return 0.0 if left is None else left / (self.limit * max(original.macs, 1))

    def step(self, number: int, count: int) -> MaxMacs:
        return MaxMacs(self.limit ** (number / count))

    def achieved(self, before: Figures, after: Figures, unseen: Unseen) -> float:
        return after.macs / (before.macs or 1)

    def describe(self, value: float) -> str:
        return f"{value:.3f} of the MACs are left"


@dataclass(frozen=True)
class MaxBytes(_AtMost):
    """Size of the ONNX file that may be left: a share of the original's, or bytes from 1 on."""

    option: ClassVar[str] = "max_bytes"
    column: ClassVar[Column] = "bytes"

    def _max_bytes(self, original: float) -> float:
        return self.limit * original if self.limit < 1 else self.limit

    def allowance(self, original: Original) -> float:
        return self._max_bytes(original.bytes)

    def usage(self, measured: Measured, original: Original) -> float:
        left = measured.bytes
        return 0.0 if left is None else left / self._max_bytes(original.bytes)

    def step(self, number: int, count: int) -> MaxBytes:
        # The original's size is not known here, so a number of bytes only holds in the last step.
        if self.limit >= 1:
            return self if number == count else MaxBytes(math.inf)
        return MaxBytes(self.limit ** (number / count))

    def achieved(self, before: Figures, after: Figures, unseen: Unseen) -> float:
        return after.bytes / (before.bytes or 1) if self.limit < 1 else float(after.bytes)

    def describe(self, value: float) -> str:
        size = f"{value:.3f} of the bytes" if self.limit < 1 else f"{value:.0f} bytes"
        return f"{size} are left"


BUDGETS: tuple[type[Budget], ...] = (MaxDrop, MaxError, TargetSpeedup, MaxMacs, MaxBytes)


def budgets_of(options: BudgetOptions) -> tuple[Budget, ...]:
    """List the budgets that are set in the options."""
    return make_budgets(
        {b.option: v for b in BUDGETS if (v := getattr(options, b.option)) is not None},
        relative=options.drop_type == "relative",
    )


def make_budgets(limits: Mapping[str, float], relative: bool = False) -> tuple[Budget, ...]:
    """Make budgets from limits by option name, as a report records them.

    Raises:
        ValueError: When there is no such budget.
    """
    kinds = {budget.option: budget for budget in BUDGETS}
    if unknown := sorted(limits.keys() - kinds.keys()):
        raise ValueError(f"there is no budget {', '.join(unknown)}")
    return tuple(
        MaxDrop(limit, relative) if option == MaxDrop.option else kinds[option](limit)  # type: ignore[call-arg]
        for option, limit in limits.items()
    )


def default_budget(judged_as_numbers: bool, options: BudgetOptions) -> Budget:
    """Return the budget of a search without a given budget.

    Args:
        judged_as_numbers: Whether no task but ``regress`` was found.
        options: They say whether a drop is relative.
    """
    if judged_as_numbers:
        return MaxError(DEFAULT_ERROR)
    return MaxDrop(DEFAULT_DROP, options.drop_type == "relative")


def limits_of(budgets: Sequence[Budget]) -> dict[str, float]:
    """Return the limits by option name, as a report records them."""
    return {budget.option: budget.limit for budget in budgets}
