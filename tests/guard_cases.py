"""Images with a pattern for each class, and networks as text, for the tests of guards."""

import numpy as np
import onnx_ir as ir
from networks import from_text

from converter.evaluation.feeding import IMAGENET
from converter.options import ImageOptions

CLASSES, COUNT, SIDE = 10, 200, 8
RIGHT = ImageOptions(mean=IMAGENET[0], std=IMAGENET[1])
MEAN, STD = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in IMAGENET)
HEAD = "float[N,3,8,8] x"


def pictures(seed=0, count=COUNT):
    """Bytes (N, H, W, C) around a pattern for each class, and the classes."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % CLASSES
    pixels = patterns()[classes] + rng.normal(0, 25, (count, SIDE, SIDE, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), classes


def patterns():
    """Patterns of the classes (C, H, W, 3): blue is opposite to red, and green has a level, too."""
    rng = np.random.default_rng(7)
    red, green = rng.normal(0, 35, (2, CLASSES, SIDE, SIDE))
    level = rng.normal(0, 30, (CLASSES, 1, 1))
    return 120 + np.stack([red, green + level, -red], axis=-1)


def network(graph, **weights):
    return ir.from_proto(from_text(graph, **weights))
