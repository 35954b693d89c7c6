"""Verdicts on all budgets, and the sentences that say which could not be kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

from converter.evaluation.comparison import Figures
from converter.evaluation.verdict import Unseen, Verdict
from converter.options import option_text
from converter.search.budgets import Budget, MaxDrop
from converter.search.measured import Original
from converter.search.search_space import SearchSpace
from converter.search.trials import Built, Limits, Outcome

COLUMNS = {"macs": "MACs", "bytes": "bytes"}
MAX_NEEDED = 1e6  # examples; more than that are not asked for


def miss_sentence(
    outcome: Outcome[Built],
    budgets: Sequence[Budget],
    space: SearchSpace,
    limits: Limits,
    original: Original,
) -> str | None:
    """Say which budget cannot be kept, and the best value of each under the others.

    Args:
        outcome: The result of a search that did not keep every limit.
        budgets: The budgets of the search.
        space: The candidates.
        limits: The limits of the search.
        original: The original network, which budgets are shares of.

    Returns:
        The sentence, or None if only the final race can tell.
    """
    beyond = [_beyond_tables(budget, space, limits, original) for budget in budgets]
    if any(beyond):
        return " ".join(filter(None, beyond))
    if len(budgets) > 1 and (sentence := _conflict(outcome, budgets)) is not None:
        return sentence
    target = next((budget for budget in budgets if budget.column == "ms"), None)
    if target is not None and outcome.best.usage.get(target.option, 0.0) > 1:
        if outcome.best.assignment != space.least("ms") or outcome.best.speedup is None:
            return None
        fixed = _fixed_time(original, limits, space)
        return (
            f"A speedup of {target.limit:g}x is out of reach: with every layer in its fastest form "
            f"the network is {outcome.best.speedup:.2f}x as fast ({fixed})."
        )
    usage = outcome.best.usage
    worst = max(budgets, key=lambda budget: usage.get(budget.option, 0.0))
    if worst.column in COLUMNS:
        left = worst.describe(worst.value_at(usage[worst.option]))
        return f"In the best network found, {left}."
    return (
        f"The best network found loses {outcome.best.worst:.2f} times what "
        f"{option_text(worst.option)} {worst.limit:g} allows."
    )


def _beyond_tables(
    budget: Budget, space: SearchSpace, limits: Limits, original: Original
) -> str | None:
    """Say that even the least possible sum of a column is above its limit."""
    column = budget.column
    if column not in limits.sums:
        return None
    least = space.total(space.least(column), column)
    if least <= limits.sums[column]:
        return None
    total = {"macs": original.macs, "bytes": original.bytes}[column]
    fixed = budget.allowance(original) - limits.sums[column]  # of the layers that stay as they are
    share = (fixed + least) / max(total, 1)
    name = f"{option_text(budget.option)} {budget.limit:g}"
    return (
        f"{name} is out of reach: no choice of faster forms leaves less than {share:.2f} of the "
        f"{COLUMNS[column]}."
    )


def _conflict(outcome: Outcome[Built], budgets: Sequence[Budget]) -> str | None:
    """Say of each budget without which the others are kept its best value in that case."""
    parts = []
    for budget in budgets:
        others = {other.option for other in budgets} - {budget.option}
        usages = [
            trial.usage[budget.option]
            for trial in outcome.trials
            if budget.option in trial.usage
            and all(trial.usage.get(option, math.inf) <= 1 for option in others)
        ]
        if usages:
            best = budget.describe(budget.value_at(min(usages)))
            name = f"{option_text(budget.option)} {budget.limit:g}"
            parts.append(f"without {name} the others are kept, and at best {best}")
    if not parts:
        return None
    return f"No network found keeps all budgets: {'; '.join(parts)}."


def _fixed_time(original: Original, limits: Limits, space: SearchSpace) -> str:
    fixed_ms = original.ms - limits.ms_at(1.0)
    share = fixed_ms / (fixed_ms + space.total(space.unchanged(), "ms"))  # in int8, if requested
    return f"no form shortens {max(share, 0):.0%} of its time"


def verdict_of(
    budgets: Sequence[Budget], before: Figures, after: Figures, unseen: Unseen
) -> Verdict | None:
    """Return the worst verdict of all budgets; None without budgets."""
    verdicts = {budget.verdict(before, after, unseen) for budget in budgets}
    order: tuple[Verdict, ...] = ("missed", "undecided", "kept")
    return next((verdict for verdict in order if verdict in verdicts), None)


def undecided_sentence(
    budgets: Sequence[Budget], before: Figures, after: Figures, unseen: Unseen
) -> str | None:
    """Say which budget the measurements leave open, and what would decide, or return None."""
    for budget in budgets:
        if budget.verdict(before, after, unseen) != "undecided":
            continue
        name = f"{option_text(budget.option)} {budget.limit:g}"
        if budget.column == "ms":
            low, high = after.speedup.low, after.speedup.high
            return f"{name} is undecided: the network is {low:.2f} to {high:.2f}x as fast."
        lost = unseen.lost
        if lost is None or not isinstance(budget, MaxDrop):
            return (
                f"{name} is undecided: there are no inputs to measure it on that no layer was fit "
                "to; give --eval."
            )
        needed = budget.examples_to_decide(before, unseen)
        more = f"; about {needed:,.0f} would decide" if needed < MAX_NEEDED else ""
        if not more and lost.bias:
            more = "; examples with labels (--eval) would decide"
        return (
            f"{name} is undecided: {100 * lost.lost:.2f} points are lost ({100 * lost.low:.2f} to "
            f"{100 * lost.high:.2f}) on {lost.examples} examples{more}."
        )
    return None


def missed_sentence(
    budgets: Sequence[Budget], before: Figures, after: Figures, unseen: Unseen, data: str
) -> str | None:
    """Say which budget a measured network misses, and by how much; None if it misses none."""
    for budget in budgets:
        if budget.verdict(before, after, unseen) == "missed":
            name = f"{option_text(budget.option)} {budget.limit:g}"
            value = budget.achieved(before, after, unseen)
            return f"{name} is missed on {data}: {budget.describe(value)}."
    return None
