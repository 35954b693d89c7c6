"""Lines and pages of text, drawn in many fonts: other words to fit than to judge."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scripts.benchmarks.photographs import crop, noisy

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic")),
)
Photographs = tuple[Image.Image, ...]


@cache
def words(folder: Path, fresh: bool) -> tuple[str, ...]:
    """Read one half of the words: every other one."""
    every = (folder / "words.txt").read_text().split()
    return tuple(every[int(fresh) :: 2])


@cache
def font(folder: Path, name: str, size: int) -> ImageFont.FreeTypeFont:
    """Open a font."""
    return ImageFont.truetype(str(folder / "fonts" / f"{name}.ttf"), size)


def random_font(rng: np.random.Generator, folder: Path, size: int) -> ImageFont.FreeTypeFont:
    """Open a font of a random style."""
    return font(folder, FONTS[rng.integers(len(FONTS))], size)


def token(rng: np.random.Generator, vocabulary: tuple[str, ...]) -> str:
    """Give a word, in one of three cases, or a number."""
    if rng.random() < 0.2:
        return str(rng.integers(10 ** int(rng.integers(1, 7))))
    word = vocabulary[rng.integers(len(vocabulary))]
    return [word, word.capitalize(), word.upper()][rng.integers(3)]


def inks(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give a dark and a light colour, in random order: of the paper and of the ink."""
    dark, light = rng.integers(0, 90, 3), rng.integers(170, 256, 3)
    paper, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
    return tuple(map(int, paper)), tuple(map(int, ink))


def line(
    rng: np.random.Generator, folder: Path, vocabulary: tuple[str, ...], width: int, height: int
) -> tuple[np.ndarray, str]:
    """Draw one to three words on a line, a little turned, with noise.

    Returns:
        Bytes (H, W, 3), no wider than ``width``; the text.
    """
    paper, ink = inks(rng)
    text = " ".join(token(rng, vocabulary) for _ in range(rng.integers(1, 4)))
    size = int(rng.integers(height // 2, int(0.75 * height)))
    style = random_font(rng, folder, size)
    while style.getlength(text) > width - 16 and " " in text:
        text = text.rpartition(" ")[0]
    length = min(int(style.getlength(text)) + 16, width)
    picture = Image.new("RGB", (length, height), paper)
    place = (int(rng.integers(4, 10)), height // 2 + int(rng.integers(-3, 4)))
    ImageDraw.Draw(picture).text(place, text, ink, style, anchor="lm")
    turned = picture.rotate(rng.uniform(-2, 2), Image.Resampling.BILINEAR, fillcolor=paper)
    return noisy(rng, turned, rng.uniform(0, 20)), text


def page(
    rng: np.random.Generator, folder: Path, vocabulary: tuple[str, ...], size: int
) -> Image.Image:
    """Draw a square page of lines of text, in one or two fonts."""
    paper, ink = inks(rng)
    picture = Image.new("RGB", (size, size), paper)
    draw = ImageDraw.Draw(picture)
    top = int(rng.integers(size // 16, size // 6))
    left = int(rng.integers(size // 20, size // 5))
    style = random_font(rng, folder, int(size * rng.uniform(0.04, 0.1)))
    while top < size * 0.9:
        text, end = "", rng.uniform(0.5, 0.95) * size
        while left + style.getlength(longer := f"{text} {token(rng, vocabulary)}".strip()) < end:
            text = longer
        if rng.random() < 0.85:  # an empty line now and then
            draw.text((left, top), text, ink, style)
        top += int(style.size * rng.uniform(1.2, 1.8))
    return picture


def scattered(
    rng: np.random.Generator,
    folder: Path,
    vocabulary: tuple[str, ...],
    sources: Photographs,
    size: int,
) -> np.ndarray:
    """Draw words and characters at random places of a photograph, as those who test readers do.

    Returns:
        Bytes (size, size, 3).
    """
    picture = crop(rng, sources, size)
    for _ in range(rng.integers(2, 8)):
        text = token(rng, vocabulary)
        if rng.random() < 0.6:
            text = text[:1].upper()
        style = random_font(rng, folder, int(size * rng.uniform(0.07, 0.2)))
        stamp = Image.new("L", (size, size))
        place = tuple(rng.uniform(0.1, 0.9, 2) * size)
        ImageDraw.Draw(stamp).text(place, text, 255, style, anchor="mm")
        stamp = stamp.rotate(rng.uniform(-30, 30), center=place)
        picture.paste(Image.new("RGB", (size, size), inks(rng)[1]), mask=stamp)
    return noisy(rng, picture, rng.uniform(0, 10))
