"""Preprocessing and augmentation of uint8 images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from converter.errors import ConverterError, first_line
from converter.options import Options

SHIFT = 8  # an image is shifted by up to its side divided by this
# Area and aspect ratio of a random crop (Szegedy et al., arXiv 1409.4842).
CROP_AREA, CROP_ASPECT = (0.35, 1.0), 4 / 3


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of uint8 images to the input of a network.

    Attributes:
        mean: Mean of each channel, subtracted after scaling to 0..1.
        std: Standard deviation of each channel, by which the result is divided.
        resize: Pixels of the short side of image files; None keeps their size.
        crop: Pixels of the side of the square cut from the middle of image files; None for none.
        bgr: Whether the network takes blue first.
        nhwc: Whether the network takes channels last.
        flip: Whether augmentation may flip an image horizontally.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: int | None = None
    bgr: bool = False
    nhwc: bool = False
    flip: bool = True

    @classmethod
    def of(cls, options: Options) -> Preprocessing:
        """Return the preprocessing that ``options`` describe."""
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
        """Turn uint8 RGB images (N, H, W, C) into float32 (N, C, H, W), or (N, H, W, C).

        Raises:
            ConverterError: When ``mean`` or ``std`` do not fit the number of channels.
        """
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

    def shifted_and_flipped(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Shift images (N, H, W, C) at random, by up to an eighth, and flip half with ``flip``."""
        count, height, width, _ = images.shape
        rows, columns = (
            np.arange(size) + rng.integers(-(size // SHIFT), size // SHIFT + 1, (count, 1))
            for size in (height, width)
        )
        if self.flip:
            columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)
        rows, columns = _reflected(rows, height), _reflected(columns, width)
        numbers = np.arange(count)[:, None, None]
        return np.asarray(images[numbers, rows[:, :, None], columns[:, None, :]])

    def read_file(self, path: Path, rng: np.random.Generator | None = None) -> np.ndarray:
        """Read an image file as uint8 (H, W, 3).

        Args:
            path: The file.
            rng: Generator of a random crop (with ``crop``) or shift, and of flips; None for the
                plain image.

        Raises:
            ConverterError: When Pillow cannot read the file.
        """
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # Pillow raises many classes on damaged files
            raise ConverterError(f"Image {path} cannot be read: {first_line(error)}") from None
        if rng is not None and self.crop:
            crop = _random_crop(image, rng).resize((self.crop,) * 2, Image.Resampling.BILINEAR)
            pixels = np.asarray(crop)
            return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels
        if self.resize:
            scale = self.resize / min(image.size)
            width, height = (max(round(n * scale), 1) for n in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop:
            left, top = ((n - self.crop) // 2 for n in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.asarray(image)
        return pixels if rng is None else self.shifted_and_flipped(pixels[None], rng)[0]


def _reflected(indices: np.ndarray, size: int) -> np.ndarray:
    """Reflect indices outside of 0..size-1 at the border."""
    indices = np.abs(indices)
    return np.where(indices < size, indices, 2 * (size - 1) - indices)


def _random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out a rectangle of random area and aspect ratio."""
    width, height = image.size
    area = rng.uniform(*CROP_AREA) * width * height
    aspect = float(np.exp(rng.uniform(-np.log(CROP_ASPECT), np.log(CROP_ASPECT))))
    w, h = min(round((area * aspect) ** 0.5), width), min(round((area / aspect) ** 0.5), height)
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    return image.crop((int(left), int(top), int(left) + max(w, 1), int(top) + max(h, 1)))
