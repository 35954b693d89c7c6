"""What every benchmark shares: conditions, the results file, and its table."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "scripts" / "results"
DRAWN = {"way", "frontier"}  # columns of the rows that are points of a picture, in no table


def write(name: str, conditions: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``scripts/results/NAME.json``, whole or not at all."""
    document = {
        "conditions": {
            "cpu": conditions["cpu"],
            "threads": conditions["threads"],
            "versions": conditions["versions"],
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
        },
        "rows": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    scratch = RESULTS / f".{name}.partial"
    scratch.write_text(json.dumps(document, indent=2) + "\n")
    scratch.replace(RESULTS / f"{name}.json")


def earlier_rows(name: str, older: bool = False) -> list[dict[str, Any]]:
    """Read the rows of ``scripts/results/NAME.json`` that were measured at this commit.

    Args:
        name: Of the results.
        older: Give those of other commits, too, which then say so, and on which CPU if on another.
    """
    from converter.runtime.ort import cpu_model

    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    now = {"commit": commit(), "cpu": cpu_model()}
    then = {key: document["conditions"][key] for key in now}
    found = [then | row for row in document["rows"]]
    kept = [row for row in found if older or row["commit"] == now["commit"]]
    return [{k: v for k, v in row.items() if now.get(k) != v} for row in kept]


def gather(
    name: str,
    rows: Callable[[argparse.Namespace, set[str]], Iterator[dict[str, Any]]],
    options: argparse.Namespace,
    judged: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list,
) -> list[dict[str, Any]]:
    """Measure rows, and print and write each as it comes, in the place of one of its name.

    Args:
        name: Of the results.
        rows: Measures all rows but those whose names it is given.
        options: With ``resume`` and ``older``, of ``resumable``.
        judged: Adds to rows what follows only from several of them.
    """
    from converter.evaluation.compare import versions
    from converter.runtime.ort import cpu_model

    found = earlier_rows(name, options.older) if options.resume else []
    conditions = {"cpu": cpu_model(), "threads": 1, "versions": versions()}
    for row in rows(options, {row["name"] for row in found}):
        print(row, flush=True)
        found = [other for other in found if other["name"] != row["name"]] + [row]
        write(name, conditions, judged(found))
    return found


def resumable(description: str) -> argparse.ArgumentParser:
    """Make a parser with the options of ``gather``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--older", action="store_true", help="--resume rows of other commits, too")
    return parser


@contextlib.contextmanager
def memory_watched() -> Iterator[dict[str, float]]:
    """Watch, ten times a second at most, what this process and its children hold together.

    Pages that several of them share count once. Counting pages takes longer the more there are, and
    stops who asks for more meanwhile: a twentieth of the time at most is spent on it.

    Yields:
        ``peak_gib``, kept up to date.
    """
    import psutil

    own, found, ended = psutil.Process(), {"peak_gib": 0.0}, threading.Event()

    def watch() -> None:
        pause_s = 0.1
        while not ended.wait(pause_s):
            held, start = 0, time.perf_counter()
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    held += process.memory_full_info().pss
            found["peak_gib"] = max(found["peak_gib"], held / 2**30)
            pause_s = max(0.1, 20 * (time.perf_counter() - start))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def commit() -> str:
    """Name the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def table(name: str) -> str:
    """Draw ``scripts/results/NAME.json`` as a Markdown table with its conditions below."""
    document = json.loads((RESULTS / f"{name}.json").read_text())
    rows = [row for row in document["rows"] if not DRAWN & row.keys()]
    conditions = document["conditions"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        "| " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    shown = ", ".join(f"{name} {number}" for name, number in conditions["versions"].items())
    lines += [
        "",
        f"{conditions['cpu']}, {conditions['threads']} thread(s); {shown}; "
        f"{conditions['date']}, commit {conditions['commit']}.",
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
