"""The report of a conversion, as data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from converter.evaluation.comparison import Comparison, Figures
from converter.evaluation.verdict import Estimate, Verdict
from converter.report.layers import LayerRow
from converter.report.verify import Verified
from converter.search.budgets import limits_of
from converter.search.plan import Plan
from converter.stages import Stage


@dataclass(frozen=True)
class Report:
    """The report of one conversion.

    Attributes:
        verified: The converted network and its measurements.
        seed: Seed of every random choice.
        command: The command or function that started the conversion.
        stages: What each stage took, until the report was made.
    """

    verified: Verified
    seed: int
    command: str
    stages: Mapping[str, Stage] = field(default_factory=dict)

    @property
    def comparison(self) -> Comparison:
        """The original and the converted network, and both in int8 if requested."""
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
        """Networks for other budgets, or None."""
        return self.verified.frontier

    @property
    def met(self) -> bool:
        """Whether every check and budget was met."""
        return self.verified.status.met

    @property
    def reason(self) -> str | None:
        """The reason if not, or a note to the user."""
        return self.verified.status.sentence

    @property
    def verdict(self) -> Verdict | None:
        """Whether the budgets are kept; None without budgets."""
        return self.verified.verdict

    @property
    def lost(self) -> Estimate | None:
        """The loss of the network that ships, from all inputs that no layer was fit to."""
        return self.verified.unseen.lost

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on the inputs and the measurements that the user should read."""
        return self.verified.warnings

    @property
    def task(self) -> str | dict[str, str]:
        """What the outputs mean: a task, or tasks by output."""
        tasks = self.comparison.tasks
        return next(iter(tasks.values())) if len(tasks) == 1 else dict(tasks)

    @property
    def budget(self) -> dict[str, float]:
        """The limits of the search, by option name."""
        return limits_of(self.verified.converted.search.budgets)

    @property
    def predicted_speedup(self) -> float | None:
        """The speedup predicted from the layers' times, or None."""
        return self.verified.converted.search.predicted_speedup

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, under the names that scripts rely on."""
        after = self.comparison.converted
        return {
            "original": _network(self.comparison.original),
            "converted": _network(after),
            **_against_original(after),
            "int8": _int8(self.comparison),
            "met": self.met,
            "reason": self.reason,
            "budget": self.budget,
            "task": self.task,
            "verdict": self.verdict,
            "lost": None if self.lost is None else _lost(self.lost, self.comparison.unit),
            "warnings": list(self.warnings),
            "predicted_speedup": self.predicted_speedup,
            **conditions(self.comparison),
            "seed": self.seed,
            "command": self.command,
            "stages": {
                name: {"seconds": round(stage.seconds, 3), "cores": round(stage.cores, 2)}
                for name, stage in self.stages.items()
            },
            "layers": [asdict(row) for row in self.layers],
            "frontier": _networks(self.frontier)[1:] if self.frontier else [],
        }


def _lost(lost: Estimate, unit: str) -> dict[str, Any]:
    """Return a loss in points with its 90 % interval, as JSON values."""
    points = {"points": 100 * lost.lost, "low": 100 * lost.low, "high": 100 * lost.high}
    return points | {"of": unit, "examples": lost.examples}


def conditions(comparison: Comparison) -> dict[str, Any]:
    """Return the conditions that a comparison was measured under, as JSON values."""
    return {
        "threads": comparison.threads,
        "provider": comparison.provider,
        "batch_size": comparison.batch_size,
        "cpu": comparison.cpu,
        "versions": dict(comparison.versions),
        "data": comparison.data,
        "preprocessing": comparison.preprocessing,
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
    return {"networks": _networks(comparison), **conditions(comparison)}


def _networks(comparison: Comparison) -> list[dict[str, Any]]:
    first, *others = (_named_network(network) for network in comparison.networks.values())
    return [first | {"verdict": "reference"}, *others]


def _named_network(figures: Figures) -> dict[str, Any]:
    verdict = {"name": figures.name, "verdict": figures.verdict}
    return verdict | _network(figures) | _against_original(figures)


def _against_original(figures: Figures) -> dict[str, Any]:
    return {
        "speedup": asdict(figures.speedup),
        "drop_points": figures.drop_points.median,
        "drop_points_interval": asdict(figures.drop_points),
        "agreement": figures.agreement,
        "rel_output_error": figures.rel_output_error,
        "details": {name: dict(j.details) for name, j in figures.by_output.items()},
    }


def _int8(comparison: Comparison) -> dict[str, Any] | None:
    """Return original and converted network in int8; ``gain`` is the speedup between the two."""
    before, after = comparison.original_int8, comparison.converted_int8
    if before is None or after is None:
        return None
    return {
        "original": _named_network(before),
        "converted": _named_network(after),
        "gain": asdict(comparison.gain),
        "speedup": asdict(after.speedup),
        "drop_points": after.drop_points.median,
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
