"""Converting and training in several steps: the options and the network of each step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from converter.graph.canonicalize import canonicalize
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.input_shapes import free_axes
from converter.models.source import Source, examples
from converter.options import Options
from converter.search.budgets import budgets_of
from converter.search.plan import Plan


def split_schedule(options: Options) -> list[Options]:
    """Return the options of each step of ``--schedule``: a part of the budget and of the epochs.

    Remaining MACs, bytes and time fall by the same factor in every step. Drop and error grow by
    the same amount.
    """
    total = options.training.schedule
    if total == 1:
        return [options]
    steps = []
    for number in range(1, total + 1):
        budgets = [budget.step(number, total) for budget in budgets_of(options.budget)]
        limits = {b.option: b.limit if b.limit < math.inf else None for b in budgets}
        epochs: dict[str, Any] = {}
        for name in ("epochs", "reconstruct"):
            all_epochs = getattr(options.training, name)
            epochs[name] = all_epochs * number // total - all_epochs * (number - 1) // total
        steps.append(options.changed(schedule=1, **limits, **epochs))
    return steps


def increment(step: Options, options: Options) -> Options:
    """Return the options of one step's search: limits on loss count from the step before it."""
    total = options.training.schedule
    losses = [budget for budget in budgets_of(options.budget) if budget.column == "loss"]
    return step.changed(**{budget.option: budget.limit / total for budget in losses})


def compose_chains(source: Source, module: nn.Module | None, plan: Plan) -> Source:
    """Multiply trained chains out to dense convolutions, for the next step of a schedule.

    Args:
        source: The network at the start of the step that ends.
        module: The converted and trained torch model of that step.
        plan: The plan of that step.
    """
    if module is None or source.module is None or not plan.chosen():
        return source
    composed = torch_network.dense(source.module, module, plan.chosen())
    feeds, free = examples(source, 0, 1), free_axes(source.inputs)
    network = torch_export.export(composed, feeds, free)
    return replace(source, module=composed, original=network, network=canonicalize(network))
