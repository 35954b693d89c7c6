"""Data named by text: .npz files, folders of images, functions of the user."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from converter.data.box_folders import find_boxes, from_boxes
from converter.data.data import Arrays, Data
from converter.data.folders import from_folder
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.data.native import from_members, from_native
from converter.errors import ConverterError, first_line, root_line


def read(
    source: object,
    inputs: Sequence[Input],
    preprocessing: Preprocessing,
    find_callable: Callable[[str, str], Callable[[], object]],
) -> Data:
    """Read data from a name or from Python objects.

    Args:
        source: An .npz or .npy file, a .pt or .pth file of tensors, a folder of images,
            ``module:function`` that returns what ``from_native`` takes (a generator of batches, a
            DataLoader, ...), or one of these objects.
        inputs: The network's inputs; ``x`` in a file stands for the first.
        preprocessing: How uint8 images are prepared.
        find_callable: Imports ``module:function``; its second argument begins its messages.

    Raises:
        ConverterError: When there is no such data, or it lacks an input.
    """
    if not isinstance(source, (str, Path)):
        name = f"<{type(source).__name__}>"
        return from_native(source, name, inputs, preprocessing)
    text, path = str(source), Path(source)
    if path.is_dir():
        boxes = find_boxes(path) if len(inputs) == 1 else None
        if boxes is not None:
            return from_boxes(boxes, path, inputs[0], preprocessing)
        return from_folder(path, inputs, preprocessing)
    if path.suffix == ".npz":
        return from_members(_load_npz(path), text, inputs, preprocessing)
    if path.suffix in (".npy", ".pt", ".pth") and ":" not in text:
        load = _load_npy if path.suffix == ".npy" else _load_tensors
        return from_native(load(path), text, inputs, preprocessing)
    if ":" in text and not path.exists():
        values = _call(find_callable(text, "Data"), text)
        return from_native(values, text, inputs, preprocessing)
    if not path.exists():
        raise ConverterError(f"Data {text} does not exist.")
    raise ConverterError(
        f"Data {text} is neither .npz, .npy, .pt, a folder of images, nor module:function."
    )


def _load_npz(path: Path) -> Arrays:
    if not path.exists():
        raise ConverterError(f"Data {path} does not exist.")
    if not zipfile.is_zipfile(path):
        raise ConverterError(f"Data {path} is not a sound .npz file: it is no zip archive.")
    try:
        with np.load(path, allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise many classes on damaged files
        raise ConverterError(f"Data {path} is not a sound .npz file: {error}.") from None
    return {name: array for name, array in members.items() if isinstance(array, np.ndarray)}


def _load_npy(path: Path) -> np.ndarray:
    if not path.exists():
        raise ConverterError(f"Data {path} does not exist.")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many classes on damaged files
        raise ConverterError(f"Data {path} is not a sound .npy file: {first_line(error)}") from None
    return array


def _load_tensors(path: Path) -> object:
    """Read tensors, in dictionaries, tuples or lists, without running code from the file."""
    import torch

    if not path.exists():
        raise ConverterError(f"Data {path} does not exist.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many classes on damaged files
        raise ConverterError(
            f"Data {path} is not a sound file of tensors: {first_line(error)}"
        ) from None


def _call(function: Callable[[], object], source: str) -> object:
    try:
        return function()
    except Exception as error:  # the user's function may raise anything
        raise ConverterError(f"Data {source} failed: {root_line(error)}") from None
