"""The report of a conversion: as JSON, as a table on the terminal, and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.delivery.compare import Comparison, Figures
from converter.kernels.conv import Chain
from converter.kernels.form import relative_error, show_rank
from converter.networks.survey import Layer
from converter.planning.measure import Interval
from converter.planning.plan import Plan


@dataclass(frozen=True)
class LayerRow:
    """One convolution before and after; latencies are None where they were not measured."""

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
        comparison: Original first, converted second.
        layers: In graph order.
        plan: What was obeyed.
        met: Whether every check and budget was met.
        reason: Why not, or what the user should know.
        budget: What the user asked for, by option.
        seed: Of every random choice.
        command: How the conversion was started.
    """

    comparison: Comparison
    layers: tuple[LayerRow, ...]
    plan: Plan
    met: bool
    reason: str | None
    budget: dict[str, float]
    seed: int
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON values, under the names that scripts rely on."""
        before, after = self.comparison.networks
        return {
            "original": _network(before),
            "converted": _network(after),
            "speedup": asdict(after.speedup),
            "drop_points": after.drop_points.median if after.drop_points else None,
            "drop_points_interval": asdict(after.drop_points) if after.drop_points else None,
            "agreement": after.agreement,
            "rel_output_error": after.rel_output_error,
            "met": self.met,
            "reason": self.reason,
            "budget": self.budget,
            **conditions(self.comparison),
            "seed": self.seed,
            "command": self.command,
            "layers": [asdict(row) for row in self.layers],
        }


def layer_rows(
    layers: Sequence[Layer], plan: Plan, chains: Mapping[str, Chain]
) -> tuple[LayerRow, ...]:
    """Tell what became of each layer."""
    rows = []
    for layer, choice in zip(layers, plan.choices):
        chain = chains.get(layer.name)
        rank = list(choice.rank) if choice.rank else None
        rows.append(
            LayerRow(
                name=layer.name,
                form=choice.form,
                rank=rank[0] if rank and len(rank) == 1 else rank,
                macs_before=layer.macs,
                macs_after=chain.macs(layer.size) if chain else layer.macs,
                rel_error=relative_error(layer.conv, chain) if chain and layer.conv else None,
                latency_before_ms=None,
                latency_after_ms=None,
                reason=choice.reason,
            )
        )
    return tuple(rows)


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
        "rounds": comparison.rounds,
        "input_shapes": {name: list(shape) for name, shape in comparison.input_shapes.items()},
    }


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Give a comparison of any number of networks as JSON values."""
    return {
        "networks": [
            {
                "name": network.name,
                **_network(network),
                "speedup": asdict(network.speedup),
                "verdict": network.verdict if number else "reference",
                "drop_points": network.drop_points.median if network.drop_points else None,
                "drop_points_interval": asdict(network.drop_points)
                if network.drop_points
                else None,
                "agreement": network.agreement,
                "rel_output_error": network.rel_output_error,
            }
            for number, network in enumerate(comparison.networks)
        ],
        **conditions(comparison),
    }


def comparison_table(comparison: Comparison) -> RenderableType:
    """Draw networks side by side, one column each, with the conditions below."""
    first, *others = comparison.networks
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for network in comparison.networks:
        table.add_column(network.name, justify="right", overflow="fold")
    for label, cells in figure_rows(comparison):
        table.add_row(label, *cells)
    note = Text(_conditions_line(comparison), style="dim")
    verdicts = [Text(f"{o.name} against {first.name}: {o.verdict}", style="bold") for o in others]
    return Group(table, *verdicts, note)


def figure_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Rows of the table: a label and one cell a network."""
    networks = comparison.networks
    rows: list[tuple[str, list[str]]] = [
        ("parameters", [_count(n.params) for n in networks]),
        ("MACs", [_count(n.macs) for n in networks]),
        ("file size", [f"{n.bytes / 1e6:.2f} MB" for n in networks]),
        ("latency, ms", [_interval(n.latency_ms, 3) for n in networks]),
        ("speedup", ["1", *(_interval(n.speedup, 2, "x") for n in networks[1:])]),
    ]
    if networks[0].accuracy is not None:
        rows.append(("accuracy", [f"{n.accuracy:.4f}" for n in networks]))
        drops = [_interval(n.drop_points, 2) if n.drop_points else "" for n in networks[1:]]
        rows.append(("points lost", ["", *drops]))
    if networks[0].agreement is not None:
        rows.append(("agreement", ["", *(f"{n.agreement:.4f}" for n in networks[1:])]))
    errors = ["", *(f"{n.rel_output_error:.2e}" for n in networks[1:])]
    rows.append(("relative output error", errors))
    return rows


def layer_table(layers: Sequence[LayerRow]) -> Table:
    """Draw one row a layer."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("layer", "form", "rank", "MACs before", "after", "weight error", "note"):
        right = heading in ("rank", "MACs before", "after", "weight error")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in layers:
        table.add_row(*layer_cells(row))
    return table


def layer_cells(row: LayerRow) -> list[str]:
    """Write a layer's row."""
    rank = [row.rank] if isinstance(row.rank, int) else row.rank
    return [
        row.name,
        row.form or "kept",
        show_rank(tuple(rank)) if rank else "",
        _count(row.macs_before),
        _count(row.macs_after),
        "" if row.rel_error is None else f"{row.rel_error:.3f}",
        row.reason or "",
    ]


def survey_table(layers: Sequence[Layer]) -> Table:
    """Draw a network's convolutions, one row each."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    total = sum(layer.macs for layer in layers) or 1
    for heading in ("layer", "kernel", "stride", "groups", "input", "params", "MACs", "share", ""):
        right = heading in ("groups", "params", "MACs", "share")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for layer in layers:
        conv = layer.conv
        table.add_row(
            layer.name,
            "x".join(map(str, conv.kernel.shape)) if conv else "",
            "x".join(map(str, conv.stride)) if conv else "",
            str(conv.groups) if conv else "",
            "x".join(map(str, layer.size)),
            _count(layer.params),
            _count(layer.macs),
            f"{layer.macs / total:.1%}",
            f"kept: {layer.reason}" if layer.reason else "",
        )
    return table


def survey_dicts(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Give a network's convolutions as JSON values."""
    return [
        {
            "name": layer.name,
            "kernel": list(layer.conv.kernel.shape) if layer.conv else None,
            "stride": list(layer.conv.stride) if layer.conv else None,
            "groups": layer.conv.groups if layer.conv else None,
            "input_size": list(layer.size),
            "params": layer.params,
            "macs": layer.macs,
            "reason": layer.reason,
        }
        for layer in layers
    ]


def report_html(report: Report) -> str:
    """Draw the report as one page that needs nothing from outside."""
    return _page(
        report.comparison,
        title="flatconv report",
        notice=report.reason,
        layers=[layer_cells(row) for row in report.layers],
        charts=[_latency_chart(report.comparison), _layer_chart(report.layers)],
        command=report.command,
    )


def comparison_html(comparison: Comparison) -> str:
    """Draw a comparison as one page that needs nothing from outside."""
    return _page(comparison, title="flatconv comparison", charts=[_latency_chart(comparison)])


def _page(comparison: Comparison, charts: Sequence[go.Figure], **values: Any) -> str:
    source = files("converter.delivery").joinpath("report.html.j2").read_text()
    drawn = [
        chart.to_html(full_html=False, include_plotlyjs=number == 0, config={"displaylogo": False})
        for number, chart in enumerate(charts)
    ]
    first, *others = comparison.networks
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            names=[network.name for network in comparison.networks],
            rows=figure_rows(comparison),
            verdicts=[f"{other.name} against {first.name}: {other.verdict}" for other in others],
            conditions=_conditions_line(comparison),
            charts=drawn,
            **values,
        )
    )


def _latency_chart(comparison: Comparison) -> go.Figure:
    networks = comparison.networks
    medians = [n.latency_ms.median for n in networks]
    bars = go.Bar(
        x=medians,
        y=[n.name for n in networks],
        orientation="h",
        error_x={
            "type": "data",
            "array": [n.latency_ms.high - n.latency_ms.median for n in networks],
            "arrayminus": [n.latency_ms.median - n.latency_ms.low for n in networks],
        },
        text=[f"{median:.3g} ms" for median in medians],
    )
    return _styled(
        go.Figure(bars), "Latency of one call, ms (median, 99 % interval)", len(networks)
    )


def _layer_chart(layers: Sequence[LayerRow]) -> go.Figure:
    names = [row.name for row in layers]
    chart = go.Figure(
        [
            go.Bar(x=[row.macs_before for row in layers], y=names, name="before", orientation="h"),
            go.Bar(x=[row.macs_after for row in layers], y=names, name="after", orientation="h"),
        ]
    )
    return _styled(chart, "Multiply-accumulates by layer", 2 * len(layers))


def _styled(chart: go.Figure, title: str, bars: int) -> go.Figure:
    chart.update_layout(
        title=title,
        height=130 + 22 * bars,
        margin={"l": 10, "r": 10, "t": 50, "b": 30},
        template="plotly_white",
        yaxis={"autorange": "reversed", "automargin": True},
    )
    return chart


def _network(figures: Figures) -> dict[str, Any]:
    return {
        "params": figures.params,
        "macs": figures.macs,
        "bytes": figures.bytes,
        "latency_ms": asdict(figures.latency_ms),
        "accuracy": figures.accuracy,
    }


def _conditions_line(comparison: Comparison) -> str:
    shown = ", ".join(f"{name} {number}" for name, number in comparison.versions.items())
    shapes = "; ".join(
        f"{name} {'x'.join(map(str, shape))}" for name, shape in comparison.input_shapes.items()
    )
    return (
        f"{comparison.cpu}; {comparison.threads} thread(s), {comparison.provider}; {shapes}; "
        f"medians with 99 % intervals of {comparison.rounds} paired blocks; scored on "
        f"{comparison.examples} examples ({comparison.data}); {shown}"
    )


def _interval(interval: Interval, digits: int, unit: str = "") -> str:
    median, low, high = (f"{v:.{digits}f}" for v in (interval.median, interval.low, interval.high))
    return f"{median}{unit} ({low} to {high})"


def _count(number: int) -> str:
    if number < 10_000:
        return str(number)
    power = min(int(math.log10(number)) // 3, 4)
    return f"{number / 1000**power:.4g} {('', 'k', 'M', 'G', 'T')[power]}"
