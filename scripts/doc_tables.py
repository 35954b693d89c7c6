"""Writes the tables of the documentation: ``python -m scripts.doc_tables``.

They are made from ``scripts/results/*.json``. A page holds a table between ``<!-- table: NAME -->``
and ``<!-- end -->``. Headings carry units, a column without a value is left out, and a row that was
measured at another commit or on another CPU than the line below the table says has a footnote.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.doc_layout import COLUMNS, INTERVAL, MISSED, PERCENT, SUMMARY, TABLES, Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "scripts" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "pages" / "benchmarks.md")
PACKAGES = ("onnxruntime", "torch", "tensorly", "numpy")  # whose versions stand below a table
MARKS = "¹²³⁴⁵⁶⁷⁸⁹"


def read(name: str) -> dict[str, Any]:
    """Read ``scripts/results/NAME.json``."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def table(name: str) -> str:
    """Write one of ``TABLES`` as Markdown, its conditions and footnotes below."""
    layout = TABLES[name]
    document = read(layout.results)
    conditions, notes = document["conditions"], list[str]()
    rows = [r for r in document["rows"] if not {"way", "frontier"} & r.keys() and layout.keep(r)]
    keys = [key for key in layout.columns.split() if any(_cell(row, key) for row in rows)]
    body = []
    for row in rows:
        mark = _mark(_measured_at(row, conditions), notes)
        cells = [_cell(row, key) for key in keys]
        body.append([row["name"].removeprefix(layout.prefix) + mark, *cells])
    versions = [f"{package} {conditions['versions'][package]}" for package in PACKAGES]
    threads = f"{conditions['threads']} thread" + "s" * (conditions["threads"] > 1)
    below = [_cpu(conditions["cpu"]), threads, *versions]
    return "\n".join(
        [
            *_markdown([layout.first, *map(_heading, keys)], body),
            "",
            f"{', '.join(below)}; {conditions['date']}, commit {conditions['commit']}.",
            *_footnotes(notes),
        ]
    )


def summary() -> str:
    """Write the rows of ``SUMMARY`` as the table of the README.

    Raises:
        ValueError: When the results have no such row, or several.
    """
    notes, body = list[str](), list[list[str]]()
    for title, name, wanted in SUMMARY:
        document = read(name)
        (row,) = (row for row in document["rows"] if row["name"] == wanted)
        drop = row.get("drop_points")
        if drop is None and "both_accuracy" in row:
            drop = 100 * (row["accuracy"] - row["both_accuracy"])
        measured = document["conditions"] | row
        note = f"{_cpu(measured['cpu'])}, commit {measured['commit']}"
        speedup = f"{row.get('speedup') or row['both_speedup']:.3g}"
        lost = "-" if drop is None else f"{drop:.2f}"
        body.append([title.format(**row) + _mark(note, notes), speedup, lost])
    head = ["Network and options", "Speedup", "Points lost"]
    return "\n".join([*_markdown(head, body), *_footnotes(notes)])


def missed() -> str:
    """List every row of the results that missed its target, with its figures."""
    lines = []
    for path in sorted(RESULTS.glob("*.json")):
        for row in read(path.stem)["rows"]:
            if False not in (row.get("met"), row.get("delivered")):
                continue
            network = "sample network, " if row["name"].startswith("--") else ""
            figures = [f"{row[k]:{spec}} {unit}" for k, (spec, unit) in MISSED.items() if k in row]
            target = row.get("target") or f"{row['times']:g} times as fast"
            lines.append(f"- {network}{row['name']}: {', '.join(figures)} (target: {target})")
    return "\n".join(lines)


def filled(text: str) -> str:
    """Write the tables between ``<!-- table: NAME -->`` and ``<!-- end -->`` again."""

    def written(match: re.Match[str]) -> str:
        write = {"summary": summary, "missed": missed}.get(match[2], lambda: table(match[2]))
        return f"{match[1]}{write()}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", written, text, flags=re.DOTALL)


def _heading(key: str) -> str:
    other = "99 % interval" if key.endswith("_interval") else key
    return COLUMNS.get(key, (other, ""))[0]


def _cell(row: Row, key: str) -> str:
    if key.endswith("_interval"):
        ends = [row.get(key.replace("_interval", end)) for end in INTERVAL]
        return "" if None in ends else f"{ends[0]:.2f} to {ends[1]:.2f}"
    value, spec = row.get(key), COLUMNS.get(key, ("", ""))[1]
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{100 * value:.2f}" if spec == PERCENT else format(value, spec)


def _measured_at(row: Row, conditions: Row) -> str:
    """Say where a row was measured if not under ``conditions``, else nothing."""
    cpu = row.get("cpu", conditions["cpu"])
    changed = [f"commit {row['commit']}"] if row.get("commit") else []
    return ", ".join(changed + [_cpu(cpu)] * (cpu != conditions["cpu"]))


def _mark(note: str, notes: list[str]) -> str:
    """Return the mark of a footnote, which is added if it is new."""
    if not note:
        return ""
    if note not in notes:
        notes.append(note)
    return " " + MARKS[notes.index(note)]


def _footnotes(notes: Sequence[str]) -> list[str]:
    text = "; ".join(f"{mark} {note}" for mark, note in zip(MARKS, notes))
    return ["", text + "."] if notes else []


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    columns = ("".join(cells) for cells in zip(*body))
    rule = ["---" if n == 0 or re.search("[a-z]{3}", c) else "---:" for n, c in enumerate(columns)]
    return ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]


def _cpu(name: str) -> str:
    return name.replace("(R)", "")


def main() -> int:
    """Write the tables into the README and the benchmarks page."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
