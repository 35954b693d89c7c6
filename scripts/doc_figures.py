"""Draws the pictures of the documentation as SVG: ``python -m scripts.doc_figures``.

``frontier.svg`` (speedup over accuracy lost) and ``accuracy_over_rank.svg`` (three ways to solve a
layer) come from ``scripts/results/resnets_untuned.json``, ``forms.svg`` from the registry of forms.
Each picture has a background of its own, so that it is legible on a white and on a dark page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from converter.decomposition.forms import FORMS
from scripts.doc_tables import ROOT, read

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 66, 190, 54, 58  # margins of the plot
COLORS = ("#0969da", "#bc4c00", "#1a7f37")
MAX_LOST = 3.0  # points; networks that lose more are left out
WAYS = {
    "corrected": "refit layer after layer",
    "data-aware": "fitted to sample inputs",
    "weights alone": "weights alone",
}

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:600}"
    ".grid{stroke:#d1d9e0;stroke-width:1}.box{fill:#ddf4ff;stroke:#0969da}"
    ".depthwise{fill:#fff1e5;stroke:#bc4c00}"
)
# A kernel (O, I, Kh, Kw) of numbers that are written as symbols, and the ranks that are drawn.
SYMBOLS: dict[int, str] = {
    64: "O",
    48: "I",
    5: "Kh",
    7: "Kw",
    16: "R",
    20: "R1",
    24: "R2",
    96: "2 I",
}
DRAWN_FORMS: dict[str, tuple[int, ...]] = {
    "lvh": (1,),
    "flattened": (16,),
    "separable": (16,),
    "decoupled": (2,),
    "spatial": (16,),
    "tucker": (20, 24),
    "channel": (16,),
    "dense": (1,),
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

    parts = [_text((LEFT, 30), title, 'class="title"')]
    for value in x.ticks:
        (left, bottom), (_, top) = place((value, y.ticks[0])), place((value, y.ticks[-1]))
        parts.append(f'<path class="grid" d="M{left:.1f} {bottom:.1f}V{top:.1f}"/>')
        parts.append(_text((left, bottom + 20), format(value, x.spec), 'text-anchor="middle"'))
    for value in y.ticks:
        (left, at), (right, _) = place((x.ticks[0], value)), place((x.ticks[-1], value))
        parts.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
        parts.append(_text((left - 10, at + 4), format(value, y.spec), 'text-anchor="end"'))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(_text((middle, HEIGHT - 14), x.label, 'text-anchor="middle"'))
    turned = f'text-anchor="middle" transform="rotate(-90 20 {HEIGHT / 2:.0f})"'
    parts.append(_text((20, HEIGHT / 2), y.label, turned))
    for color, (name, points) in zip(COLORS, series.items()):
        placed = [place(point) for point in points]
        line = " ".join(f"{left:.1f},{top:.1f}" for left, top in placed)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2.5" points="{line}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{color}"/>' for a, b in placed]
        end = (placed[-1][0] + 10, placed[-1][1] + 4)
        parts.append(_text(end, name, f'style="fill:{color};font-weight:600"'))
    return _svg(title, parts)


def frontier(rows: Sequence[dict[str, Any]]) -> str:
    """Draw speedup over accuracy lost, a line for each network."""
    series: dict[str, list[Point]] = {}
    for depth in (56, 20):
        points = [(r["drop_points"], r["speedup"]) for r in rows if r.get("frontier") == depth]
        points = [(0, 1), *(point for point in points if point[0] <= MAX_LOST)]
        series[f"ResNet-{depth}"] = sorted(points, key=lambda point: point[1])
    return chart(
        "Faster without training: CIFAR-10 ResNets in onnxruntime, one thread",
        Axis("accuracy lost on the 10,000 test images, percentage points", (-0.5, 0, 1, 2, 3)),
        Axis("times as fast as the original", (1, 1.5, 2, 2.5, 3, 3.5)),
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


def forms(rows: Sequence[dict[str, Any]] = ()) -> str:
    """Draw the chain of each form, a box for each step: channels, window, depthwise or not."""
    parts = []
    for row, (name, ranks) in enumerate(DRAWN_FORMS.items()):
        top = 16 + 54 * row
        parts.append(_text((16, top + 25), name, 'class="title"'))
        for step, (shape, groups) in enumerate(FORMS[name].shapes(tuple(SYMBOLS)[:4], ranks)):
            left = 120 + 148 * step
            O, I, *k = (SYMBOLS.get(n, n) for n in (shape[0], shape[1] * groups, *shape[2:]))
            parts.append(
                f'<rect class="{"depthwise" if groups > 1 else "box"}" x="{left}" y="{top}" '
                f'width="138" height="40" rx="5"/>'
            )
            words = f"{O} channels" if groups > 1 and O == I else f"{I} → {O}"
            window = " x ".join(map(str, k)) + (", depthwise" if groups > 1 else "")
            for at, line in ((17, words), (33, window)):
                parts.append(_text((left + 69, top + at), line, 'text-anchor="middle"'))
    return _svg(
        "The forms: I → O convolutions of Kh x Kw as chains", parts, 54 * len(DRAWN_FORMS) + 24
    )


PICTURES = {
    "frontier.svg": frontier,
    "accuracy_over_rank.svg": accuracy_over_rank,
    "forms.svg": forms,
}


def _text(at: Point, words: str, more: str = "") -> str:
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" {more}>{escape(words)}</text>'


def _svg(title: str, parts: Sequence[str], height: int = HEIGHT) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> int:
    """Write the pictures into docs/pages/pictures."""
    rows = read("resnets_untuned")["rows"]
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "pages" / "pictures" / name).write_text(draw(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
