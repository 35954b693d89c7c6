"""Markdown tables of the results, between ``<!-- table: NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from scripts.benchmarks.results import RESULTS, ROOT

MARKER = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
DRAWN = {"way", "frontier"}  # columns of rows that are points of a picture and in no table
# Rows of the table called ``summary``: title (with figures of the row), results, row.
SUMMARY = {
    "sample network, `--max-drop 0.01`": ("numbers", "--max-drop 0.01 (scripts/demo.sh)"),
    "ResNet-20, `--max-drop 0.005`": ("resnets_untuned", "ResNet-20, --max-drop 0.005"),
    "ResNet-56, `--max-drop 0.005`": ("resnets_untuned", "ResNet-56, --max-drop 0.005"),
    "ResNet-56, `--max-macs 0.34`, 5 epochs": (
        "resnets_tuned",
        "ResNet-56, --max-macs 0.34, 5 epochs",
    ),
    "sample network, `--target-speedup 10`, 10 epochs": ("paper", "--target-speedup 10, 10 epochs"),
    "sample network, `--target-speedup {target_speedup:g} --int8`, 20 epochs": (
        "int8",
        "sample network, --int8, 20 epochs",
    ),
}


def pages() -> list[Path]:
    """List the pages that have tables."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]
    return [page for page in every if MARKER.search(page.read_text())]


def filled(text: str) -> str:
    """Replace the tables of a page by those of the results."""

    def drawn(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{summary() if name == 'summary' else table(name)}\n{match[3]}"

    return MARKER.sub(drawn, text)


def table(name: str, folder: Path = RESULTS) -> str:
    """Write ``FOLDER/NAME.json`` as a Markdown table with its conditions below."""
    document = json.loads((folder / f"{name}.json").read_text())
    rows = [row for row in document["rows"] if not DRAWN & row.keys()]
    conditions = document["conditions"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        "| " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    versions = ", ".join(f"{name} {number}" for name, number in conditions["versions"].items())
    lines += [
        "",
        f"{conditions['cpu']}, {conditions['threads']} thread(s); {versions}; "
        f"{conditions['date']}, commit {conditions['commit']}.",
    ]
    return "\n".join(lines)


def summary(titles: dict[str, tuple[str, str]] | None = None, folder: Path = RESULTS) -> str:
    """Write the rows that the documentation begins with as a Markdown table.

    Args:
        titles: Title -> (results, row); ``SUMMARY`` if left out.
        folder: Folder of the results files.

    Raises:
        ValueError: When there is no such row.
    """
    lines = ["| converted | times as fast | points lost |", "|---|---|---|"]
    for title, (name, wanted) in (titles or SUMMARY).items():
        row = _row(folder / f"{name}.json", wanted)
        speedup = row.get("speedup") or row["both_speedup"]
        drop = row.get("drop_points")
        if drop is None:
            drop = 100 * (row["accuracy"] - row["both_accuracy"])
        lines.append(f"| {title.format(**row)} | {speedup:.3g} | {drop:.2f} |")
    return "\n".join(lines)


def _row(path: Path, name: str) -> dict[str, Any]:
    for row in json.loads(path.read_text())["rows"]:
        if row["name"] == name:
            return dict(row)
    raise ValueError(f"{path.name} has no row {name!r}.")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
