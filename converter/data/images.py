"""Preprocessing and augmentation of uint8 images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from converter.data.casting import size_advice
from converter.data.inputs import Input
from converter.errors import ConverterError, first_line
from converter.options import Options

SHIFT = 8  # an image is shifted by up to its side divided by this
# Area and aspect ratio of a random crop (Szegedy et al., arXiv 1409.4842).
CROP_AREA, CROP_ASPECT = (0.35, 1.0), 4 / 3
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels


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
        bytes: Whether the network takes bytes: they are laid out, but not scaled.
        channels: Channels that image files are read with: 1 (grey), 3 or 4 (RGBA).
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: int | None = None
    bgr: bool = False
    nhwc: bool = False
    flip: bool = True
    bytes: bool = False
    channels: int = 3

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

    def for_input(self, item: Input) -> Preprocessing:
        """Return the preprocessing for the type and the channels of an input.

        Raises:
            ConverterError: When ``mean`` or ``std`` are given for an input that takes bytes.
        """
        whole = item.dtype.kind in "iu"
        if whole and (self.mean or self.std):
            raise ConverterError(
                f"Input {item.name!r} takes {item.dtype.name}, images of which are not scaled; "
                "leave out --mean and --std."
            )
        axis = -1 if self.nhwc else 1
        channels = (item.shape[axis] if len(item.shape) == 4 else None) or self.channels
        return replace(self, bytes=whole, channels=channels if channels in MODES else self.channels)

    def images_in(self, array: np.ndarray, item: Input) -> np.ndarray | None:
        """Return a uint8 array for an input as images (N, H, W, C), or None if it holds none.

        Images may also have their channels first, or be grey (N, H, W). An array for a network
        that takes bytes is left as it is if its shape is that of the input.
        """

        def fits(*sizes: int) -> bool:
            return all(n in (None, size) for n, size in zip(item.shape[1:], sizes))

        if array.dtype != np.uint8:
            return None
        whole, same_rank = item.dtype.kind in "iu", len(item.shape) == array.ndim
        if whole and (len(item.shape) != 4 or (same_rank and fits(*array.shape[1:]))):
            return None
        if array.ndim == 3 and len(item.shape) == 4:
            return array[..., None]
        if array.ndim != 4:
            return None
        _, a, b, c = array.shape
        last, first = (
            (fits(a, b, c), fits(b, c, a)) if self.nhwc else (fits(c, a, b), fits(a, b, c))
        )
        if last == first:  # neither or both, or the input's shape is not known
            first = a in MODES and c not in MODES
        return array.transpose(0, 2, 3, 1) if first else array

    def sides(self, item: Input) -> tuple[int | None, ...]:
        """Return height and width that an input of images takes; none if it takes no images."""
        if len(item.shape) != 4:
            return ()
        return tuple(item.shape[1:3] if self.nhwc else item.shape[2:4])

    def stack(self, images: Sequence[np.ndarray], item: Input, folder: Path) -> np.ndarray:
        """Stack images (H, W, channels) of files for an input.

        Raises:
            ConverterError: When they differ in size.
        """
        sizes = {(image.shape[0], image.shape[1]) for image in images}
        if len(sizes) > 1:
            advice = size_advice(self.sides(item), sizes)
            raise ConverterError(f"The images in {folder} differ in size; {advice}.")
        return np.stack(images)

    def describe(self) -> str:
        """Say in words what becomes of an image."""
        colours = {1: "grey", 3: "BGR" if self.bgr else "RGB", 4: "RGBA"}[self.channels]
        parts = [colours, "channels last" if self.nhwc else "channels first"]
        if self.resize:
            parts.append(f"short side of files resized to {self.resize}")
        if self.crop:
            parts.append(f"files cropped to {self.crop}x{self.crop}")
        if self.bytes:
            return ", ".join([*parts, "bytes as they are"])
        parts.append("scaled to 0..1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values:
                parts.append(f"{name} {','.join(f'{value:g}' for value in values)}")
        return ", ".join(parts if self.mean or self.std else [*parts, "not normalised"])

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Turn uint8 RGB images (N, H, W, C) into the input, (N, C, H, W) or (N, H, W, C).

        The values are float32, or uint8 for a network that takes bytes.

        Raises:
            ConverterError: When ``mean`` or ``std`` do not fit the number of channels.
        """
        for name, values in (("--mean", self.mean), ("--std", self.std)):
            if values and len(values) not in (1, images.shape[-1]):
                raise ConverterError(
                    f"{name} has {len(values)} values; the images have {images.shape[-1]} channels."
                )
        x = images
        if not self.bytes:
            x = images.astype(np.float32) / np.float32(255)
        if self.mean:
            x -= np.array(self.mean, np.float32)
        if self.std:
            x /= np.array(self.std, np.float32)
        if self.bgr and x.shape[-1] > 1:
            x = x[..., [2, 1, 0, *range(3, x.shape[-1])]]
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
        """Read an image file upright, as uint8 (H, W, channels); 16 bits are scaled to 8.

        Args:
            path: The file.
            rng: Generator of a random crop (with ``crop``) or shift, and of flips; None for the
                plain image.

        Raises:
            ConverterError: When Pillow cannot read the file, or the range of its values is unknown.
        """
        try:
            with Image.open(path) as file:
                upright = ImageOps.exif_transpose(file)
                image = _in_eight_bits(upright, file.format, path).convert(MODES[self.channels])
        except ConverterError:
            raise
        except Exception as error:  # Pillow raises many classes on damaged files
            raise ConverterError(f"Image {path} cannot be read: {first_line(error)}") from None
        if rng is not None and self.crop:
            crop = _random_crop(image, rng).resize((self.crop,) * 2, Image.Resampling.BILINEAR)
            pixels = _with_channels(crop)
            return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels
        if self.resize:
            scale = self.resize / min(image.size)
            width, height = (max(round(n * scale), 1) for n in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop:
            left, top = ((n - self.crop) // 2 for n in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = _with_channels(image)
        return pixels if rng is None else self.shifted_and_flipped(pixels[None], rng)[0]


def _in_eight_bits(image: Image.Image, kind: str | None, path: Path) -> Image.Image:
    """Scale the 16-bit values of grey images to 0..255, to which Pillow would clip them.

    Raises:
        ConverterError: When the values have 32 bits.
    """
    png = image.mode == "I" and kind == "PNG"  # of 16 bits, in older versions of Pillow
    if png or image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ConverterError(
            f"Image {path} has values of 32 bits, whose range is not known; save it with 8 or 16."
        )
    return image


def _with_channels(image: Image.Image) -> np.ndarray:
    """Return the pixels as (H, W, C)."""
    return np.atleast_3d(np.asarray(image))


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
