"""The shapes of a network's inputs, from the user, from data, or from the network itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from converter.data.data import Data
from converter.data.inputs import Input
from converter.errors import ConverterError
from converter.models.shape_proposal import Shape, as_options
from converter.options import shapes_by_name
from converter.options.parsing import InputShape

MAX_INPUT_SIZE = 2**30  # numbers
Shapes = dict[str, tuple[int, ...]]
Propose = Callable[[], "Mapping[str, Shape] | None"]  # shapes that the network runs on


def choose_shapes(
    inputs: Sequence[Input],
    user_shapes: Mapping[str, tuple[int, ...]],
    data: Data | None,
    propose: Propose = lambda: None,
) -> Shapes:
    """Choose the shape of every input: the user's, else that of the data, else the network's.

    Args:
        inputs: The network's inputs.
        user_shapes: Shapes that the user gave, by input name, with the batch axis.
        data: Sample inputs, or None.
        propose: Called for shapes to name where a size stays free.

    Raises:
        ConverterError: When a size stays free or contradicts the network.
    """
    sample = {} if data is None else data.read(np.arange(1))
    shapes = {}
    for item in inputs:
        expected = _text(item.shape_given(item.shape))
        shape = user_shapes.get(item.name)
        if shape is None and item.name in sample:
            shape = sample[item.name].shape
        if shape is None:
            if None in item.shape[1:]:
                advice = _advice(propose(), f"--input-shape {item.name}:...")
                raise ConverterError(f"Input {item.name!r} has free sizes ({expected}); {advice}")
            shape = tuple(n or 1 for n in item.shape)
        fits = len(shape) == len(item.shape) and all(
            size in (None, n) for size, n in zip(item.shape[1:], shape[1:])
        )
        if not fits:
            given = _text(item.shape_given(shape))
            raise ConverterError(f"Input {item.name!r} takes shape {expected}, not {given}.")
        whole = (item.shape[0] or shape[0], *shape[1:]) if item.shape else shape
        if math.prod(whole) > MAX_INPUT_SIZE:
            raise ConverterError(
                f"Input {item.name!r} of shape {_text(whole)} is too large to be made."
            )
        shapes[item.name] = shape
    return shapes


def user_shapes(shapes: Sequence[InputShape], inputs: Sequence[Input]) -> list[Shapes]:
    """Group the shapes of ``--input-shape`` as ``shapes_by_name``, with the examples in front."""
    by_name = {item.name: item for item in inputs}
    return [
        {name: by_name[name].shape_from(shape) for name, shape in group.items()}
        for group in shapes_by_name(shapes, list(by_name))
    ]


def with_known_rank(
    inputs: Sequence[Input],
    user_shapes: Mapping[str, tuple[int, ...]],
    data: Data | None,
    propose: Propose = lambda: None,
) -> list[Input]:
    """Return a torch model's inputs, which have no shape, with the right number of free axes.

    Args:
        inputs: The inputs.
        user_shapes: Shapes that the user gave, by input name.
        data: Sample inputs, or None.
        propose: Called for shapes to name where a shape is not known.

    Raises:
        ConverterError: When neither ``user_shapes`` nor ``data`` has the shape of an input.
    """
    sample = {} if data is None else data.read(np.arange(1))
    ranks = {name: array.ndim for name, array in sample.items()}
    ranks |= {name: len(shape) for name, shape in user_shapes.items()}
    for item in inputs:
        if item.name not in ranks:
            advice = _advice(propose(), f"--input-shape {item.name}:1,3,32,32 or the like.")
            raise ConverterError(f"The shape of input {item.name!r} is not known; {advice}")
    return [replace(item, shape=(None,) * ranks[item.name]) for item in inputs]


def dynamic_axes(
    shapes: Mapping[str, tuple[int, ...]], more: Sequence[Mapping[str, tuple[int, ...]]]
) -> dict[str, set[int]]:
    """List the axes of each input whose size differs between shapes, and always the batch axis."""
    return {
        name: {0} | {n for other in more for n, size in enumerate(other[name]) if size != shape[n]}
        for name, shape in shapes.items()
    }


def free_axes(inputs: Sequence[Input]) -> dict[str, list[int]]:
    """List the axes of each input whose size is free."""
    return {item.name: [n for n, size in enumerate(item.shape) if size is None] for item in inputs}


def _advice(proposal: Mapping[str, Shape] | None, example: str) -> str:
    """Say how shapes are given: by those of ``proposal``, or by an example."""
    if proposal is None:
        return f"give sample inputs, or {example}"
    options = as_options(proposal)
    return f"give sample inputs, or {options}, on which it runs."


def _text(shape: Sequence[int | None]) -> str:
    return ",".join("?" if n is None else str(n) for n in shape)
