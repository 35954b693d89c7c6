"""Data that Python callers pass: arrays, tensors, batches, DataLoaders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from converter.data.data import Arrays, Data, check_arrays
from converter.data.images import Preprocessing
from converter.data.inputs import Input, examples_in_front
from converter.data.loader import from_loader, is_loader
from converter.errors import ConverterError, first_line, root_line


def from_native(
    values: Any, source: str, inputs: Sequence[Input], preprocessing: Preprocessing
) -> Data:
    """Read data from Python objects.

    Args:
        values: An array or tensor (N, ...) for the first input; a mapping of arrays by input name
            (``x`` stands for the first input, ``y`` for labels); a tuple of the inputs in order,
            with or without labels after them; a list or iterator of batches of these kinds; or a
            torch DataLoader.
        source: A description for messages.
        inputs: The network's inputs.
        preprocessing: How uint8 images are prepared.

    Raises:
        ConverterError: When an input is missing, or the values are not numbers that fit together.
    """
    names = [item.name for item in inputs]
    if is_loader(values):
        return from_loader(values, source, names)
    if isinstance(values, Iterator):
        try:
            values = list(values)
        except Exception as error:  # the user's generator may raise anything
            raise ConverterError(f"Data {source} failed: {root_line(error)}") from None
    arrays = (
        _concatenated(values, source, names)
        if isinstance(values, list)
        else arrays_by_name(values, source, names)
    )
    return from_members(arrays, source, inputs, preprocessing)


def arrays_by_name(values: Any, source: str, names: Sequence[str]) -> Arrays:
    """Name the arrays of one array, tensor, tuple or mapping; labels are called ``y``.

    Raises:
        ConverterError: When there are more or fewer arrays than inputs, or numpy cannot hold one.
    """
    if isinstance(values, Mapping):
        items = {str(name): value for name, value in values.items()}
    elif isinstance(values, tuple):
        slots = [*names] if "y" in names else [*names, "y"]
        if not len(names) <= len(values) <= len(slots):
            raise ConverterError(
                f"Data {source} is a tuple of {len(values)} arrays; the network has the inputs "
                f"{', '.join(names)}, and only labels may follow. Give a list for several batches."
            )
        items = dict(zip(slots, values))
    else:
        items = {names[0]: values}
    try:
        return {
            name: value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
            for name, value in items.items()
        }
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, types numpy lacks
        raise ConverterError(
            f"Data {source} cannot be read as arrays: {first_line(error)}"
        ) from None


def from_members(
    members: Mapping[str, np.ndarray],
    source: str,
    inputs: Sequence[Input],
    preprocessing: Preprocessing,
) -> Data:
    """Make data of named arrays; uint8 arrays of images are prepared.

    Args:
        members: By input name; ``x`` stands for the first input, ``y`` for labels. Other arrays
            are not used.
        source: A description for messages.
        inputs: The network's inputs.
        preprocessing: How images are prepared.

    Raises:
        ConverterError: When an input is missing, or the arrays do not fit together.
    """
    arrays, names = {}, [item.name for item in inputs]
    for name in names:
        array = members.get(name, members.get("x") if name == names[0] else None)
        if array is None:
            others = ", ".join(sorted(set(members) - ({"y"} - set(names)))) or "none"
            raise ConverterError(
                f"Data {source} has arrays {others}; it lacks the network's input {name!r} (or x "
                "for the first)."
            )
        arrays[name] = array
    arrays = examples_in_front(arrays, inputs)
    check_arrays(arrays, source)
    images = {item.name: preprocessing.images_in(arrays[item.name], item) for item in inputs}
    prepared = {
        item.name: preprocessing.for_input(item) for item in inputs if images[item.name] is not None
    }

    def read(indices: np.ndarray) -> Arrays:
        return {
            name: array[indices] if x is None else prepared[name].prepare(x[indices])
            for (name, array), x in zip(arrays.items(), images.values())
        }

    def augment(indices: np.ndarray, rng: np.random.Generator) -> Arrays:
        return {
            name: prepared[name].prepare(preprocessing.shifted_and_flipped(x[indices], rng))
            for name, x in images.items()
            if x is not None
        }

    data = Data(
        len(arrays[names[0]]),
        read,
        None,
        source,
        augment if len(prepared) == len(inputs) else None,
        preprocessing="; ".join(dict.fromkeys(p.describe() for p in prepared.values())) or None,
    )
    labels = members.get("y") if "y" not in names else None
    return data if labels is None else data.labelled(labels)


def _concatenated(batches: Sequence[Any], source: str, names: Sequence[str]) -> Arrays:
    """Concatenate batches, each an array, tensor, tuple or mapping."""
    if not batches:
        raise ConverterError(f"Data {source} yields nothing.")
    for batch in batches:
        if not (isinstance(batch, (Mapping, tuple)) or hasattr(batch, "shape")):
            raise ConverterError(
                f"Data {source} must be a list of batches (arrays, tensors, tuples of inputs or "
                f"dictionaries), not of {type(batch).__name__}."
            )
    parts = [arrays_by_name(batch, source, names) for batch in batches]
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except (KeyError, ValueError) as error:
        raise ConverterError(f"Data {source} has batches that differ: {error}.") from None
