"""Pictures cut from photographs that packages ship: other photographs to fit than to judge."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

FIT = (
    *(
        f"scikit-image/{n}.png"
        for n in "coffee chelsea camera gravel coins ihc motorcycle_left".split()
    ),
    "scikit-image/rocket.jpg",
    "scikit-learn/china.jpg",
    "ultralytics/bus.jpg",
)
FRESH = (
    *(f"scikit-image/{n}.png" for n in "astronaut brick grass moon cell color".split()),
    "scikit-image/hubble_deep_field.jpg",
    "scikit-image/retina.jpg",
    "scikit-learn/flower.jpg",
    "ultralytics/zidane.jpg",
)
PEOPLE = ("ultralytics/bus.jpg", "scikit-image/astronaut.png", "ultralytics/zidane.jpg")
MIN_SCALE = 0.3  # a crop is at least this share of a photograph's shorter side


@cache
def photographs(folder: Path, fresh: bool, people: bool = False) -> tuple[Image.Image, ...]:
    """Open the photographs to fit on, or the others to judge on, in RGB.

    Args:
        folder: Folder of the networks.
        fresh: Whether they are those to judge on.
        people: Whether they must show people.
    """
    names = [name for name in (FRESH if fresh else FIT) if not people or name in PEOPLE]
    return tuple(Image.open(folder / "photographs" / name).convert("RGB") for name in names)


def crop(rng: np.random.Generator, sources: tuple[Image.Image, ...], size: int) -> Image.Image:
    """Cut a square at random from a random photograph; flip, turn and colour it at random.

    Args:
        rng: Random numbers.
        sources: Photographs in RGB.
        size: Height and width of the result, in pixels.
    """
    source = sources[rng.integers(len(sources))]
    side = int(min(source.size) * rng.uniform(MIN_SCALE, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in source.size)
    picture = source.crop((left, top, left + side, top + side))
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    picture = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    return coloured(rng, picture)


def coloured(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Change brightness, contrast and saturation at random, and blur some."""
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhancer(picture).enhance(rng.uniform(0.6, 1.4))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    return picture


def noisy(rng: np.random.Generator, picture: Image.Image, deviation: float) -> np.ndarray:
    """Add normally distributed noise; (H, W, 3) of bytes."""
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + rng.normal(0, deviation, pixels.shape).astype(np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def smooth_shapes(rng: np.random.Generator, background: Image.Image) -> Image.Image:
    """Put two to eight ellipsoids of the colours of skin, lit from one side, on a square picture.

    A network that looks for bare skin takes some of them for it.
    """
    size = background.size[0]
    down, right = np.mgrid[:size, :size] / size - 0.5
    height = np.zeros((size, size))
    for _ in range(rng.integers(2, 9)):
        angle, centre = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4, 2)
        radii = rng.uniform((0.12, 0.15), (0.3, 0.6))
        x, y = right - centre[0], down - centre[1]
        along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        inside = np.clip(1 - np.square(along[0] / radii[0]) - np.square(along[1] / radii[1]), 0, 1)
        height = np.maximum(height, np.sqrt(inside) * radii.min())
    slopes, light = np.stack(np.gradient(height * size)), rng.standard_normal(2)
    towards = np.tensordot(light / np.linalg.norm(light), slopes, 1)
    shade = (1 - rng.uniform(0.2, 0.6) * towards) / np.sqrt(1 + np.square(slopes).sum(0))
    skin = rng.uniform((200, 140, 105), (250, 195, 165)) * np.clip(shade, 0.25, 1.2)[..., None]
    pixels = np.where((height > 0)[..., None], skin, np.asarray(background, float))
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 2.5)))
