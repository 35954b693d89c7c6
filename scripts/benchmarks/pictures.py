"""The pictures of the documentation, drawn from the rows of ``resnets_untuned``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.benchmarks.results import ROOT

ORIGINAL_ACCURACY = 91.73  # of ResNet-20, %


def draw_untuned(rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw accuracy over rank and speedup over accuracy lost."""
    ways: dict[str, list[tuple[float, float]]] = {}
    frontiers: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if "way" in row:
            ways.setdefault(row["way"], []).append((row["rank"], 100 * row["accuracy"]))
        if "frontier" in row:
            points = frontiers.setdefault(f"ResNet-{row['frontier']}", [(0.0, 1.0)])
            points.append((row["drop_points"], row["speedup"]))
    draw(
        "accuracy_over_rank",
        ways,
        level=ORIGINAL_ACCURACY,
        xlabel="rank, as a share of the output channels",
        ylabel="accuracy on the test set, %",
        title="ResNet-20 on CIFAR-10, every 3x3 convolution but the first, no fine-tuning",
    )
    draw(
        "frontier",
        frontiers,
        xlabel="accuracy lost on the test set, points",
        ylabel="speedup in onnxruntime, one thread",
        title="CIFAR-10, forms and ranks chosen by the search, no fine-tuning",
    )


def draw(
    name: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    level: float | None = None,
    **texts: str,
) -> None:
    """Write ``docs/NAME.svg``, which depends on nothing but what is drawn.

    Args:
        name: Name of the file.
        lines: Points (x, y) by the name of their line.
        level: Height of a dotted line for the original, or None.
        texts: ``xlabel``, ``ylabel`` and ``title``.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "flatconv"
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points)), marker="o", label=label)
    if level is not None:
        axes.axhline(level, color="gray", linestyle=":", label="original")
    axes.set(**texts)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / f"{name}.svg", metadata={"Date": None})
