"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment

from converter.evaluation.comparison import Comparison
from converter.report.layers import LayerRow
from converter.report.report import Report
from converter.report.tables import (
    LAYER_HEADINGS,
    conditions_line,
    figure_rows,
    layer_cells,
    verdict_lines,
)
from converter.runtime.ort_session import NodeTime
from converter.timing.race import Interval

FRONTIER_BARS = 12  # height of the frontier chart, in bars of the other charts
TEXT_COLUMNS = {"note", "operator", "node"}  # left-aligned
NODE_HEADINGS = ("network", "operator", "node", "ms")
CONFIG = {"displayModeBar": False, "responsive": True}
MAX_NAME = 28  # characters of a layer's name beside a bar
MAX_OPERATORS = 7  # with a colour of their own; all others are summed
MAX_LEGEND = 24  # layers in a legend
# These colours are visible on a white and on a black background.
GRID, INTERVAL = "rgba(128,128,128,0.3)", "#888"


def report_html(report: Report) -> str:
    """Return the report as a self-contained HTML page."""
    timed = any(row.latency_before_ms is not None for row in report.layers)
    precision = " in int8" if report.comparison.converted_int8 else ""
    return _page(
        report.comparison,
        title="flatconv report",
        notices=[*report.warnings, *([report.reason] if report.reason else [])],
        layers=[list(zip(layer_cells(row), _sorted_by(row))) for row in report.layers],
        charts=[
            _latency_chart(report.comparison),
            *([_frontier_chart(report)] if report.frontier else []),
            *([_time_chart(report.layers, precision)] if timed else []),
            _layer_chart(report.layers),
            *([_error_chart(report.layers)] if any(r.rel_error for r in report.layers) else []),
        ],
        command=report.command,
        detail="Layers",
        headings=LAYER_HEADINGS,
    )


def comparison_html(
    comparison: Comparison, nodes: Sequence[Sequence[NodeTime]] = (), command: str | None = None
) -> str:
    """Return a comparison as a self-contained HTML page.

    Args:
        comparison: Comparison of any number of networks.
        nodes: Times of the nodes of each network, if they are shown.
        command: The command that made the comparison.
    """
    names = list(comparison.networks)
    rows = [
        [(name, name), (node.operator,) * 2, (node.name,) * 2, (f"{node.ms:.4f}", node.ms)]
        for name, times in zip(names, nodes)
        for node in times
    ]
    return _page(
        comparison,
        title="flatconv comparison",
        charts=[_latency_chart(comparison), *([_node_chart(names, nodes)] if nodes else [])],
        command=command,
        detail="Nodes, as the runtime runs them",
        headings=NODE_HEADINGS,
        layers=rows,
    )


def _page(comparison: Comparison, charts: Sequence[go.Figure], **values: Any) -> str:
    source = files("converter.report").joinpath("report.html.j2").read_text()
    drawn = [
        chart.to_html(full_html=False, include_plotlyjs=number == 0, config=CONFIG)
        for number, chart in enumerate(charts)
    ]
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            names=list(comparison.networks),
            rows=figure_rows(comparison),
            verdicts=verdict_lines(comparison),
            conditions=conditions_line(comparison),
            charts=drawn,
            notes=TEXT_COLUMNS,
            **values,
        )
    )


def _latency_chart(comparison: Comparison) -> go.Figure:
    networks = list(comparison.networks.values())
    medians = [n.latency_ms.median for n in networks]
    bars = go.Bar(
        x=medians,
        y=[n.name for n in networks],
        orientation="h",
        error_x=_error_bars([n.latency_ms for n in networks]),
        text=[f"{median:.3g} ms" for median in medians],
        insidetextanchor="start",  # the interval is at the other end
    )
    return _styled(
        go.Figure(bars), "Latency of one call, ms (median, 99 % interval)", len(networks)
    )


def _frontier_chart(report: Report) -> go.Figure:
    """Draw speedup over loss, of the networks for other budgets and of the shipped one."""
    assert report.frontier is not None
    shipped, points = report.comparison.shipped, list(report.frontier.networks.values())
    chart = go.Figure(
        [
            go.Scatter(
                x=[n.drop_points.median for n in networks],
                y=[n.speedup.median for n in networks],
                error_y=_error_bars([n.speedup for n in networks]),
                mode=mode,
                name=name,
            )
            for networks, name, mode in (
                (points, "other budgets", "lines+markers"),
                ([shipped], "shipped", "markers"),
            )
        ]
    )
    chart = _styled(chart, "Speedup over loss (99 % intervals)", FRONTIER_BARS)
    lost = f"{report.comparison.unit} lost, percentage points"
    return chart.update_layout(xaxis={"title": lost}, yaxis={"title": "speedup", "autorange": True})


def _error_bars(intervals: Sequence[Interval]) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [interval.high - interval.median for interval in intervals],
        "arrayminus": [interval.median - interval.low for interval in intervals],
        "color": INTERVAL,
    }


def _time_chart(layers: Sequence[LayerRow], precision: str = "") -> go.Figure:
    """Draw the time of the layers before and after as two stacked bars."""
    before_ms = [row.latency_before_ms or 0.0 for row in layers]
    after_ms = [
        before if row.latency_after_ms is None else row.latency_after_ms
        for row, before in zip(layers, before_ms)
    ]
    parts = [(row.name, ms) for row, ms in zip(layers, zip(before_ms, after_ms))]
    chart = _stacked(parts, ["before", "after"])
    chart = _styled(chart, f"Time of the layers{precision}, ms (by their profile)", 4)
    return chart.update_layout(showlegend=len(layers) <= MAX_LEGEND)


def _stacked(parts: Sequence[tuple[str, Sequence[float]]], bars: Sequence[str]) -> go.Figure:
    """Stack named parts, each of which has a number of milliseconds for each bar."""
    return go.Figure(
        [
            go.Bar(
                x=list(ms),
                y=list(bars),
                name=name,
                orientation="h",
                hovertemplate="%{fullData.name}: %{x:.3g} ms<extra></extra>",
            )
            for name, ms in parts
        ]
    ).update_layout(barmode="stack")


def _node_chart(names: Sequence[str], nodes: Sequence[Sequence[NodeTime]]) -> go.Figure:
    """Draw the time of each network as a bar, by operator, the slowest first."""
    sums = [
        {
            operator: sum(node.ms for node in times if node.operator == operator)
            for operator in {node.operator for node in times}
        }
        for times in nodes
    ]
    largest = {op: max(ms.get(op, 0.0) for ms in sums) for op in set().union(*sums)}
    operators = sorted(largest, key=lambda op: (-largest[op], op))[:MAX_OPERATORS]
    parts = [(op, [ms.get(op, 0.0) for ms in sums]) for op in operators]
    others = [sum(ms for op, ms in network.items() if op not in operators) for network in sums]
    chart = _stacked([*parts, ("others", others)], names)
    chart = _styled(chart, "Time by kinds of nodes, ms (by their profile)", 2 * len(names))
    return chart.update_layout(legend={"traceorder": "normal"})


def _error_chart(layers: Sequence[LayerRow]) -> go.Figure:
    """Draw the relative error of each converted layer."""
    shown = [row for row in layers if row.rel_error is not None]
    names = [row.name for row in shown]
    bars = go.Bar(x=[row.rel_error for row in shown], y=names, orientation="h")
    return _label_by_layer(_styled(go.Figure(bars), "Relative error by layer", len(shown)), names)


def _sorted_by(row: LayerRow) -> list[str | int | float]:
    """Return the values that a layer's row is sorted by, one for each cell."""
    rank = row.rank[0] if isinstance(row.rank, list) else row.rank
    values = (
        row.name,
        row.form or "",
        rank,
        row.macs_before,
        row.macs_after,
        row.latency_before_ms,
        row.latency_after_ms,
        row.rel_error,
        row.reason,
    )
    return ["" if value is None else value for value in values]


def _layer_chart(layers: Sequence[LayerRow]) -> go.Figure:
    names = [row.name for row in layers]
    chart = go.Figure(
        [
            go.Bar(x=[row.macs_before for row in layers], y=names, name="before", orientation="h"),
            go.Bar(x=[row.macs_after for row in layers], y=names, name="after", orientation="h"),
        ]
    )
    return _label_by_layer(_styled(chart, "Multiply-accumulates by layer", 2 * len(layers)), names)


def _label_by_layer(chart: go.Figure, names: Sequence[str]) -> go.Figure:
    """Label bars by layer; long names are cut at the start, to fit on a narrow screen."""
    short = [name if len(name) <= MAX_NAME else f"…{name[-MAX_NAME:]}" for name in names]
    return chart.update_yaxes(
        type="category", tickmode="array", tickvals=list(names), ticktext=short
    )


def _styled(chart: go.Figure, title: str, bars: int) -> go.Figure:
    chart.update_layout(
        title={"text": title, "x": 0, "xanchor": "left", "font": {"size": 14}},
        height=130 + 22 * bars,
        margin={"l": 10, "r": 10, "t": 50, "b": 30},
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"gridcolor": GRID, "zerolinecolor": GRID},
        yaxis={
            "autorange": "reversed",
            "automargin": True,
            "gridcolor": GRID,
            "ticklabelstandoff": 4,
        },
    )
    return chart
