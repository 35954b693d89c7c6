"""Tables for the terminal: one column per network, or one row per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.decomposition.form import show_rank, skeleton
from converter.decomposition.forms import find_form
from converter.evaluation.comparison import Comparison, Figures, renamed_networks, verdict
from converter.evaluation.tasks.task import Task
from converter.graph.survey import Layer
from converter.report.layers import LayerRow
from converter.report.report import Report
from converter.timing.latency import LatencyTable, LayerTimes
from converter.timing.race import Interval

LAYER_HEADINGS = (
    "layer",
    "form",
    "rank",
    "MACs before",
    "MACs after",
    "ms before",
    "ms after",
    "error",
    "note",
)
LAYER_COLUMNS = (
    "layer",
    "kernel",
    "stride",
    "groups",
    "input",
    "params",
    "MACs",
    "ms",
    "share",
)
USEFUL_SHARE = 0.2  # of a layer's MACs; forms with less rarely have an acceptable error


def summary(report: Report) -> str:
    """Describe a conversion in a few lines: speedup, loss, size, budget and status."""
    comparison = report.comparison
    after = comparison.shipped
    parts = [after.verdict, _loss(report)]
    before = comparison.original
    parts.append(f"{after.params / max(before.params, 1):.0%} of the parameters")
    parts.append(f"{after.macs / max(before.macs, 1):.0%} of the MACs")
    limits = ", ".join(f"{name} {limit:g}" for name, limit in report.budget.items())
    if limits:
        parts.append(f"budget {limits}: {report.verdict}")
    converted = sum(1 for choice in report.plan.choices if choice.form)
    lines = [
        " · ".join(parts),
        f"{converted} of {len(report.plan.choices)} layers converted; {comparison.cpu}, "
        f"{comparison.threads} thread(s), batch {comparison.batch_size}",
    ]
    warnings = [f"Warning: {warning}" for warning in report.warnings]
    return "\n".join([*lines, *([report.reason] if report.reason else []), *warnings])


def _loss(report: Report) -> str:
    """Say what is lost: an error where a budget limits it, else points with their interval."""
    lost, unit = report.lost, report.comparison.unit
    if lost is None or ("max_error" in report.budget and "max_drop" not in report.budget):
        return f"relative output error {report.comparison.shipped.rel_output_error:.2e}"
    interval = f"{100 * lost.low:.2f} to {100 * lost.high:.2f}"
    return f"{100 * lost.lost:.2f} points of {unit} lost ({interval})"


def without_shared_folders(comparison: Comparison) -> Comparison:
    """Name networks, which are files, by the part of their paths that differs."""
    paths = [PurePath(name).parts for name in comparison.networks]
    folders = zip(*(path[:-1] for path in paths))
    shared = len(list(takewhile(lambda names: len(set(names)) == 1, folders)))
    return renamed_networks(comparison, [str(PurePath(*path[shared:])) for path in paths])


def comparison_table(comparison: Comparison) -> RenderableType:
    """Draw networks side by side, one column each, with the conditions below."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for name in comparison.networks:
        table.add_column(Text(name), justify="right", overflow="fold")
    for label, cells in figure_rows(comparison):
        table.add_row(label, *cells)
    note = Text(conditions_line(comparison), style="dim")
    verdicts = [Text(line, style="bold") for line in verdict_lines(comparison)]
    return Group(table, *verdicts, note)


def verdict_lines(comparison: Comparison) -> list[str]:
    """Say whether each network is faster than the first, and the last than the one before it."""
    first, others = comparison.original, comparison.others
    lines = [f"{other.name} against {first.name}: {other.verdict}" for other in others]
    if len(others) > 1:
        previous, last = others[-2:]
        lines.append(f"{last.name} against {previous.name}: {verdict(comparison.gain)}")
    return lines


def figure_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """List the rows of the table: a label and one cell for each network."""
    networks, others = list(comparison.networks.values()), comparison.others
    rows: list[tuple[str, list[str]]] = [
        ("parameters", [_count(n.params) for n in networks]),
        ("MACs", [_count(n.macs) for n in networks]),
        ("file size", [f"{n.bytes / 1e6:.2f} MB" for n in networks]),
        ("latency, ms", [_interval(n.latency_ms, 3) for n in networks]),
        ("speedup", ["1", *(_interval(n.speedup, 2, "x") for n in others)]),
    ]
    for timing in comparison.further:
        shapes = _show_shapes(timing.input_shapes)
        latencies = [_interval(interval, 3) for interval in timing.latency_ms.values()]
        rows.append((f"latency at {shapes}, ms", latencies))
        _, *speedups = (_interval(interval, 2, "x") for interval in timing.speedup.values())
        rows.append((f"speedup at {shapes}", ["1", *speedups]))
    if comparison.original.accuracy is not None:
        rows.append((comparison.unit, [f"{n.accuracy:.4f}" for n in networks]))
    drops = [_interval(n.drop_points, 2) for n in others]
    lost = "points lost" if comparison.unit == "accuracy" else f"points of {comparison.unit} lost"
    rows.append((lost, ["", *drops]))
    for output in comparison.original.by_output:
        where = f" of {output}" if len(comparison.original.by_output) > 1 else ""
        details = [n.by_output[output].details for n in others]
        # Of outputs that are not finite there are fewer details.
        names = dict.fromkeys(name for detail in details for name in detail)
        rows += [
            (f"{name.replace('_', ' ')}{where}", ["", *(_detail(d.get(name)) for d in details)])
            for name in names
        ]
    rows.append(("relative output error", ["", *(f"{n.rel_output_error:.2e}" for n in others)]))
    return rows


def _detail(value: float | None) -> str:
    """Write a share with four digits, and a count or a class as it is."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def frontier_table(frontier: Comparison) -> Table:
    """Draw one row for each network that was built for another budget."""
    table = _table(
        ("frontier", "MACs", "speedup", "points lost", "relative output error"), left=("frontier",)
    )
    for network in frontier.others:
        table.add_row(network.name, _count(network.macs), *_gain_and_loss(network))
    return table


def _gain_and_loss(network: Figures) -> tuple[str, str, str]:
    drop = _interval(network.drop_points, 2)
    return _interval(network.speedup, 2, "x"), drop, f"{network.rel_output_error:.2e}"


def layer_table(layers: Sequence[LayerRow]) -> Table:
    """Draw one row for each layer."""
    table = _table(LAYER_HEADINGS, left=("layer", "form", "note"))
    for row in layers:
        table.add_row(*map(Text, layer_cells(row)))  # names may look like markup
    return table


def layer_cells(row: LayerRow) -> list[str]:
    """Return the cells of a layer's row."""
    rank = [row.rank] if isinstance(row.rank, int) else row.rank
    return [
        row.name,
        row.form or "kept",
        show_rank(tuple(rank)) if rank else "",
        _count(row.macs_before),
        _count(row.macs_after),
        _ms(row.latency_before_ms),
        _ms(row.latency_after_ms),
        ("-" if row.form else "") if row.rel_error is None else f"{row.rel_error:.3f}",
        row.reason or "",
    ]


def survey_table(
    layers: Sequence[Layer], table: LatencyTable, tasks: Sequence[Task]
) -> RenderableType:
    """Draw a network's layers, one row each, with their fastest form if forms were timed.

    Below stand what the outputs mean and the conditions.
    """
    drawn = _table(
        (*LAYER_COLUMNS, "could take, ms", ""),
        left=("layer", "kernel", "stride", "input", "could take, ms", ""),
    )
    times = {layer.output: layer for layer in table.layers}
    for layer in layers:
        conv, timed = layer.conv, times.get(layer.output)
        drawn.add_row(
            Text(layer.name),
            "x".join(map(str, conv.kernel.shape)) if conv else "",
            "x".join(map(str, conv.stride)) if conv else "",
            str(conv.groups) if conv else "",
            "x".join(map(str, layer.size)),
            _count(layer.params),
            _count(layer.macs),
            f"{timed.ms:.3f}" if timed else "",
            f"{timed.ms / table.ms:.1%}" if timed else "",
            "" if layer.reason or timed is None or not timed.options else _gain(layer, timed),
            f"kept: {layer.reason}" if layer.reason else "",
        )
    hint = "" if any(timed.options for timed in table.layers) else " --gains times other forms."
    judged = [f"{', '.join(task.outputs)}: {task.name} ({task.unit})" for task in tasks]
    tasks_line = Text(f"Outputs are judged as {'; '.join(judged)}.", style="dim")
    return Group(drawn, tasks_line, Text(_table_line(table) + hint, style="dim"))


def times_table(table: LatencyTable) -> RenderableType:
    """Draw the times of a network's layers, one row each."""
    drawn = _table(("layer", "kernel", "ms", "share", "forms timed"), left=("layer", "kernel"))
    for layer in table.layers:
        drawn.add_row(
            Text(layer.output),
            "x".join(map(str, layer.kernel)),
            f"{layer.ms:.3f}",
            f"{layer.ms / table.ms:.1%}",
            str(len(layer.options)),
        )
    return Group(drawn, Text(_table_line(table), style="dim"))


def _table(headings: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    return table


def _ms(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.3f}"


def _gain(layer: Layer, timed: LayerTimes) -> str:
    """Name the fastest of the forms that keep at least ``USEFUL_SHARE`` of the layer's MACs."""
    assert layer.conv is not None
    useful = [
        option
        for option in timed.options
        if option.ms < timed.ms
        and skeleton(layer.conv, find_form(option.form), option.rank).macs(layer.size)
        >= USEFUL_SHARE * layer.macs
    ]
    if not useful:
        return "no less"
    best = min(useful, key=lambda option: option.ms)
    return f"{best.ms:.3f} ({best.form} {show_rank(best.rank)})"


def _table_line(table: LatencyTable) -> str:
    return (
        f"{table.cpu}; {table.threads} thread(s), {table.provider}; "
        f"{_show_shapes(table.input_shapes)}; onnxruntime {table.onnxruntime}, blocks of "
        f"{table.block} channels; {table.ms:.3f} ms in all."
    )


def conditions_line(comparison: Comparison) -> str:
    """Say in one line under which conditions a comparison was measured."""
    shown = ", ".join(f"{name} {number}" for name, number in comparison.versions.items())
    shapes = _show_shapes(comparison.input_shapes)
    images = f": {comparison.preprocessing}" if comparison.preprocessing else ""
    where = f" at {', '.join(comparison.compared)}" if comparison.compared else ""
    return (
        f"{comparison.cpu}; {comparison.threads} thread(s), {comparison.provider}; {shapes}; "
        f"medians with 99 % intervals of {comparison.rounds} paired blocks; scored on "
        f"{comparison.examples} examples ({comparison.data}{images}){where}; {shown}"
    )


def _show_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return "; ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _interval(interval: Interval, digits: int, unit: str = "") -> str:
    median, low, high = (f"{v:.{digits}f}" for v in (interval.median, interval.low, interval.high))
    return f"{median}{unit} ({low} to {high})"


def _count(number: int) -> str:
    if number < 10_000:
        return str(number)
    power = min(int(math.log10(number)) // 3, 4)
    return f"{number / 1000**power:.4g} {('', 'k', 'M', 'G', 'T')[power]}"
