"""Which tables the documentation has: rows, columns with their headings, and formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

PERCENT = ":.%"  # a format of our own: a share written in per cent

Row = Mapping[str, Any]

# Heading, with the unit, and format of each figure.
COLUMNS: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy, %", PERCENT),
    "before_whole_s": ("Before, s", ".0f"),
    "both_accuracy": ("Both, accuracy, %", PERCENT),
    "both_speedup": ("Both, speedup", ".2f"),
    "claims": ("Claimed a difference", "d"),
    "commands": ("Commands run", "d"),
    "conv_params_ratio": ("Convolution weights, times fewer", ".2f"),
    "conversions": ("Conversions", "d"),
    "convert_s": ("Conversion, s", ".0f"),
    "converted": ("Layers converted", "d"),
    "count": ("Result", ".3g"),
    "delivered": ("Reached", ""),
    "drop_points": ("Points lost", ".2f"),
    "drop_points_tuned": ("Points lost, tuned", ".2f"),
    "drop_points_untuned": ("Points lost, not tuned", ".2f"),
    "failed": ("Failed", "d"),
    "farthest_weight": ("Largest difference of a weight", ".2g"),
    "flattened_speedup": ("flatconv, speedup", ".2f"),
    "gain": ("Both over int8 alone", ".2f"),
    "goes_on": ("Same command then works", ""),
    "inputs": ("Inputs", "d"),
    "int8_accuracy": ("int8 alone, accuracy, %", PERCENT),
    "int8_conv_lost_points": ("int8 of convolutions, answers lost, points", ".2f"),
    "int8_conv_speedup": ("int8 of convolutions, speedup", ".2f"),
    "int8_lost_points": ("int8, answers lost, points", ".2f"),
    "int8_speedup": ("int8 alone, speedup", ".2f"),
    "kept": ("Said to be kept", "d"),
    "kills": ("Killed, times", "d"),
    "latency_ms": ("Latency, ms", ".3f"),
    "layers_converted": ("Layers converted", "d"),
    "lost_points": ("Answers lost, points", ".2f"),
    "macs_ratio": ("MACs, times fewer", ".2f"),
    "macs_share": ("MACs left, %", PERCENT),
    "median_ms": ("Latency, ms", ".2f"),
    "met": ("Met", ""),
    "minutes": ("Minutes", ".1f"),
    "new": ("Folder complete, new", "d"),
    "old": ("Folder complete, old", "d"),
    "original_ms": ("Original, ms", ".1f"),
    "params_ratio": ("Parameters, times fewer", ".2f"),
    "peak_gib": ("Peak memory, GiB", ".1f"),
    "points_between": ("Points between", ".2f"),
    "predicted_speedup": ("Predicted", ".2f"),
    "ratio_busy": ("Speedup, busy", ".2f"),
    "ratio_quiet": ("Speedup, quiet", ".2f"),
    "read": ("Read", "d"),
    "reason": ("Note", ""),
    "refused": ("Refused", "d"),
    "rel_difference": ("Relative difference", ".2g"),
    "rel_error": ("Relative error", ".4f"),
    "rel_error_tensorly": ("tensorly's relative error", ".4f"),
    "rel_output_error": ("Output error", ".3f"),
    "same_plan": ("Same plan", ""),
    "seconds": ("Seconds", ".0f"),
    "seconds_off_line": ("Off a straight line, %", PERCENT),
    "share": ("Undecided, %", PERCENT),
    "share_of_cold": ("Of the first time, %", PERCENT),
    "share_true": ("True, %", PERCENT),
    "size_gib": ("File, GiB", ".1f"),
    "solve_s": ("Solving, s", ".0f"),
    "speedup": ("Speedup", ".2f"),
    "speedup_all_threads": ("Speedup, all threads", ".2f"),
    "target": ("Target", ""),
    "task": ("Task", ""),
    "time_ratio": ("Times faster", ".1f"),
    "time_s": ("flatconv, s", ".2f"),
    "time_tensorly_s": ("tensorly, s", ".1f"),
    "times": ("Trials", "d"),
    "told_fresh_points": ("The same, fresh inputs", ".2f"),
    "told_interval": ("One-sided 95 % bounds", ""),
    "told_points": ("Points lost, told", ".2f"),
    "trained_in": ("Tuned in", ""),
    "verdict": ("Verdict", ""),
    "whole_s": ("Whole conversion, s", ".0f"),
    "worst_excess_share": ("Farthest off, % of the budget", PERCENT),
    "wrong": ("Folder damaged", "d"),
}
INTERVAL = ("_low", "_high")  # NAME_interval: NAME_low to NAME_high


@dataclass(frozen=True)
class Table:
    """One table of a page.

    Attributes:
        results: Name of the file in ``scripts/results``.
        columns: Names of ``COLUMNS``, separated by blanks, after the name of the row.
        first: Heading of the first column.
        keep: Which rows it shows, of those that are no points of a picture.
        prefix: What is left out at the beginning of the names.
    """

    results: str
    columns: str
    first: str = "Network"
    keep: Callable[[Row], bool] = lambda row: True
    prefix: str = ""


SPEEDUP = "speedup speedup_interval"
NO_MARKS = str.maketrans("", "", "-,")
PEERS = (
    f"{SPEEDUP} macs_share drop_points_untuned drop_points_tuned median_ms trained_in reason",
    "Tool",
)


def _begins_with(name: str, row: Row) -> bool:
    return bool(row["name"].startswith(name))


TABLES = {
    "numbers": Table(
        "numbers",
        f"{SPEEDUP} latency_ms accuracy drop_points macs_ratio params_ratio target met",
        "Sample network, converted by",
    ),
    "resnets_rank": Table(
        "resnets_untuned",
        "accuracy drop_points speedup macs_ratio solve_s target met",
        keep=lambda row: {"accuracy", "solve_s"} <= row.keys(),
    ),
    "resnets_budget": Table(
        "resnets_untuned",
        "speedup accuracy drop_points macs_ratio params_ratio target met",
        keep=lambda row: "accuracy" in row and "solve_s" not in row,
    ),
    "resnets_cost": Table(
        "resnets_untuned",
        "solve_s whole_s peak_gib target met",
        keep=lambda row: "peak_gib" in row,
    ),
    "resnets_tuned": Table(
        "resnets_tuned", "speedup accuracy drop_points macs_ratio minutes target met"
    ),
    "paper": Table(
        "paper",
        "speedup speedup_all_threads accuracy drop_points macs_ratio conv_params_ratio minutes "
        "target met",
        "Sample network",
        lambda row: "images" not in row["name"] and "Fashion" not in row["name"],
    ),
    "paper_fashion": Table(
        "paper",
        "speedup accuracy drop_points minutes",
        "Fashion-MNIST",
        lambda row: "Fashion" in row["name"],
        "Fashion-MNIST, ",
    ),
    "paper_resume": Table(
        "paper", "drop_points kills farthest_weight", "Training", lambda row: "kills" in row
    ),
    "zoo": Table(
        "zoo",
        f"original_ms {SPEEDUP} predicted_speedup macs_share convert_s delivered",
        "Network, speedup asked for",
        lambda row: "times" in row,
    ),
    "zoo_targets": Table("zoo", "count target met", "All networks", lambda row: "count" in row),
    "onnx_same": Table(
        "onnx",
        "layers_converted same_plan rel_difference target met",
        keep=lambda row: "same_plan" in row,
    ),
    "onnx_public": Table(
        "onnx",
        f"{SPEEDUP} rel_output_error macs_share convert_s target met",
        keep=lambda row: "rel_output_error" in row,
    ),
    "onnx_large": Table(
        "onnx", "size_gib peak_gib convert_s target met", "File", lambda row: "size_gib" in row
    ),
    "int8": Table(
        "int8",
        "int8_speedup flattened_speedup both_speedup gain gain_interval int8_accuracy "
        "both_accuracy points_between target met",
    ),
    **{
        f"peers_{name.split()[0].lower().translate(NO_MARKS)}": Table(
            "peers", *PEERS, partial(_begins_with, name), name
        )
        for name in (
            "sample network, 3 epochs, ",
            "ResNet-20, 3 epochs, ",
            "ResNet-56, 3 epochs, ",
            "ResNet-18, random weights, ",
        )
    },
    "solver": Table(
        "solver",
        "time_s time_tensorly_s time_ratio rel_error rel_error_tensorly target met",
        "Kernel",
    ),
    "fuzz": Table("fuzz", "inputs read refused failed peak_gib target met", "Kind of file"),
    "faults": Table("faults", "times old new wrong goes_on", "Command and fault"),
    "intervals": Table("intervals", "claims ratio_quiet ratio_busy target met", "Comparison"),
    "kept": Table(
        "kept",
        "conversions kept share_true worst_excess_share share target met",
        "What",
        keep=lambda row: "conversions" in row,
    ),
    "real": Table(
        "real",
        f"task verdict {SPEEDUP} told_points told_interval told_fresh_points lost_points "
        "int8_speedup int8_lost_points int8_conv_speedup int8_conv_lost_points convert_s "
        "target met",
    ),
    "scale": Table("scale", "converted seconds seconds_off_line peak_gib target met"),
    "stages": Table(
        "stages", "before_whole_s whole_s share_of_cold speedup peak_gib target met", "Conversion"
    ),
    "wheel": Table("wheel", "numpy onnx onnxruntime tensorly torch commands met", "Versions"),
}

# The table of the README: text (with figures of the row), results, name of the row there.
SUMMARY = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
sample network, `--max-drop 0.01`, 512 images | numbers | --max-drop 0.01 (scripts/demo.sh)
sample network, `--max-drop 0.01`, 2,048 images | resnets_untuned | sample network, --max-drop 0.01
ResNet-20, `--max-drop 0.005` | resnets_untuned | ResNet-20, --max-drop 0.005
ResNet-56, `--max-drop 0.005` | resnets_untuned | ResNet-56, --max-drop 0.005
ResNet-56, `--max-macs 0.34` | resnets_untuned | ResNet-56, --max-macs 0.34
ResNet-56, `--max-macs 0.34`, 5 epochs | resnets_tuned | ResNet-56, --max-macs 0.34, 5 epochs
sample network, `--target-speedup 10`, 10 epochs | paper | --target-speedup 10, 10 epochs
sample network, `--target-speedup {target_speedup:g} --int8`, 20 epochs | int8 \
| sample network, --int8, 20 epochs
ResNet-18, random weights, `--target-speedup 3` | zoo | ResNet-18, 3x
ResNet-50, random weights, `--target-speedup 3` | zoo | ResNet-50, 3x
""".strip().splitlines()
)
# Figures of a row that missed its target: format and unit.
MISSED = {
    "speedup": (".3f", "times as fast"),
    "drop_points": (".2f", "points lost"),
    "gain": (".3f", "times as fast as int8 alone"),
    "points_between": (".2f", "points below it"),
    "lost_points": (".2f", "points lost on fresh inputs"),
}
