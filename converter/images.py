"""How uint8 images become a network's input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from converter.config import ConvertConfig, parse_numbers
from converter.errors import ConverterError


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
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: int | None = None
    bgr: bool = False
    nhwc: bool = False

    @classmethod
    def of(cls, config: ConvertConfig) -> Images:
        """Take the image options of ``config``.

        Raises:
            ConverterError: When --mean or --std are not numbers, or --std has a 0.
        """
        if 0 in parse_numbers(config.std, "--std"):
            raise ConverterError("--std must not be 0.")
        return cls(
            mean=parse_numbers(config.mean, "--mean"),
            std=parse_numbers(config.std, "--std"),
            resize=config.resize,
            crop=config.crop,
            bgr=config.channels == "bgr",
            nhwc=config.layout == "nhwc",
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

    def open(self, path: Path) -> np.ndarray:
        """Read an image file as uint8 (H, W, 3)."""
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
            raise ConverterError(f"Image {path} cannot be read: {error}.") from None
        if self.resize:
            scale = self.resize / min(image.size)
            width, height = (max(round(n * scale), 1) for n in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop:
            left, top = ((n - self.crop) // 2 for n in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(image)
