"""The tables of the documentation, made from ``scripts/results/*.json``.

A page holds a table between ``<!-- table: NAME -->`` and ``<!-- end -->``. Headings carry units, a
column without a value is left out, and a row that was measured at another commit, or on another
CPU, than the conditions below the table say has a footnote.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "scripts" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "pages" / "benchmarks.md")
VERSIONS = ("onnxruntime", "torch", "tensorly", "numpy")  # of the conditions, shown below a table
MARKS = "¹²³⁴⁵⁶⁷⁸⁹"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: With the unit.
        value: Key of the rows, or a function of a row; None leaves the cell empty.
        spec: Format of numbers.
        factor: What numbers are multiplied by, as 100 for per cent.
    """

    heading: str
    value: str | Callable[[Row], Any]
    spec: str = ".2f"
    factor: float = 1

    def cell(self, row: Row) -> str:
        """Format the value of one row."""
        value = row.get(self.value) if isinstance(self.value, str) else self.value(row)
        if value is None or value == "":
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        return value if isinstance(value, str) else format(value * self.factor, self.spec)


@dataclass(frozen=True)
class Table:
    """One table of a page.

    Attributes:
        results: Name of the file in ``scripts/results``.
        columns: From left to right, after the name.
        keep: Which rows it shows.
        first: Heading of the first column.
        title: Makes the text of the first column of a row.
    """

    results: str
    columns: Sequence[Column]
    keep: Callable[[Row], bool] = lambda row: True
    first: str = "Network"
    title: Callable[[Row], str] = lambda row: str(row["name"])


def interval(low: str, high: str) -> Callable[[Row], str | None]:
    """Make a value of two keys: ``1.50 to 1.60``."""
    return lambda row: f"{row[low]:.2f} to {row[high]:.2f}" if low in row else None


def names(*parts: str) -> Callable[[Row], bool]:
    """Keep rows whose name contains one of ``parts``."""
    return lambda row: any(part in row["name"] for part in parts)


def has(*keys: str) -> Callable[[Row], bool]:
    """Keep rows with all of ``keys`` that are not points of a picture."""
    return lambda row: all(k in row for k in keys) and not {"way", "frontier"} & row.keys()


def without(text: str) -> Callable[[Row], str]:
    """Leave ``text`` out of the names."""
    return lambda row: str(row["name"]).replace(text, "")


SPEEDUP = Column("Speedup", "speedup")
SPEEDUPS = (SPEEDUP, Column("99 % interval", interval("speedup_low", "speedup_high")))
ACCURACY = Column("Accuracy, %", "accuracy", factor=100)
LOST = Column("Points lost", "drop_points")
MACS = Column("MACs, times fewer", "macs_ratio")
MACS_LEFT = Column("MACs left, %", "macs_share", ".0f", 100)
PARAMS = Column("Parameters, times fewer", "params_ratio")
TARGET = (Column("Target", "target"), Column("Met", "met"))
MINUTES = Column("Minutes", "minutes", ".1f")
GIB = Column("Peak memory, GiB", "peak_gib", ".1f")
PEER_COLUMNS = (
    *SPEEDUPS,
    MACS_LEFT,
    Column("Points lost, not tuned", "drop_points_untuned"),
    Column("Points lost, tuned", "drop_points_tuned"),
    Column("Latency, ms", "median_ms"),
    Column("Tuned in", "trained_in"),
    Column("Note", "reason"),
)


def _peers(network: str) -> Table:
    return Table(
        "peers", PEER_COLUMNS, names(network), "Tool", lambda row: row["name"].split(", ", 2)[2]
    )


TABLES: dict[str, Table] = {
    "numbers": Table(
        "numbers",
        (
            *SPEEDUPS,
            Column("Latency, ms", "latency_ms", ".3f"),
            ACCURACY,
            LOST,
            MACS,
            PARAMS,
            *TARGET,
        ),
        first="Sample network, converted by",
    ),
    "resnets_rank": Table(
        "resnets_untuned",
        (ACCURACY, LOST, SPEEDUP, MACS, Column("Solving, s", "solve_s", ".0f"), *TARGET),
        lambda row: has("accuracy", "solve_s")(row),
    ),
    "resnets_budget": Table(
        "resnets_untuned",
        (SPEEDUP, ACCURACY, LOST, MACS, PARAMS, *TARGET),
        lambda row: has("accuracy", "target")(row) and "solve_s" not in row,
    ),
    "resnets_cost": Table(
        "resnets_untuned",
        (
            Column("Solving, s", "solve_s", ".0f"),
            Column("Whole conversion, s", "whole_s", ".0f"),
            GIB,
            *TARGET,
        ),
        has("peak_gib"),
    ),
    "resnets_tuned": Table("resnets_tuned", (SPEEDUP, ACCURACY, LOST, MACS, MINUTES, *TARGET)),
    "paper": Table(
        "paper",
        (
            SPEEDUP,
            Column("Speedup, all threads", "speedup_all_threads"),
            ACCURACY,
            LOST,
            MACS,
            Column("Convolution weights, times fewer", "conv_params_ratio"),
            MINUTES,
            *TARGET,
        ),
        lambda row: "images" not in row["name"] and "Fashion" not in row["name"],
        "Sample network",
    ),
    "paper_fashion": Table(
        "paper",
        (SPEEDUP, ACCURACY, LOST, MINUTES),
        names("Fashion"),
        "Fashion-MNIST",
        without("Fashion-MNIST, "),
    ),
    "paper_resume": Table(
        "paper",
        (
            LOST,
            Column("Killed, times", "kills", "d"),
            Column("Largest difference of a weight", "farthest_weight", ".2g"),
        ),
        names("images"),
        "Training",
    ),
    "zoo": Table(
        "zoo",
        (
            Column("Original, ms", "original_ms", ".1f"),
            *SPEEDUPS,
            Column("Predicted", "predicted_speedup"),
            MACS_LEFT,
            Column("Conversion, s", "convert_s", ".0f"),
            Column("Reached", "delivered"),
        ),
        has("times"),
        "Network, speedup asked for",
    ),
    "zoo_targets": Table(
        "zoo", (Column("Result", "count", ".3g"), *TARGET), has("count"), "All networks"
    ),
    "onnx_same": Table(
        "onnx",
        (
            Column("Layers converted", "layers_converted", "d"),
            Column("Same plan", "same_plan"),
            Column("Relative difference", "rel_difference", ".2g"),
            *TARGET,
        ),
        has("same_plan"),
    ),
    "onnx_public": Table(
        "onnx",
        (
            *SPEEDUPS,
            Column("Output error", "rel_output_error", ".3f"),
            MACS_LEFT,
            Column("Conversion, s", "convert_s", ".0f"),
            *TARGET,
        ),
        has("rel_output_error"),
    ),
    "onnx_large": Table(
        "onnx",
        (
            Column("File, GiB", "size_gib", ".1f"),
            GIB,
            Column("Conversion, s", "convert_s", ".0f"),
            *TARGET,
        ),
        has("size_gib"),
        "File",
    ),
    "int8": Table(
        "int8",
        (
            Column("int8 alone, speedup", "int8_speedup"),
            Column("flatconv, speedup", "flattened_speedup"),
            Column("Both, speedup", "both_speedup"),
            Column("Both over int8 alone", "gain"),
            Column("99 % interval", interval("gain_low", "gain_high")),
            Column("int8 alone, accuracy, %", "int8_accuracy", factor=100),
            Column("Both, accuracy, %", "both_accuracy", factor=100),
            Column("Points between", "points_between"),
            *TARGET,
        ),
    ),
    "peers_sample": _peers("sample network, "),
    "peers_resnet20": _peers("ResNet-20, "),
    "peers_resnet56": _peers("ResNet-56, "),
    "peers_resnet18": _peers("ResNet-18, "),
    "solver": Table(
        "solver",
        (
            Column("flatconv, s", "time_s"),
            Column("tensorly, s", "time_tensorly_s", ".1f"),
            Column("Times faster", "time_ratio", ".1f"),
            Column("Relative error", "rel_error", ".4f"),
            Column("tensorly's", "rel_error_tensorly", ".4f"),
            *TARGET,
        ),
        first="Kernel",
    ),
    "fuzz": Table(
        "fuzz",
        (
            Column("Inputs", "inputs", "d"),
            Column("Read", "read", "d"),
            Column("Refused", "refused", "d"),
            Column("Failed", "failed", "d"),
            GIB,
            *TARGET,
        ),
        first="Kind of file",
    ),
    "faults": Table(
        "faults",
        (
            Column("Trials", "times", "d"),
            Column("Folder complete, old", "old", "d"),
            Column("Folder complete, new", "new", "d"),
            Column("Folder damaged", "wrong", "d"),
            Column("Same command then works", "goes_on"),
        ),
        first="Command and fault",
    ),
    "intervals": Table(
        "intervals",
        (
            Column("Claimed a difference", "claims", "d"),
            Column("Speedup, quiet", "ratio_quiet"),
            Column("Speedup, busy", "ratio_busy"),
            *TARGET,
        ),
        first="Comparison",
    ),
    "scale": Table(
        "scale",
        (
            Column("Layers converted", "converted", "d"),
            Column("Seconds", "seconds", ".0f"),
            Column("Off a straight line, %", "seconds_off_line", "+.0f", 100),
            GIB,
            *TARGET,
        ),
    ),
    "wheel": Table(
        "wheel",
        (
            *(Column(name, name) for name in ("numpy", "onnx", "onnxruntime", "tensorly", "torch")),
            Column("Commands run", "commands", "d"),
            Column("All worked", "met"),
        ),
        first="Versions",
    ),
}

# The table of the README: text of a row (with figures of the results' row), results, name there.
SUMMARY: tuple[tuple[str, str, str], ...] = (
    (
        "sample network, `--max-drop 0.01`, 512 images",
        "numbers",
        "--max-drop 0.01 (scripts/demo.sh)",
    ),
    (
        "sample network, `--max-drop 0.01`, 2,048 images",
        "resnets_untuned",
        "sample network, --max-drop 0.01",
    ),
    ("ResNet-20, `--max-drop 0.005`", "resnets_untuned", "ResNet-20, --max-drop 0.005"),
    ("ResNet-56, `--max-drop 0.005`", "resnets_untuned", "ResNet-56, --max-drop 0.005"),
    ("ResNet-56, `--max-macs 0.34`", "resnets_untuned", "ResNet-56, --max-macs 0.34"),
    (
        "ResNet-56, `--max-macs 0.34`, 5 epochs",
        "resnets_tuned",
        "ResNet-56, --max-macs 0.34, 5 epochs",
    ),
    (
        "sample network, `--target-speedup 10`, 10 epochs",
        "paper",
        "--target-speedup 10, 10 epochs",
    ),
    (
        "sample network, `--target-speedup {target_speedup:g} --int8`, 20 epochs",
        "int8",
        "sample network, --int8, 20 epochs",
    ),
    ("ResNet-18, random weights, `--target-speedup 3`", "zoo", "ResNet-18, 3x"),
    ("ResNet-50, random weights, `--target-speedup 3`", "zoo", "ResNet-50, 3x"),
)

# Figures of a row that missed its target: format and unit, by key.
MISSED = {
    "speedup": (".3f", "times as fast"),
    "drop_points": (".2f", "points lost"),
    "gain": (".3f", "times as fast as int8 alone"),
    "points_between": (".2f", "points below it"),
}


def read(name: str) -> dict[str, Any]:
    """Read ``scripts/results/NAME.json``."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def table(name: str) -> str:
    """Write one of ``TABLES`` as Markdown, its conditions and footnotes below."""
    layout = TABLES[name]
    document = read(layout.results)
    rows, conditions = [r for r in document["rows"] if layout.keep(r)], document["conditions"]
    notes: list[str] = []
    lines = [
        [layout.title(row) + _mark(_measured(row, conditions), notes)]
        + [column.cell(row) for column in layout.columns]
        for row in rows
    ]
    cells = [[layout.first, *(column.heading for column in layout.columns)], *lines]
    filled_in = [n for n, column in enumerate(zip(*lines)) if n == 0 or any(column)]
    versions = ", ".join(
        f"{package} {conditions['versions'][package]}"
        for package in VERSIONS
        if package in conditions["versions"]
    )
    return "\n".join(
        [
            *_markdown([[line[n] for n in filled_in] for line in cells]),
            "",
            f"{_cpu(conditions['cpu'])}, {_threads(conditions['threads'])}, {versions}; "
            f"{conditions['date']}, commit {conditions['commit']}.",
            *_footnotes(notes),
        ]
    )


def summary() -> str:
    """Write the rows of ``SUMMARY`` as the table of the README.

    Raises:
        ValueError: When the results have no such row, or several.
    """
    notes: list[str] = []
    lines = [["Network and options", "Speedup", "Points lost"]]
    for title, name, wanted in SUMMARY:
        document = read(name)
        (row,) = (row for row in document["rows"] if row["name"] == wanted)
        speedup = row.get("speedup") or row["both_speedup"]
        drop = row.get("drop_points")
        if drop is None and "both_accuracy" in row:
            drop = 100 * (row["accuracy"] - row["both_accuracy"])
        measured = document["conditions"] | row
        note = f"{_cpu(measured['cpu'])}, commit {measured['commit']}"
        lines.append(
            [
                title.format(**row) + _mark(note, notes),
                f"{speedup:.3g}",
                "–" if drop is None else f"{drop:.2f}",
            ]
        )
    return "\n".join([*_markdown(lines), *_footnotes(notes)])


def missed() -> str:
    """List every row of the results that missed its target, with its figures."""
    lines = []
    for path in sorted(RESULTS.glob("*.json")):
        for row in read(path.stem)["rows"]:
            if False in (row.get("met"), row.get("delivered")):
                figures = ", ".join(
                    f"{row[key]:{spec}} {unit}" for key, (spec, unit) in MISSED.items() if key in row
                )
                target = row.get("target") or f"{row['times']:g} times as fast"
                network = "sample network, " if row["name"].startswith("--") else ""
                lines.append(f"- {network}{row['name']}: {figures} (target: {target})")
    return "\n".join(lines)


def filled(text: str) -> str:
    """Write the tables between ``<!-- table: NAME -->`` and ``<!-- end -->`` again."""

    def written(match: re.Match[str]) -> str:
        write = {"summary": summary, "missed": missed}.get(match[2], lambda: table(match[2]))
        return f"{match[1]}{write()}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", written, text, flags=re.DOTALL)


def _measured(row: Row, conditions: Mapping[str, Any]) -> str:
    """Say where a row was measured if not under ``conditions``, else nothing."""
    changed = [f"commit {row['commit']}"] if row.get("commit") else []
    if row.get("cpu") and row["cpu"] != conditions["cpu"]:
        changed.append(_cpu(row["cpu"]))
    return ", ".join(changed)


def _mark(note: str, notes: list[str]) -> str:
    """Return the mark of a footnote, which is added if it is new."""
    if not note:
        return ""
    if note not in notes:
        notes.append(note)
    return " " + MARKS[notes.index(note)]


def _footnotes(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    return ["", "; ".join(f"{mark} {note}" for mark, note in zip(MARKS, notes)) + "."]


def _markdown(lines: Iterable[Sequence[str]]) -> list[str]:
    head, *body = lines
    numbers = (any(cells) and not re.search("[a-z]{3}", "".join(cells)) for cells in zip(*body))
    rule = ["---:" if number else "---" for number in numbers]
    return ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]


def _cpu(name: str) -> str:
    return name.replace("(R)", "").replace("  ", " ")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def main() -> int:
    """Write the tables into the README and the benchmarks page."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
