"""Convert, tune, convert again: what each step of a schedule may lose, and what it goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from converter.evaluation.verify import Conversion
from converter.graph.canonicalize import canonicalize
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.source import Source, examples, free_axes
from converter.options import ConvertConfig


def split_schedule(config: ConvertConfig) -> list[ConvertConfig]:
    """Give the options of each step of ``--schedule``: a part of the budget and of the epochs.

    What is left, of operations or time, falls by the same factor in every step.
    """
    found = []
    for number in range(1, config.schedule + 1):
        share = number / config.schedule
        changes: dict[str, Any] = {
            name: getattr(config, name) ** share
            for name in ("target_speedup", "max_macs")
            if name in config.budget
        }
        changes |= {
            name: getattr(config, name) * share
            for name in ("max_drop", "max_error")
            if name in config.budget
        }
        for name in ("finetune", "reconstruct"):
            done = [getattr(config, name) * n // config.schedule for n in (number - 1, number)]
            changes[name] = done[1] - done[0]
        found.append(replace(config, schedule=1, **changes) if config.schedule > 1 else config)
    return found


def increment(stage: ConvertConfig, config: ConvertConfig) -> ConvertConfig:
    """Give the options of a search within a schedule: what it may lose more than was lost."""
    if config.schedule == 1:
        return stage
    names = [name for name in ("max_drop", "max_error") if name in config.budget]
    return replace(stage, **{name: getattr(config, name) / config.schedule for name in names})


def compose_chains(source: Source, conversion: Conversion, config: ConvertConfig) -> Source:
    """Write a trained conversion as dense convolutions again, for the next step of a schedule."""
    if conversion.module is None or source.module is None or not conversion.plan.chosen():
        return source
    module = torch_network.dense(source.module, conversion.module, conversion.plan.chosen())
    feeds, free = examples(source, config.seed, 1), free_axes(source.inputs)
    network = torch_export.export(module, feeds, free)
    return replace(source, module=module, original=network, network=canonicalize(network))
