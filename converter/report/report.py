"""What is told of a conversion, as data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter.decomposition.approximation import cancellation
from converter.decomposition.conv import Chain
from converter.evaluation.compare import Comparison, Figures
from converter.graph.survey import Layer
from converter.search.plan import Plan
from converter.timing.latency import LatencyTable

MOST_CANCELLATION = 10.0


@dataclass(frozen=True)
class LayerRow:
    """One convolution before and after.

    Latencies are None where they were not measured, the error of a layer that is kept or tuned.
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


@dataclass(frozen=True)
class Report:
    """All that is told of one conversion.

    Attributes:
        comparison: Original first, converted second; then both in int8, if that was asked for.
        layers: In graph order.
        plan: What was obeyed.
        met: Whether every check and budget was met.
        reason: Why not, or what the user should know.
        budget: What the user asked for, by option.
        predicted_speedup: What the layers' times promised, or None.
        seed: Of every random choice.
        command: How the conversion was started.
        frontier: The original and networks for other budgets, if asked for.
    """

    comparison: Comparison
    layers: tuple[LayerRow, ...]
    plan: Plan
    met: bool
    reason: str | None
    budget: Mapping[str, float]
    predicted_speedup: float | None
    seed: int
    command: str
    frontier: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON values, under the names that scripts rely on."""
        before, after, *int8 = self.comparison.networks
        return {
            "original": _network(before),
            "converted": _network(after),
            "speedup": asdict(after.speedup),
            "drop_points": after.drop_points.median if after.drop_points else None,
            "drop_points_interval": asdict(after.drop_points) if after.drop_points else None,
            "agreement": after.agreement,
            "rel_output_error": after.rel_output_error,
            "int8": _int8(int8, self.comparison) if int8 else None,
            "met": self.met,
            "reason": self.reason,
            "budget": dict(self.budget),
            "predicted_speedup": self.predicted_speedup,
            **conditions(self.comparison),
            "seed": self.seed,
            "command": self.command,
            "layers": [asdict(row) for row in self.layers],
            "frontier": _beside(self.frontier)[1:] if self.frontier else [],
        }


def layer_rows(
    layers: Sequence[Layer],
    plan: Plan,
    chains: Mapping[str, Chain],
    errors: Mapping[str, float],
    table: LatencyTable | None = None,
) -> tuple[LayerRow, ...]:
    """Tell what became of each layer; times are those of the table."""
    rows = []
    times = {layer.output: layer for layer in table.layers} if table else {}
    for layer, choice in zip(layers, plan.choices):
        chain = chains.get(layer.name)
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
                reason=choice.reason or (_degenerate(chain) if chain else None),
            )
        )
    return tuple(rows)


def _degenerate(chain: Chain) -> str | None:
    """Warn of terms that cancel one another."""
    times = cancellation(chain)
    if times < MOST_CANCELLATION:
        return None
    return f"its terms cancel one another (together {times:.0f} times as large as their sum)"


def conditions(comparison: Comparison) -> dict[str, Any]:
    """Say under which conditions a comparison was measured, as JSON values."""
    return {
        "threads": comparison.threads,
        "provider": comparison.provider,
        "batch_size": comparison.batch_size,
        "cpu": comparison.cpu,
        "versions": dict(comparison.versions),
        "data": comparison.data,
        "examples": comparison.examples,
        "compared": list(comparison.compared),
        "rounds": comparison.rounds,
        "input_shapes": _shapes(comparison.input_shapes),
        "further_shapes": [
            {
                "input_shapes": _shapes(timing.input_shapes),
                "latency_ms": [asdict(interval) for interval in timing.latency_ms],
                "speedup": [asdict(interval) for interval in timing.speedup],
            }
            for timing in comparison.further
        ],
    }


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Give a comparison of any number of networks as JSON values."""
    return {"networks": _beside(comparison), **conditions(comparison)}


def survey_dicts(layers: Sequence[Layer], table: LatencyTable) -> list[dict[str, Any]]:
    """Give a network's convolutions as JSON values, with times and the forms that were timed."""
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


def _beside(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "name": network.name,
            **_network(network),
            "speedup": asdict(network.speedup),
            "verdict": network.verdict if number else "reference",
            "drop_points": network.drop_points.median if network.drop_points else None,
            "drop_points_interval": asdict(network.drop_points) if network.drop_points else None,
            "agreement": network.agreement,
            "rel_output_error": network.rel_output_error,
        }
        for number, network in enumerate(comparison.networks)
    ]


def _int8(pair: Sequence[Figures], comparison: Comparison) -> dict[str, Any]:
    """Give original and converted network in int8; ``gain`` is the speedup between the two."""
    _, after = pair
    beside = _beside(comparison)[2:]
    drop = after.drop_points.median if after.drop_points else None
    return {
        "original": beside[0],
        "converted": beside[1],
        "gain": asdict(comparison.gain),
        "speedup": asdict(after.speedup),
        "drop_points": drop,
    }


def _network(figures: Figures) -> dict[str, Any]:
    return {
        "params": figures.params,
        "macs": figures.macs,
        "bytes": figures.bytes,
        "latency_ms": asdict(figures.latency_ms),
        "accuracy": figures.accuracy,
    }


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in shapes.items()}
