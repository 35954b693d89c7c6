"""CIFAR-10 ResNets under ``--max-macs``, fine-tuned for a few epochs, with labels and without."""

from __future__ import annotations

import time
from functools import partial

from scripts.benchmarks.models import cifar_resnet
from scripts.benchmarks.results import Row
from scripts.benchmarks.rows import from_report
from scripts.benchmarks.run import report_of
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

# (depth, share of the MACs that is left) -> points that may be lost (published: 1.1, 4.5, 0.9 and
# 1.8), epochs
BUDGETS = {
    (20, 0.43): (0.2, 10),
    (20, 0.23): (0.8, 10),
    (56, 0.34): (0.2, 5),
    (56, 0.24): (0.6, 10),
}
NO_LABELS, NO_LABELS_POINTS = ", no labels", 0.3


def measure(depth: int, share: float, epochs: int, labels: bool, settings: Settings) -> Figures:
    """Convert a ResNet and fine-tune it."""
    network, start = cifar_resnet(depth, settings), time.perf_counter()
    report = report_of(
        network.model,
        **network.on(settings),
        max_macs=share,
        finetune=epochs,
        labels=labels,
        train=str(settings.data / "train.npz"),
        precision="bfloat16",
        resume=True,
    )
    return from_report(report) | {"minutes": (time.perf_counter() - start) / 60}


def compare_to_labels(rows: list[Row]) -> list[Row]:
    """Judge rows without labels by the same row with labels."""
    drops = {row["name"]: row["drop_points"] for row in rows}
    target = f"{NO_LABELS_POINTS:g} points more than with labels"

    def judged(row: Row) -> Row:
        labelled = drops.get(row["name"].removesuffix(NO_LABELS))
        if labelled is None or not row["name"].endswith(NO_LABELS):
            return row
        return row | {"target": target, "met": row["drop_points"] <= labelled + NO_LABELS_POINTS}

    return [judged(row) for row in rows]


def case(depth: int, share: float, labels: bool = True) -> Case:
    """Declare one conversion."""
    points, epochs = BUDGETS[depth, share]
    limit = 1 / share  # the ratio of MACs that the budget demands

    def is_met(row: Figures) -> bool:
        return bool(row["macs_ratio"] >= limit and row["drop_points"] <= points)

    name = f"ResNet-{depth}, --max-macs {share:g}, {epochs} epochs{'' if labels else NO_LABELS}"
    measurement = partial(measure, depth, share, epochs, labels)
    return Case(name, measurement, Target(f"{points:g} points", is_met))


SUITE = Suite(
    "resnets_tuned",
    [*(case(depth, share) for depth, share in BUDGETS), case(20, 0.43, labels=False)],
    summarize=compare_to_labels,
    about="public CIFAR-10 ResNets fine-tuned for at most ten epochs (hours)",
)
