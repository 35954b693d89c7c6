"""``LayerRow``: one layer before and after."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from converter.decomposition.approximation import cancellation
from converter.decomposition.conv import Chain
from converter.graph.survey import Layer
from converter.reconstruction.regression import REFIT
from converter.search.result import SearchResult
from converter.timing.latency import LatencyTable

MAX_CANCELLATION = 10.0  # norm of the terms over the norm of their sum, above which a note is made


@dataclass(frozen=True)
class LayerRow:
    """One layer before and after.

    Attributes:
        name: Name of the layer.
        form: Name of the form; None if the layer is kept.
        rank: The rank; None if the layer is kept.
        macs_before: Multiply-accumulates for one example before the conversion.
        macs_after: Multiply-accumulates for one example after it.
        rel_error: Relative error of the layer; None if it is kept or was trained.
        latency_before_ms: Milliseconds before; None if they were not measured.
        latency_after_ms: Milliseconds after; None if they were not measured.
        reason: Why the layer is kept, or a note.
    """

    name: str
    form: str | None
    rank: int | list[int] | None
    macs_before: int
    macs_after: int
    rel_error: float | None
    latency_before_ms: float | None
    latency_after_ms: float | None
    reason: str | None


def layer_rows(
    layers: Sequence[Layer], search: SearchResult, *, trained: bool = False
) -> tuple[LayerRow, ...]:
    """List all layers before and after.

    Args:
        layers: All layers in graph order, as in the plan.
        search: The plan, the chains and the times of the layers.
        trained: Whether the chains were trained afterwards, which changes their errors.
    """
    realization, table = search.realization, search.table
    times = {layer.output: layer for layer in table.layers} if table else {}
    errors = {} if trained else realization.errors
    rows = []
    for layer, choice in zip(layers, search.plan.choices, strict=True):
        chain = realization.chains.get(layer.name)
        rank = list(choice.rank) if choice.rank else None
        timed = times.get(layer.output)
        before_ms = after_ms = timed.ms if timed else None
        if timed and choice.form and choice.rank:
            after_ms = timed.ms_of(choice.form, choice.rank)
        rows.append(
            LayerRow(
                name=layer.name,
                form=choice.form,
                rank=rank[0] if rank and len(rank) == 1 else rank,
                macs_before=layer.macs,
                macs_after=chain.macs(layer.size) if chain else layer.macs,
                rel_error=errors.get(layer.name),
                latency_before_ms=before_ms,
                latency_after_ms=after_ms,
                reason=choice.reason or (_cancellation_note(chain) if chain else None),
            )
        )
    return tuple(rows)


def least_gaining(rows: Sequence[LayerRow]) -> Collection[str]:
    """Name the half of the converted layers that gains least; all layers if fewer than two are."""

    def gain(row: LayerRow) -> tuple[float, int]:
        before_ms, after_ms = row.latency_before_ms or 0.0, row.latency_after_ms or 0.0
        return before_ms - after_ms, row.macs_before - row.macs_after

    converted = [row for row in rows if row.form and row.form != REFIT]
    if len(converted) < 2:
        return {row.name for row in rows}
    return {row.name for row in sorted(converted, key=gain)[: (len(converted) + 1) // 2]}


def survey_dicts(layers: Sequence[Layer], table: LatencyTable) -> list[dict[str, Any]]:
    """Return a network's layers as JSON values, with times and the forms that were timed."""
    times = {layer.output: layer for layer in table.layers}
    return [
        {
            "name": layer.name,
            "kernel": list(layer.conv.kernel.shape) if layer.conv else None,
            "stride": list(layer.conv.stride) if layer.conv else None,
            "groups": layer.conv.groups if layer.conv else None,
            "input_size": list(layer.size),
            "params": layer.params,
            "macs": layer.macs,
            "latency_ms": times[layer.output].ms if layer.output in times else None,
            "options": [asdict(o) for o in times[layer.output].options]
            if layer.output in times and not layer.reason
            else [],
            "reason": layer.reason,
        }
        for layer in layers
    ]


def read_rows(documents: Sequence[Mapping[str, Any]]) -> tuple[LayerRow, ...]:
    """Read rows that were written as JSON; fields of later versions are not used.

    Raises:
        KeyError: When a row lacks a field.
    """
    names = [item.name for item in fields(LayerRow)]
    return tuple(LayerRow(**{name: row[name] for name in names}) for row in documents)


def _cancellation_note(chain: Chain) -> str | None:
    """Warn of terms that cancel one another."""
    ratio = cancellation(chain)
    if ratio < MAX_CANCELLATION:
        return None
    return f"its terms cancel one another (together {ratio:.0f} times as large as their sum)"
