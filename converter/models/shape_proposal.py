"""Complete shapes for the inputs of a network with free sizes, to propose to the user."""

from __future__ import annotations

import math
import re
import shlex
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from torch import nn

from converter.data.data import random_data
from converter.data.inputs import Input
from converter.errors import ConverterError
from converter.graph.network import constant, in_onnx_domain, inputs, open_session, values_by_name
from converter.models.export import flat_outputs, float_type, forward
from converter.runtime.ort import run

Shape = tuple[int, ...]
# What networks usually take, the most usual first.
SIDES = (224, 640, 256, 320, 512, 384, 299, 416, 128, 112, 96, 64, 48, 32, 28)  # of images
WIDTHS = (320, 100, 128, 256, 64, 32)  # of lines of text, whose height is fixed
EDGES = (64, 96, 128, 32, 16)  # of volumes
FRAMES = (100, 200, 128, 256, 64, 32, 16)  # of sequences
SAMPLES = (16000, 8000, 32000, 512, 576, 1280, 480, 256)  # of sound
LINE_HEIGHT = 96  # pixels; an image with a fixed height below this is a line of text
IMAGE_SIZE = re.compile(r"imgsz|(image|img|input)_?(size|shape)", re.IGNORECASE)
MIN_SIDE, MAX_SIDE = 8, 1024
MAX_STRIDE = 128  # of the features over the image
CONVOLUTIONS: tuple[type[Any], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FLATTENING = ("Flatten", "Reshape")
ELEMENTWISE = ("Cast", "Dropout", "Identity", "LeakyRelu", "Relu")


def propose_shapes(network: ir.Model) -> dict[str, Shape] | None:
    """Look for input shapes that a network runs on.

    Images have the size in its metadata, else one that fills the first linear layer behind them,
    else a usual one.

    Returns:
        The shapes of the inputs with free sizes, by name, or None if none was found.
    """
    items = inputs(network)
    free = [item.name for item in items if None in item.shape[1:]]
    dtypes = {item.name: item.dtype for item in items}
    try:
        session = open_session(network)
        sides = _sides_for_linear(network, items)
    except ConverterError:
        return None
    image_size = _image_size(network)
    if image_size is None and sides is not None:
        usual = [side for side in SIDES if side in sides]
        if not sides:
            return None
        image_size = (usual[0] if usual else max(sides, key=lambda side: side & -side),) * 2
    for shapes in _candidates(network, items, image_size):
        whole = {name: (1, *shape) for name, shape in shapes.items()}
        arrays = random_data(whole, dtypes, 1, 0).read(np.zeros(1, int))
        try:
            run(session, {name: np.asarray(array[0]) for name, array in arrays.items()})
        except ConverterError:
            continue
        return {name: shapes[name] for name in free}
    return None


def propose_for_module(model: nn.Module, names: Sequence[str]) -> dict[str, Shape] | None:
    """Look for the shape of the only input of a torch model, as ``propose_shapes`` does."""
    if len(names) > 1:
        return None
    (name,) = names
    dtype = np.dtype(str(float_type(model)).removeprefix("torch."))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            item, channels = Input(name, (None, None), dtype), int(layer.in_features)
        elif isinstance(layer, CONVOLUTIONS):
            item = Input(name, (None,) * layer.weight.ndim, dtype)
            channels = int(layer.in_channels)
        else:
            continue
        for shape in _complete(item, channels):
            try:
                outputs = flat_outputs(forward(model, {name: np.zeros(shape, dtype)}))
            except ConverterError:
                continue
            if outputs and len(outputs[0].shape) and len(outputs[0]) == 1:
                return {name: shape}
        return None
    return None


def as_options(shapes: Mapping[str, Shape]) -> str:
    """Write shapes as options of the command line."""
    texts = (f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())
    return " ".join(f"--input-shape {shlex.quote(text)}" for text in texts)


def _candidates(
    network: ir.Model, items: Sequence[Input], image_size: tuple[int, int] | None
) -> Iterator[dict[str, Shape]]:
    """Iterate over shapes of all inputs, the likeliest first.

    Sizes with the same symbol are equal in all inputs.
    """
    operator, channels = _first_weights(network)
    signals = operator == "Conv"
    choices = [list(_complete(item, channels, image_size, signals)) for item in items]
    symbols = [
        [dim.value if isinstance(dim, ir.SymbolicDim) else None for dim in value.shape or ()]
        for item in items
        for value in network.graph.inputs
        if value.name == item.name
    ]
    for number in range(max(map(len, choices))):
        sizes: dict[str, int] = {}
        shapes = {}
        for item, named, shape_choices in zip(items, symbols, choices):
            shape = shape_choices[min(number, len(shape_choices) - 1)]
            shapes[item.name] = tuple(
                size if symbol is None else sizes.setdefault(symbol, size)
                for symbol, size in zip(named, shape)
            )
        yield shapes


def _complete(
    item: Input,
    channels: int,
    image_size: tuple[int, int] | None = None,
    signals: bool = False,
) -> Iterator[Shape]:
    """Iterate over complete shapes of an input, the likeliest first.

    Args:
        item: The input.
        channels: Its channels, whose axis may be free.
        image_size: Height and width of images, if they are known.
        signals: Whether an input (N, ?) is sound, because the network starts with a convolution.
    """
    dims = [n or (1 if axis == 0 else None) for axis, n in enumerate(item.shape)]
    layouts = [dims]
    sound = signals and len(dims) == 2
    if not sound and len(dims) > 1 and dims[1] is None and dims[-1] != channels:
        layouts = [[dims[0], channels, *dims[2:]]]
        if dims[-1] is None and len(dims) > 2:
            layouts.append([*dims[:-1], channels])
    for layout in layouts:
        free = [axis for axis, size in enumerate(layout) if size is None]
        for sizes in _sizes(layout, len(free), image_size):
            filled = dict(zip(free, sizes))
            yield tuple(filled.get(axis) or int(size or 1) for axis, size in enumerate(layout))


def _sizes(
    layout: Sequence[int | None], count: int, image_size: tuple[int, int] | None
) -> Iterator[Shape]:
    """Iterate over what the ``count`` free sizes of a shape usually are."""
    rank, known = len(layout), [size for size in layout[1:] if size is not None]
    if count == 0:
        yield ()
    elif rank == 4 and count == 2:
        yield from [image_size] if image_size else []
        yield from ((side, side) for side in SIDES)
    elif rank == 4 and count == 1:
        sides = WIDTHS + SIDES if max(known) < LINE_HEIGHT else (max(known), *SIDES)
        yield from ((side,) for side in sides)
    elif rank == 5:
        yield from ((edge,) * count for edge in EDGES)
    else:
        lengths = SAMPLES + FRAMES if known in ([], [1]) else FRAMES + SAMPLES
        yield from ((length,) * count for length in lengths)


def _first_weights(network: ir.Model) -> tuple[str, int]:
    """Return operator and input channels of the first convolution or linear layer, or "", 3."""
    for node in network.graph:
        weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None or not in_onnx_domain(node) or weight.ndim < 2:
            continue
        if node.op_type == "Conv":
            return "Conv", int(weight.shape[1]) * int(node.attributes.get_int("group", 1))
        if node.op_type in ("Gemm", "MatMul"):
            return node.op_type, _rows(node, weight)
    return "", 3


def _rows(node: ir.Node, weight: np.ndarray) -> int:
    """Return the width of the input of a linear layer."""
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return int(weight.shape[1 if transposed else 0])


def _image_size(network: ir.Model) -> tuple[int, int] | None:
    """Return height and width of images by the metadata, such as ``imgsz`` of ultralytics."""
    for key, text in network.metadata_props.items():
        sizes = [int(number) for number in re.findall(r"\d+", text)]
        if IMAGE_SIZE.search(key) and sizes and min(sizes[-2:]) > 0 and max(sizes) <= 2 * MAX_SIDE:
            return (sizes[-2] if len(sizes) > 1 else sizes[-1]), sizes[-1]
    return None


def _sides_for_linear(network: ir.Model, items: Sequence[Input]) -> range | None:
    """Return the sides of square images whose features fill the first linear layer behind them.

    Returns:
        The sides, none if no square does, or None without such a layer or without free sides.
    """
    flattened = _flattened(network)
    if flattened is None or len(items) > 1 or len(items[0].shape) != 4:
        return None
    if items[0].shape[1:].count(None) < 2:
        return None
    (features, wanted), item, (_, channels) = flattened, items[0], _first_weights(network)
    session = open_session(_cut(network, features))

    def count(side: int) -> int:
        """Count the features of an image; 0 if it is too small."""
        shape = next(_complete(item, channels, (side, side)))
        feeds = random_data({item.name: shape}, {item.name: item.dtype}, 1, 0)
        try:
            (sizes,) = run(session, feeds.read(np.zeros(shape[0], int))).values()
        except ConverterError:
            return 0
        return math.prod(map(int, sizes)) // shape[0]

    first = _first_side(lambda side: count(side) >= wanted, MIN_SIDE, MAX_SIDE)
    if first is None or count(first) != wanted:
        return range(0)
    if count(first + MAX_STRIDE) == wanted:  # the features are pooled to a fixed size
        return range(first, MAX_SIDE)
    return range(
        first, _first_side(lambda side: count(side) > wanted, first, MAX_SIDE) or first + 1
    )


def _first_side(reached: Callable[[int], bool], low: int, limit: int) -> int | None:
    """Return the smallest side from ``low`` on for which a monotonic condition holds, or None."""
    if reached(low):
        return low
    high = 2 * low
    while not reached(high):
        low, high = high, 2 * high
        if high > limit:
            return None
    return low + 1 + bisect_left(range(low + 1, high), True, key=reached)


def _flattened(network: ir.Model) -> tuple[str, int] | None:
    """Name the features that the first linear layer takes flattened, and count what it needs."""
    for node in network.graph:
        weight = constant(node.inputs[1]) if node.op_type in ("Gemm", "MatMul") else None
        value = node.inputs[0] if weight is not None else None
        while value is not None and (producer := value.producer()) is not None:
            value = producer.inputs[0] if producer.inputs else None
            if value is not None and weight is not None and producer.op_type in FLATTENING:
                return str(value.name), _rows(node, weight)
            if producer.op_type not in ELEMENTWISE:
                break
    return None


def _cut(network: ir.Model, name: str) -> ir.Model:
    """Return the part of a network that computes the shape of one value."""
    copy = network.clone()
    shape = ir.node("Shape", [values_by_name(copy)[name]])
    shape.outputs[0].name, shape.outputs[0].dtype = "shape_of_features", ir.DataType.INT64
    copy.graph.append(shape)
    copy.graph.outputs.clear()
    copy.graph.outputs.append(shape.outputs[0])
    common.RemoveUnusedNodesPass()(copy)
    return copy
