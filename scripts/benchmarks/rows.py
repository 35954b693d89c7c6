"""Figures of rows, taken from ``report.json`` and from comparisons: one place for all suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scripts.benchmarks.suite import Figures

Report = Mapping[str, Any]

FIGURES: dict[str, Callable[[Report], Any]] = {
    "accuracy": lambda r: r["converted"]["accuracy"],
    "drop_points": lambda r: r["drop_points"],
    "macs_ratio": lambda r: r["original"]["macs"] / r["converted"]["macs"],
    "params_ratio": lambda r: r["original"]["params"] / r["converted"]["params"],
    "macs_share": lambda r: r["converted"]["macs"] / r["original"]["macs"],
    "params_share": lambda r: r["converted"]["params"] / r["original"]["params"],
    "original_ms": lambda r: r["original"]["latency_ms"]["median"],
    "original_latency_ms": lambda r: r["original"]["latency_ms"]["median"],
    "latency_ms": lambda r: r["converted"]["latency_ms"]["median"],
    "speedup": lambda r: r["speedup"]["median"],
    "speedup_low": lambda r: r["speedup"]["low"],
    "speedup_high": lambda r: r["speedup"]["high"],
    "predicted_speedup": lambda r: r["predicted_speedup"],
    "rel_output_error": lambda r: r["rel_output_error"],
    "agreement": lambda r: r["agreement"],
    "reason": lambda r: r["reason"],
    "layers_converted": lambda r: sum(layer["form"] is not None for layer in r["layers"]),
}
BUDGET = "accuracy drop_points macs_ratio params_ratio speedup"


def from_report(report: Report, names: str = BUDGET) -> Figures:
    """Take figures from a conversion's report.

    Args:
        report: What ``report.json`` holds.
        names: Names of ``FIGURES``, separated by blanks.

    Raises:
        KeyError: When there is no such figure.
    """
    return {name: FIGURES[name](report) for name in names.split()}


def from_pair(original: Report, network: Report, names: str = BUDGET) -> Figures:
    """Take figures of one network of a comparison, beside the original."""
    return from_report({**network, "original": original, "converted": network}, names)


def from_int8(report: Report) -> Figures:
    """Take the figures of a conversion with ``--int8``: both networks, both precisions."""
    alone, both = report["int8"]["original"], report["int8"]["converted"]
    gain = report["int8"]["gain"]
    figures = {
        "original_ms": report["original"]["latency_ms"]["median"],
        "int8_speedup": alone["speedup"]["median"],
        "flattened_speedup": report["speedup"]["median"],
        "both_speedup": both["speedup"]["median"],
        "gain": gain["median"],
        "gain_low": gain["low"],
        "gain_high": gain["high"],
        "macs_share": both["macs"] / report["original"]["macs"],
    }
    if both["accuracy"] is None:
        return figures
    return figures | {
        "accuracy": report["original"]["accuracy"],
        "int8_accuracy": alone["accuracy"],
        "flattened_accuracy": report["converted"]["accuracy"],
        "both_accuracy": both["accuracy"],
        "points_between": round(100 * (alone["accuracy"] - both["accuracy"]), 4),
    }
