"""Data named by text: .npz files, folders of images, functions of the user."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence, Set
from pathlib import Path

import numpy as np

from converter.data.data import Arrays, Data
from converter.data.images import Preprocessing
from converter.data.native import from_members, from_native
from converter.errors import ConverterError, root_line

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def read(
    source: object,
    names: Sequence[str],
    preprocessing: Preprocessing,
    find_callable: Callable[[str, str], Callable[[], object]],
    raw_inputs: Set[str] = frozenset(),
) -> Data:
    """Read data from a name or from Python objects.

    Args:
        source: An .npz file, a folder of images, ``module:function`` that returns what
            ``from_native`` takes (a generator of batches, a DataLoader, ...), or one of these
            objects.
        names: The network's inputs; ``x`` in a file stands for the first.
        preprocessing: How uint8 images are prepared.
        find_callable: Imports ``module:function``; its second argument begins its messages.
        raw_inputs: Inputs whose uint8 arrays are not images to prepare.

    Raises:
        ConverterError: When there is no such data, or it lacks an input.
    """
    if not isinstance(source, (str, Path)):
        name = f"<{type(source).__name__}>"
        return from_native(source, name, names, preprocessing, raw_inputs)
    text, path = str(source), Path(source)
    if path.is_dir():
        return _from_folder(path, names[0], preprocessing)
    if path.suffix == ".npz":
        return from_members(_load_npz(path), text, names, preprocessing, raw_inputs)
    if ":" in text and not path.exists():
        return from_native(
            _call(find_callable(text, "Data"), text), text, names, preprocessing, raw_inputs
        )
    if not path.exists():
        raise ConverterError(f"Data {text} does not exist.")
    raise ConverterError(f"Data {text} is neither .npz, a folder of images, nor module:function.")


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


def _call(function: Callable[[], object], source: str) -> object:
    try:
        return function()
    except Exception as error:  # the user's function may raise anything
        raise ConverterError(f"Data {source} failed: {root_line(error)}") from None


def _from_folder(folder: Path, name: str, preprocessing: Preprocessing) -> Data:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ConverterError(f"Folder {folder} holds no images.")
    classes = sorted({p.parent.name for p in paths if p.parent != folder})
    labelled = bool(classes) and all(p.parent.parent == folder for p in paths)
    labels = np.array([classes.index(p.parent.name) for p in paths]) if labelled else None

    def stacked(images: list[np.ndarray]) -> Arrays:
        if len({image.shape for image in images}) > 1:
            raise ConverterError(
                f"The images in {folder} differ in size; give --resize and --crop."
            )
        return {name: preprocessing.prepare(np.stack(images))}

    def read_images(indices: np.ndarray) -> Arrays:
        return stacked([preprocessing.read_file(paths[index]) for index in indices])

    def augment(indices: np.ndarray, rng: np.random.Generator) -> Arrays:
        return stacked([preprocessing.read_file(paths[index], rng) for index in indices])

    return Data(len(paths), read_images, labels, str(folder), augment)
