"""The report of a conversion, as data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from converter.evaluation.comparison import Comparison, Figures
from converter.report.layers import LayerRow
from converter.report.verify import Verified
from converter.search.budgets import limits_of
from converter.search.plan import Plan


@dataclass(frozen=True)
class Report:
    """The report of one conversion.

    Attributes:
        verified: The converted network and its measurements.
        seed: Of every random choice.
        command: How the conversion was started.
    """

    verified: Verified
    seed: int
    command: str

    @property
    def comparison(self) -> Comparison:
        """Of original and converted network, and of both in int8 if that was asked for."""
        return self.verified.comparison

    @property
    def plan(self) -> Plan:
        """Form and rank of each layer."""
        return self.verified.converted.plan

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """Every layer before and after, in graph order."""
        return self.verified.converted.rows

    @property
    def frontier(self) -> Comparison | None:
        """Of networks for other budgets, if that was asked for."""
        return self.verified.frontier

    @property
    def met(self) -> bool:
        """Whether every check and budget was met."""
        return self.verified.status.met

    @property
    def reason(self) -> str | None:
        """Why not, or what the user should know."""
        return self.verified.status.sentence

    @property
    def budget(self) -> dict[str, float]:
        """The limits that were asked for, by option name."""
        return limits_of(self.verified.converted.search.budgets)

    @property
    def predicted_speedup(self) -> float | None:
        """The speedup that the layers' times promised, or None."""
        return self.verified.converted.search.predicted_speedup

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, under the names that scripts rely on."""
        after = self.comparison.converted
        return {
            "original": _network(self.comparison.original),
            "converted": _network(after),
            "speedup": asdict(after.speedup),
            "drop_points": after.drop_points.median if after.drop_points else None,
            "drop_points_interval": asdict(after.drop_points) if after.drop_points else None,
            "agreement": after.agreement,
            "rel_output_error": after.rel_output_error,
            "int8": _int8(self.comparison),
            "met": self.met,
            "reason": self.reason,
            "budget": self.budget,
            "predicted_speedup": self.predicted_speedup,
            **conditions(self.comparison),
            "seed": self.seed,
            "command": self.command,
            "layers": [asdict(row) for row in self.layers],
            "frontier": _beside(self.frontier)[1:] if self.frontier else [],
        }


def conditions(comparison: Comparison) -> dict[str, Any]:
    """Return the conditions that a comparison was measured under, as JSON values."""
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
                "latency_ms": [asdict(interval) for interval in timing.latency_ms.values()],
                "speedup": [asdict(interval) for interval in timing.speedup.values()],
            }
            for timing in comparison.further
        ],
    }


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison of any number of networks as JSON values."""
    return {"networks": _beside(comparison), **conditions(comparison)}


def _beside(comparison: Comparison) -> list[dict[str, Any]]:
    reference = comparison.original
    return [_relative(n, n is reference) for n in comparison.networks.values()]


def _relative(network: Figures, is_reference: bool) -> dict[str, Any]:
    return {
        "name": network.name,
        **_network(network),
        "speedup": asdict(network.speedup),
        "verdict": "reference" if is_reference else network.verdict,
        "drop_points": network.drop_points.median if network.drop_points else None,
        "drop_points_interval": asdict(network.drop_points) if network.drop_points else None,
        "agreement": network.agreement,
        "rel_output_error": network.rel_output_error,
    }


def _int8(comparison: Comparison) -> dict[str, Any] | None:
    """Return original and converted network in int8; ``gain`` is the speedup between the two."""
    before, after = comparison.original_int8, comparison.converted_int8
    if before is None or after is None:
        return None
    return {
        "original": _relative(before, False),
        "converted": _relative(after, False),
        "gain": asdict(comparison.gain),
        "speedup": asdict(after.speedup),
        "drop_points": after.drop_points.median if after.drop_points else None,
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
