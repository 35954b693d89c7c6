"""Results files: ``{"conditions": {...}, "rows": [...]}``, written whole as each row arrives."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from converter.evaluation.comparison import versions
from converter.runtime.ort import cpu_model

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "results"

Row: TypeAlias = dict[str, Any]  # {"name", figures with units in their names, "target", "met"}


def commit() -> str:
    """Name the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def write(name: str, rows: Sequence[Row], folder: Path = RESULTS, threads: int = 1) -> None:
    """Write ``FOLDER/NAME.json``, whole or not at all.

    Args:
        name: Name of the results.
        rows: All rows; those of another commit or CPU say so.
        folder: Folder of the results files.
        threads: Threads that were timed.
    """
    document = {
        "conditions": {
            "cpu": cpu_model(),
            "threads": threads,
            "versions": versions(),
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
        },
        "rows": list(rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{name}.partial"
    scratch.write_text(json.dumps(document, indent=2) + "\n")
    scratch.replace(folder / f"{name}.json")


def earlier_rows(name: str, folder: Path = RESULTS, older: bool = False) -> list[Row]:
    """Read the rows of ``FOLDER/NAME.json`` that were measured at this commit.

    Args:
        name: Name of the results.
        folder: Folder of the results files.
        older: Also give the rows of other commits. Such rows name their commit, and their CPU if
            it was another one.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    now = {"commit": commit(), "cpu": cpu_model()}
    then = {key: document["conditions"][key] for key in now}
    rows = [then | row for row in document["rows"]]
    kept = [row for row in rows if older or row["commit"] == now["commit"]]
    return [{k: v for k, v in row.items() if now.get(k) != v} for row in kept]
