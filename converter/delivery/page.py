"""The same as a page: one HTML file that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment

from converter.delivery.compare import Comparison
from converter.delivery.report import LayerRow, Report
from converter.delivery.tables import (
    LAYER_HEADINGS,
    conditions_line,
    figure_rows,
    layer_cells,
    verdict_lines,
)

FRONTIER_ROWS = 12  # height of its chart, in bars of the others


def report_html(report: Report) -> str:
    """Draw the report as one page that needs nothing from outside."""
    return _page(
        report.comparison,
        title="flatconv report",
        notice=report.reason,
        layers=[layer_cells(row) for row in report.layers],
        charts=[
            _latency_chart(report.comparison),
            *([_frontier_chart(report)] if report.frontier else []),
            _layer_chart(report.layers),
        ],
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
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            names=[network.name for network in comparison.networks],
            rows=figure_rows(comparison),
            verdicts=verdict_lines(comparison),
            conditions=conditions_line(comparison),
            charts=drawn,
            headings=LAYER_HEADINGS,
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


def _frontier_chart(report: Report) -> go.Figure:
    """Draw speedup over what is lost, of the networks for other budgets and of the one shipped."""
    assert report.frontier is not None
    shipped = report.comparison.networks[1]
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
                },
                mode=mode,
                name=name,
            )
            for networks, name, mode in (
                (report.frontier.networks, "other budgets", "lines+markers"),
                ((shipped,), "shipped", "markers"),
            )
        ]
    )
    chart = _styled(chart, "Speedup over what is lost (99 % intervals)", FRONTIER_ROWS)
    lost = "accuracy lost, percentage points" if labelled else "relative output error"
    return chart.update_layout(xaxis={"title": lost}, yaxis={"title": "speedup", "autorange": True})


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
