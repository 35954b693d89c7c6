"""Converting and training in several steps: the options of each, and the network it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from converter.evaluation.verify import Conversion
from converter.graph.canonicalize import canonicalize
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.source import Source, examples, free_axes
from converter.options import Options

FACTORS, AMOUNTS = ("target_speedup", "max_macs"), ("max_drop", "max_error")


def split_schedule(options: Options) -> list[Options]:
    """Return the options of each step of ``--schedule``: a part of the budget and of the epochs.

    The remaining operations, and the remaining time, fall by the same factor in every step. Drop
    and error grow by the same amount.
    """
    total = options.training.schedule
    if total == 1:
        return [options]
    steps = []
    for number in range(1, total + 1):
        part = number / total
        changes: dict[str, Any] = {n: v**part for n, v in options.limits.items() if n in FACTORS}
        changes |= {n: v * part for n, v in options.limits.items() if n in AMOUNTS}
        for name in ("epochs", "reconstruct"):
            epochs = getattr(options.training, name)
            changes[name] = epochs * number // total - epochs * (number - 1) // total
        steps.append(options.changed(schedule=1, **changes))
    return steps


def increment(step: Options, options: Options) -> Options:
    """Return the options of one step's search: what it may lose beyond the steps before it."""
    total = options.training.schedule
    if total == 1:
        return step
    return step.changed(**{n: v / total for n, v in options.limits.items() if n in AMOUNTS})


def compose_chains(source: Source, conversion: Conversion, options: Options) -> Source:
    """Multiply trained chains out to dense convolutions, for the next step of a schedule."""
    if conversion.module is None or source.module is None or not conversion.plan.chosen():
        return source
    module = torch_network.dense(source.module, conversion.module, conversion.plan.chosen())
    feeds, free = examples(source, options.resources.seed, 1), free_axes(source.inputs)
    network = torch_export.export(module, feeds, free)
    return replace(source, module=module, original=network, network=canonicalize(network))
