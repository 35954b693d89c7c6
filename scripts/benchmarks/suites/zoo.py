"""A zoo of architectures at two target speedups: how many are delivered, and why not all.

Random weights (the time does not depend on them), no sample inputs, one thread, batch 1.
"""

from __future__ import annotations

import time
from functools import partial

import converter
from scripts.benchmarks.models import ZOO, noise
from scripts.benchmarks.results import Row
from scripts.benchmarks.rows import from_report
from scripts.benchmarks.run import report_of
from scripts.benchmarks.suite import Case, Figures, Settings, Suite

DELIVERED = {1.5: 9, 3.0: 4}  # target speedup -> networks that must reach it
MAX_DEVIATION, MIN_SHARE = 0.10, 0.9  # of predicted speedups
FIGURES = "original_ms speedup speedup_low speedup_high predicted_speedup macs_share"


def measure(name: str, speedup: float, settings: Settings) -> Figures:
    """Convert one architecture."""
    architecture, start = ZOO[name], time.perf_counter()
    try:
        example = noise(*architecture.shape)
        report = report_of(architecture.build(), example, target_speedup=speedup)
    except converter.ConverterError as error:
        return {"times": speedup, "reason": str(error)}
    figures = {"times": speedup, **from_report(report, FIGURES)}
    figures["delivered"] = figures["speedup"] >= speedup
    return figures | {"convert_s": time.perf_counter() - start, "reason": report["reason"]}


def summarize(rows: list[Row]) -> list[Row]:
    """Count what was delivered, what became slower, and how far predictions were off."""
    rows = [row for row in rows if "," in row["name"]]
    summary: list[Row] = []
    for speedup, count in DELIVERED.items():
        ending = f", {speedup:g}x"
        reached = sum(bool(row.get("delivered")) for row in rows if row["name"].endswith(ending))
        target = {"target": f"at least {count} of {len(ZOO)}", "met": reached >= count}
        summary.append({"name": f"delivered at {speedup:g}x", "count": reached, **target})
    ratios = [r["predicted_speedup"] / r["speedup"] for r in rows if r.get("predicted_speedup")]
    share = sum(abs(ratio - 1) <= MAX_DEVIATION for ratio in ratios) / max(len(ratios), 1)
    target = {"target": f"at least {MIN_SHARE:g}", "met": share >= MIN_SHARE}
    summary.append({"name": "predicted within 10 %", "count": share, **target})
    slower = sum(row["speedup_high"] < 1 for row in rows if "speedup_high" in row)
    summary.append({"name": "slower", "count": slower, "target": "none", "met": slower == 0})
    return rows + summary


SUITE = Suite(
    "zoo",
    [
        Case(f"{name}, {speedup:g}x", partial(measure, name, speedup), own_process=True)
        for name in ZOO
        for speedup in DELIVERED
    ],
    summarize=summarize,
    about="14 public architectures with random weights, at 1.5 and 3 times the speed",
)
