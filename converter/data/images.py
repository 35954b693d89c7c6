"""How uint8 images become a network's input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from converter.errors import ConverterError, first_line
from converter.options import Options

SHIFT = 8  # an image is shifted by up to one part in so many of its side
AREAS, SHAPE = (0.35, 1.0), 4 / 3  # of the part of an image file that is looked at


@dataclass(frozen=True)
class Images:
    """How uint8 images become a network's input.

    Attributes:
        mean: Per channel, subtracted after scaling to 0..1.
        std: Per channel, divided by.
        resize: Short side in pixels, image files only; None leaves it.
        crop: Side of the square cut from the middle, image files only.
        bgr: Whether the network takes blue first.
        nhwc: Whether the network takes channels last.
        flip: Whether an image still shows the same when it is flipped.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: int | None = None
    bgr: bool = False
    nhwc: bool = False
    flip: bool = True

    @classmethod
    def of(cls, options: Options) -> Images:
        """Take the preprocessing that ``options`` ask for."""
        return cls(
            mean=options.images.mean,
            std=options.images.std,
            resize=options.images.resize,
            crop=options.images.crop,
            bgr=options.images.channels == "bgr",
            nhwc=options.images.layout == "nhwc",
            flip=options.training.augment == "flip",
        )

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Turn uint8 RGB images (N, H, W, C) into float32 (N, C, H, W), or (N, H, W, C)."""
        for name, values in (("--mean", self.mean), ("--std", self.std)):
            if values and len(values) not in (1, images.shape[-1]):
                raise ConverterError(
                    f"{name} has {len(values)} values; the images have {images.shape[-1]} channels."
                )
        x = images.astype(np.float32) / np.float32(255)
        if self.mean:
            x -= np.array(self.mean, np.float32)
        if self.std:
            x /= np.array(self.std, np.float32)
        if self.bgr:
            x = x[..., ::-1]
        return np.ascontiguousarray(x if self.nhwc else x.transpose(0, 3, 1, 2))

    def moved(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Shift images (N, H, W, C) by up to an eighth at random, and flip half of them."""
        count, height, width, _ = images.shape
        rows, columns = (
            np.arange(size) + rng.integers(-(size // SHIFT), size // SHIFT + 1, (count, 1))
            for size in (height, width)
        )
        if self.flip:
            columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)
        rows, columns = _reflected(rows, height), _reflected(columns, width)
        every = np.arange(count)[:, None, None]
        found: np.ndarray = images[every, rows[:, :, None], columns[:, None, :]]
        return found

    def open(self, path: Path, rng: np.random.Generator | None = None) -> np.ndarray:
        """Read an image file as uint8 (H, W, 3); with ``rng`` a part of it, or shifted; flipped."""
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # Pillow raises many classes on damaged files
            raise ConverterError(f"Image {path} cannot be read: {first_line(error)}") from None
        if rng is not None and self.crop:
            image = _random_part(image, rng).resize((self.crop,) * 2, Image.Resampling.BILINEAR)
            part = np.asarray(image)
            return part[:, ::-1] if self.flip and rng.random() < 0.5 else part
        if self.resize:
            scale = self.resize / min(image.size)
            width, height = (max(round(n * scale), 1) for n in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop:
            left, top = ((n - self.crop) // 2 for n in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        found = np.asarray(image)
        return found if rng is None else self.moved(found[None], rng)[0]


def _reflected(indices: np.ndarray, size: int) -> np.ndarray:
    """Reflect what is outside of 0..size-1 at the border."""
    indices = np.abs(indices)
    return np.where(indices < size, indices, 2 * (size - 1) - indices)


def _random_part(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out a rectangle of random area and shape (Szegedy et al., arXiv 1409.4842)."""
    width, height = image.size
    area = rng.uniform(*AREAS) * width * height
    shape = float(np.exp(rng.uniform(-np.log(SHAPE), np.log(SHAPE))))
    w, h = min(round((area * shape) ** 0.5), width), min(round((area / shape) ** 0.5), height)
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    return image.crop((int(left), int(top), int(left) + max(w, 1), int(top) + max(h, 1)))
