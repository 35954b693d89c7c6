"""Convert, tune, convert again: what each step of a schedule may lose, and what it goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from converter.evaluation.verify import Conversion
from converter.graph.canonicalize import canonicalize
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.input_shapes import free_axes
from converter.models.source import Source, examples
from converter.options import Options


def split_schedule(options: Options) -> list[Options]:
    """Give the options of each step of ``--schedule``: a part of the budget and of the epochs.

    What is left, of operations or time, falls by the same factor in every step.
    """
    found = []
    for number in range(1, options.training.schedule + 1):
        share = number / options.training.schedule
        changes: dict[str, Any] = {
            name: options.limits[name] ** share
            for name in ("target_speedup", "max_macs")
            if name in options.limits
        }
        changes |= {
            name: options.limits[name] * share
            for name in ("max_drop", "max_error")
            if name in options.limits
        }
        for name in ("epochs", "reconstruct"):
            done = [
                getattr(options.training, name) * n // options.training.schedule
                for n in (number - 1, number)
            ]
            changes[name] = done[1] - done[0]
        found.append(
            options.changed(schedule=1, **changes) if options.training.schedule > 1 else options
        )
    return found


def increment(stage: Options, options: Options) -> Options:
    """Give the options of a search within a schedule: what it may lose more than was lost."""
    if options.training.schedule == 1:
        return stage
    names = [name for name in ("max_drop", "max_error") if name in options.limits]
    return stage.changed(
        **{name: options.limits[name] / options.training.schedule for name in names}
    )


def compose_chains(source: Source, conversion: Conversion, options: Options) -> Source:
    """Write a trained conversion as dense convolutions again, for the next step of a schedule."""
    if conversion.module is None or source.module is None or not conversion.plan.chosen():
        return source
    module = torch_network.dense(source.module, conversion.module, conversion.plan.chosen())
    feeds, free = examples(source, options.resources.seed, 1), free_axes(source.inputs)
    network = torch_export.export(module, feeds, free)
    return replace(source, module=module, original=network, network=canonicalize(network))
