"""The report as a page: one HTML file that needs nothing from outside."""

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

FRONTIER_ROWS = 12  # height of its chart, in bars of the others
LEFT = {"note", "operator", "node"}  # columns of words
NODE_HEADINGS = ("network", "operator", "node", "ms")
CONFIG = {"displayModeBar": False, "responsive": True}
LONG = 28  # characters of a layer's name beside a bar
MAX_KINDS = 7  # of nodes, each in a colour of its own
MAX_NAMED = 24  # layers that a legend has room for
GRID = "rgba(128,128,128,0.3)"  # to be seen on white and on black
ENDS = "#888"  # of intervals, to be seen on either


def report_html(report: Report) -> str:
    """Draw the report as one page that needs nothing from outside."""
    where = " in int8" if report.comparison.converted_int8 else ""
    return _page(
        report.comparison,
        title="flatconv report",
        notice=report.reason,
        layers=[list(zip(layer_cells(row), _sorted_by(row))) for row in report.layers],
        charts=[
            _latency_chart(report.comparison),
            *([_frontier_chart(report)] if report.frontier else []),
            *([_time_chart(report.layers, where)] if _timed(report.layers) else []),
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
    """Draw a comparison as one page that needs nothing from outside.

    Args:
        comparison: Of any number of networks.
        nodes: Times of the nodes of each network, or nothing.
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
            notes=LEFT,
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
        error_x={
            "type": "data",
            "array": [n.latency_ms.high - n.latency_ms.median for n in networks],
            "arrayminus": [n.latency_ms.median - n.latency_ms.low for n in networks],
            "color": ENDS,
        },
        text=[f"{median:.3g} ms" for median in medians],
        insidetextanchor="start",  # at the other end there is the interval
    )
    return _styled(
        go.Figure(bars), "Latency of one call, ms (median, 99 % interval)", len(networks)
    )


def _frontier_chart(report: Report) -> go.Figure:
    """Draw speedup over loss, of the networks for other budgets and of the shipped one."""
    assert report.frontier is not None
    shipped, points = report.comparison.shipped, list(report.frontier.networks.values())
    labelled = shipped.drop_points is not None
    chart = go.Figure(
        [
            go.Scatter(
                x=[n.drop_points.median if n.drop_points else n.rel_output_error for n in networks],
                y=[n.speedup.median for n in networks],
                error_y={
                    "type": "data",
                    "array": [n.speedup.high - n.speedup.median for n in networks],
                    "arrayminus": [n.speedup.median - n.speedup.low for n in networks],
                    "color": ENDS,
                },
                mode=mode,
                name=name,
            )
            for networks, name, mode in (
                (points, "other budgets", "lines+markers"),
                ([shipped], "shipped", "markers"),
            )
        ]
    )
    chart = _styled(chart, "Speedup over loss (99 % intervals)", FRONTIER_ROWS)
    lost = "accuracy lost, percentage points" if labelled else "relative output error"
    return chart.update_layout(xaxis={"title": lost}, yaxis={"title": "speedup", "autorange": True})


def _timed(layers: Sequence[LayerRow]) -> bool:
    return any(row.latency_before_ms is not None for row in layers)


def _time_chart(layers: Sequence[LayerRow], where: str = "") -> go.Figure:
    """Draw the time of the layers before and after as two stacked bars."""
    bars = [
        go.Bar(
            x=[row.latency_before_ms or 0.0, _after_ms(row)],
            y=["before", "after"],
            name=row.name,
            orientation="h",
            hovertemplate="%{fullData.name}: %{x:.3g} ms<extra></extra>",
        )
        for row in layers
    ]
    chart = _styled(go.Figure(bars), f"Time of the layers{where}, ms (by their profile)", 4)
    return chart.update_layout(barmode="stack", showlegend=len(layers) <= MAX_NAMED)


def _node_chart(names: Sequence[str], nodes: Sequence[Sequence[NodeTime]]) -> go.Figure:
    """Draw the time of each network as a bar, by kind of operator, the slowest first."""
    sums = [
        {
            kind: sum(node.ms for node in times if node.operator == kind)
            for kind in {node.operator for node in times}
        }
        for times in nodes
    ]
    largest = {kind: max(ms.get(kind, 0.0) for ms in sums) for kind in set().union(*sums)}
    kinds = sorted(largest, key=lambda kind: (-largest[kind], kind))[:MAX_KINDS]
    parts = {kind: [ms.get(kind, 0.0) for ms in sums] for kind in kinds}
    parts["others"] = [
        sum(ms for kind, ms in of_kind.items() if kind not in kinds) for of_kind in sums
    ]
    bars = [
        go.Bar(
            x=ms,
            y=list(names),
            name=kind,
            orientation="h",
            hovertemplate="%{fullData.name}: %{x:.3g} ms<extra></extra>",
        )
        for kind, ms in parts.items()
    ]
    title = "Time by kinds of nodes, ms (by their profile)"
    chart = _styled(go.Figure(bars), title, 2 * len(names))
    return chart.update_layout(barmode="stack", legend={"traceorder": "normal"})


def _after_ms(row: LayerRow) -> float:
    """Return a layer's time after; where its form was not timed, the time before."""
    after_ms = row.latency_after_ms
    return (row.latency_before_ms or 0.0) if after_ms is None else after_ms


def _error_chart(layers: Sequence[LayerRow]) -> go.Figure:
    """Draw the relative error of each converted layer."""
    shown = [row for row in layers if row.rel_error is not None]
    names = [row.name for row in shown]
    bars = go.Bar(x=[row.rel_error for row in shown], y=names, orientation="h")
    return _named(_styled(go.Figure(bars), "Relative error by layer", len(shown)), names)


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
    return _named(_styled(chart, "Multiply-accumulates by layer", 2 * len(layers)), names)


def _named(chart: go.Figure, names: Sequence[str]) -> go.Figure:
    """Label bars by layer; of long names only the end, since a phone would cut it off."""
    short = [name if len(name) <= LONG else f"…{name[-LONG:]}" for name in names]
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
