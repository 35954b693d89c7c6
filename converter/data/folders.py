"""Folders of images, whose subfolders are classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from converter.data.data import Arrays, Data
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.errors import ConverterError, first_line

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
# Folders of notes that macOS and network drives leave; others begin with a dot.
NO_DATA = {"__MACOSX", "@eaDir"}


def from_folder(folder: Path, inputs: Sequence[Input], preprocessing: Preprocessing) -> Data:
    """Read a folder of images; the folders in it are classes, sorted as text, as in torchvision.

    Images anywhere in such a folder belong to its class, and a folder without any file is a class
    without images. What begins with a dot is passed by.

    Args:
        folder: The folder.
        inputs: The network's inputs: there must be one.
        preprocessing: How images are prepared.

    Raises:
        ConverterError: When the network has several inputs, or there are no images.
    """
    if len(inputs) > 1:
        raise ConverterError(
            f"Folder {folder} holds images for one input, but the network has "
            f"{', '.join(item.name for item in inputs)}; give an .npz file or module:function with "
            "an array for each."
        )
    try:
        paths = sorted(path for path in _files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
        classes, notes = _classes(folder, paths)
    except OSError as error:
        raise ConverterError(f"Folder {folder} cannot be read: {first_line(error)}") from None
    if not paths:
        raise ConverterError(f"Folder {folder} holds no images.")
    preprocessing, name = preprocessing.for_input(inputs[0]), inputs[0].name

    def stacked(images: list[np.ndarray]) -> Arrays:
        return {name: preprocessing.prepare(preprocessing.stack(images, inputs[0], folder))}

    def read_images(indices: np.ndarray) -> Arrays:
        return stacked([preprocessing.read_file(paths[index]) for index in indices])

    def augment(indices: np.ndarray, rng: np.random.Generator) -> Arrays:
        return stacked([preprocessing.read_file(paths[index], rng) for index in indices])

    labels = [classes.index(p.relative_to(folder).parts[0]) for p in paths] if classes else None
    return Data(
        len(paths),
        read_images,
        None if labels is None else np.array(labels),
        str(folder),
        augment,
        named_classes=len(classes) or None,
        preprocessing=preprocessing.describe(),
        notes=notes,
    )


def _files(folder: Path) -> Iterator[Path]:
    """Iterate over the files in a folder at any depth, without hidden ones."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in NO_DATA:
            continue
        if path.is_dir():
            if not folder.resolve().is_relative_to(path.resolve()):  # else a link in a circle
                yield from _files(path)
        else:
            yield path


def _classes(folder: Path, paths: Sequence[Path]) -> tuple[list[str], tuple[str, ...]]:
    """List the classes of the images ``paths``, and what should be said about them.

    Returns:
        Names of folders, or none if the images have no classes; and sentences.
    """
    folders = {p.name: list(_files(p)) for p in folder.iterdir() if p.is_dir()}
    hidden = {name for name in folders if name.startswith(".") or name in NO_DATA}
    filled = {p.relative_to(folder).parts[0] for p in paths if p.parent != folder}
    empty = sorted(name for name, files in folders.items() if not files and name not in hidden)
    classes = sorted([*filled, *empty])
    loose = sum(path.parent == folder for path in paths)
    if not filled or (len(classes) == 1 and not loose):
        return [], ()
    if loose:
        return [], (
            f"{loose} of {len(paths)} images of {folder} are in no subfolder, so the subfolders "
            "are not taken for classes.",
        )
    if filled <= SPLITS:
        return [], (
            f"The subfolders {', '.join(sorted(filled))} of {folder} are not taken for classes; "
            "name one of them to have its classes.",
        )
    notes = []
    if empty:
        notes.append(
            f"{folder} holds {len(paths)} images in {len(classes)} classes; there are none of "
            f"{', '.join(empty)}."
        )
    if all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
        notes.append(
            f"The classes of {folder} are sorted as text ({', '.join(classes[:4])}, ...), as in "
            "torchvision; with 0s in front, such as 02, they are sorted as numbers."
        )
    return classes, tuple(notes)
