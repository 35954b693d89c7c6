"""Where an image, and the boxes in it, come to lie in the input of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

MIN_VISIBLE = 0.1  # share of a box's area that must be left
GREY = 114  # around an image that is fitted into the input, as for YOLO


class Placement(NamedTuple):
    """Where an image comes to lie; each is (x, y) in pixels of the input."""

    resized: tuple[int, int]  # size of the image
    offset: tuple[int, int]  # place of its left upper corner
    canvas: tuple[int, int]  # size of the input


@dataclass(frozen=True)
class Transform:
    """How images become the input of a network.

    Attributes:
        resize: Pixels of the short side; None keeps the size.
        crop: Pixels of the side of the square in the middle; None keeps all.
        letterbox: Width and height in which the whole image is fitted, its sides kept in
            proportion; it excludes the others.
    """

    resize: int | None = None
    crop: int | None = None
    letterbox: tuple[int, int] | None = None

    def placement(self, size: tuple[int, int]) -> Placement:
        """Return where an image of a width and height comes to lie."""
        scale = 1.0
        if self.letterbox is not None:
            scale = min(side / n for side, n in zip(self.letterbox, size))
        elif self.resize is not None:
            scale = self.resize / min(size)
        width, height = (max(round(n * scale), 1) for n in size)
        square = None if self.crop is None else (self.crop, self.crop)
        canvas = self.letterbox or square or (width, height)
        offset = -((width - canvas[0]) // 2), -((height - canvas[1]) // 2)
        return Placement((width, height), offset, canvas)


def placed(boxes: np.ndarray, size_before: tuple[int, int], transform: Transform) -> np.ndarray:
    """Return the boxes of an image in pixels of the input.

    Args:
        boxes: (M, 5) class, left, top, right, bottom in pixels of the image; rows of a negative
            class are none.
        size_before: Width and height of the image in pixels.
        transform: How the image becomes the input.

    Returns:
        (M, 5). Boxes are cut at the border; those of which less than a tenth is left get class -1.
    """
    resized, offset, canvas = transform.placement(size_before)
    scale = np.array(resized) / size_before
    corners = boxes[:, 1:] * np.tile(scale, 2) + np.tile(offset, 2)
    cut = np.clip(corners, 0, np.tile(canvas, 2))
    areas = [np.maximum(some[:, 2:] - some[:, :2], 0).prod(1) for some in (cut, corners)]
    visible = areas[0] >= MIN_VISIBLE * np.maximum(areas[1], 1e-9)
    rows = np.concatenate([boxes[:, :1], cut], 1)
    return np.where(visible[:, None] & (boxes[:, :1] >= 0), rows, -1.0)


def fitted(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """Fit an image (H, W, C), uint8, into the input, with grey around it (``letterbox``)."""
    resized, (left, top), (width, height) = transform.placement((pixels.shape[1], pixels.shape[0]))
    mode = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    image = np.asarray(Image.fromarray(mode).resize(resized, Image.Resampling.BILINEAR))
    result = np.full((height, width, pixels.shape[2]), GREY, np.uint8)
    result[top : top + resized[1], left : left + resized[0]] = np.atleast_3d(image)
    return result
