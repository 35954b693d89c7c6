"""Draws the pictures of the documentation, as SVG, from ``scripts/results/resnets_untuned.json``.

``frontier.svg``: speedup over accuracy lost. ``accuracy_over_rank.svg``: accuracy over
rank for three ways to solve a layer. Each picture has a background of its own, so that it is
legible on a white and on a dark page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from doc_tables import ROOT, read

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 66, 190, 54, 58  # margins of the plot
COLORS = ("#0969da", "#bc4c00", "#1a7f37")
MAX_LOST = 3.0  # points; networks that lose more are left out
WAYS = {
    "corrected": "refit layer after layer",
    "data-aware": "fitted to sample inputs",
    "weights alone": "weights alone",
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        label: With the unit.
        ticks: Values with a grid line; the first and the last are the ends of the axis.
        spec: Format of the values.
    """

    label: str
    ticks: Sequence[float]
    spec: str = "g"

    def share(self, value: float) -> float:
        """Place a value between the ends, 0 to 1."""
        return (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])


def chart(title: str, x: Axis, y: Axis, series: dict[str, list[Point]]) -> str:
    """Draw lines with points, each named at its last point."""

    def place(point: Point) -> Point:
        return (
            LEFT + x.share(point[0]) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y.share(point[1]) * (HEIGHT - TOP - BOTTOM),
        )

    def text(at: Point, words: str, more: str = "") -> str:
        return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" {more}>{escape(words)}</text>'

    parts = [text((LEFT, 30), title, 'class="title"')]
    for value in x.ticks:
        (left, bottom), (_, top) = place((value, y.ticks[0])), place((value, y.ticks[-1]))
        parts.append(f'<path class="grid" d="M{left:.1f} {bottom:.1f}V{top:.1f}"/>')
        parts.append(text((left, bottom + 20), format(value, x.spec), 'text-anchor="middle"'))
    for value in y.ticks:
        (left, at), (right, _) = place((x.ticks[0], value)), place((x.ticks[-1], value))
        parts.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
        parts.append(text((left - 10, at + 4), format(value, y.spec), 'text-anchor="end"'))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(text((middle, HEIGHT - 14), x.label, 'text-anchor="middle"'))
    turned = f'text-anchor="middle" transform="rotate(-90 20 {HEIGHT / 2:.0f})"'
    parts.append(text((20, HEIGHT / 2), y.label, turned))
    for color, (name, points) in zip(COLORS, series.items()):
        placed = [place(point) for point in points]
        line = " ".join(f"{left:.1f},{top:.1f}" for left, top in placed)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2.5" points="{line}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{color}"/>' for a, b in placed]
        end = (placed[-1][0] + 10, placed[-1][1] + 4)
        parts.append(text(end, name, f'style="fill:{color};font-weight:600"'))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{escape(title)}</title>",
            "<style>text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:15px;"
            "font-weight:600}.grid{stroke:#d1d9e0;stroke-width:1}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def frontier(rows: Sequence[dict[str, Any]]) -> str:
    """Draw speedup over accuracy lost, a line for each network."""
    series: dict[str, list[Point]] = {}
    for depth in (56, 20):
        points = [(r["drop_points"], r["speedup"]) for r in rows if r.get("frontier") == depth]
        series[f"ResNet-{depth}"] = [(0, 1), *sorted(p for p in points if p[0] <= MAX_LOST)]
    return chart(
        "Faster without training: CIFAR-10 ResNets in onnxruntime, one thread",
        Axis("accuracy lost on the 10,000 test images, percentage points", (-0.5, 0, 1, 2, 3)),
        Axis("times as fast as the original", (1, 1.5, 2, 2.5, 3)),
        series,
    )


def accuracy_over_rank(rows: Sequence[dict[str, Any]]) -> str:
    """Draw accuracy over rank, a line for each way to solve a layer."""
    series = {
        name: sorted((r["rank"], 100 * r["accuracy"]) for r in rows if r.get("way") == way)
        for way, name in WAYS.items()
    }
    return chart(
        "ResNet-20, every 3x3 convolution but the first, no fine-tuning",
        Axis("rank, as a share of the output channels", (0.25, 0.5, 0.75, 1, 1.5, 2)),
        Axis("accuracy on the 10,000 test images, %", (0, 20, 40, 60, 80, 100)),
        series,
    )


PICTURES = {"frontier.svg": frontier, "accuracy_over_rank.svg": accuracy_over_rank}


def main() -> int:
    """Write the pictures into docs/pages/pictures."""
    rows = read("resnets_untuned")["rows"]
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "pages" / "pictures" / name).write_text(draw(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
