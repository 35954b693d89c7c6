"""Other ways to feed the same images to a network, as the options of images describe them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from converter.graph.network import constant, in_onnx_domain
from converter.options import ImageOptions

Values = tuple[float, ...]
BYTE = 0.003921569  # 1/255: with this std, images of 0..255
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
# What networks are usually trained with, by the number of channels: --mean and --std.
USUAL: dict[int, tuple[tuple[Values, Values], ...]] = {
    1: (((), ()), ((0.5,), (0.5,)), ((0.1307,), (0.3081,)), ((0.286,), (0.353,)), ((), (BYTE,))),
    3: (((), ()), IMAGENET, CIFAR10, ((0.5,), (0.5,)), ((), (BYTE,)), (IMAGENET[0], (BYTE,))),
}
CHANNELS: tuple[Literal["rgb", "bgr"], ...] = ("rgb", "bgr")
LAYOUTS: tuple[Literal["nchw", "nhwc"], ...] = ("nchw", "nhwc")
ROUNDING, MIN_RANGE, MAX_BYTE = 1e-3, 0.05, 255.0
MOVES = {"Cast", "Concat", "Gather", "Identity", "Pad", "Reshape", "Resize", "Slice", "Split"}
MOVES |= {"Squeeze", "Transpose", "Unsqueeze"}
NORMALISATIONS = {"BatchNormalization", "InstanceNormalization", "LayerNormalization"}
NORMALISATIONS |= {"MeanVarianceNormalization"}


@dataclass(frozen=True)
class Images:
    """Images as they were before the preprocessing.

    Attributes:
        pixels: (N, H, W, C) in 0..1, red first.
        fed: The preprocessing that made the network's input of them.
    """

    pixels: np.ndarray
    fed: ImageOptions

    @classmethod
    def of(cls, array: np.ndarray, options: ImageOptions) -> Images | None:
        """Undo the preprocessing of an input; None if it holds no images.

        Floats of the user are fed as they are, so ``fed`` may differ from the options.

        Args:
            array: An input (N, C, H, W), or (N, H, W, C), as ``options`` say.
            options: The preprocessing of images of bytes.
        """
        if array.ndim != 4 or array.dtype.kind != "f":
            return None
        pixels = array if options.layout == "nhwc" else array.transpose(0, 2, 3, 1)
        if pixels.shape[-1] not in USUAL or not np.isfinite(pixels).all():
            return None
        if options.channels == "bgr":
            pixels = pixels[..., ::-1]
        fed = options
        if array.min() >= 0 and array.max() <= 1:
            fed = replace(options, mean=(), std=())
        elif not (options.mean or options.std) and array.min() >= 0 and array.max() <= MAX_BYTE:
            fed = replace(options, std=(BYTE,))
        pixels = pixels * _numbers(fed.std, 1) + _numbers(fed.mean, 0)
        low, high = float(pixels.min()), float(pixels.max())
        inside = low >= -ROUNDING and high <= 1 + ROUNDING and high - low >= MIN_RANGE
        return cls(pixels, fed) if inside else None

    @property
    def plain(self) -> bool:
        """Whether the network is fed pixels in 0..1, without normalisation."""
        return not (self.fed.mean or self.fed.std)

    def fed_with(self, options: ImageOptions, chosen: slice) -> np.ndarray:
        """Prepare chosen images as ``options`` say."""
        pixels = (self.pixels[chosen] - _numbers(options.mean, 0)) / _numbers(options.std, 1)
        if options.channels == "bgr":
            pixels = pixels[..., ::-1]
        if options.layout == "nchw":
            pixels = pixels.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(pixels, np.float32)

    def normalisations(self) -> list[ImageOptions]:
        """List the other usual values of --mean and --std."""
        usual = [replace(self.fed, mean=m, std=s) for m, s in USUAL[self.pixels.shape[-1]]]
        return [options for options in usual if options != self.fed]


def reordered(options: ImageOptions) -> list[ImageOptions]:
    """List the other combinations of --channels and --layout."""
    ways = [
        replace(options, channels=channels, layout=layout)
        for layout in LAYOUTS
        for channels in CHANNELS
    ]
    return [way for way in ways if way != options]


def options_text(options: ImageOptions, fed: ImageOptions) -> str:
    """Write what differs from ``fed`` as options that can be copied."""
    parts = []
    if (options.mean, options.std) != (fed.mean, fed.std):
        numbers = {"mean": options.mean or (0.0,), "std": options.std or (1.0,)}
        for name, values in numbers.items():
            parts.append(f"--{name} {','.join(f'{value:.10g}' for value in values)}")
    if options.channels != fed.channels:
        parts.append(f"--channels {options.channels}")
    if options.layout != fed.layout:
        parts.append(f"--layout {options.layout}")
    return " ".join(parts)


def normalises(network: ir.Model) -> bool:
    """Whether a network begins with a normalisation of an input, or another scaling by constants.

    Operators that only move, cut or cast values may stand before it.
    """
    todo = [value for value in network.graph.inputs if value.name not in network.graph.initializers]
    seen = set(todo)
    while todo:
        value = todo.pop()
        for node, _ in value.uses():
            if not in_onnx_domain(node):
                continue
            if node.op_type in NORMALISATIONS or _scales(node, value):
                return True
            if node.op_type in MOVES:
                new = [output for output in node.outputs if output not in seen]
                seen |= set(new)
                todo += new
    return False


def _scales(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node adds a constant to ``value`` or multiplies it by one."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return False
    return all(other is value or constant(other) is not None for other in node.inputs)


def _numbers(values: Values, default: float) -> np.ndarray:
    """Return mean or std as an array that fits (N, H, W, C)."""
    return np.array(values or (default,), np.float32)
