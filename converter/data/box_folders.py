"""Folders of images with labelled boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from converter.data.boxes import BoxLabels, read_coco, read_yolo
from converter.data.data import Arrays, Data
from converter.data.folders import IMAGE_SUFFIXES
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.data.placement import Transform, fitted, placed
from converter.errors import ConverterError, first_line

JSON_NAMES = ("annotations.json", "_annotations.coco.json", "instances*.json")
LOOKED_AT = 20  # text files beside images that are opened: captions are no boxes


def find_boxes(folder: Path) -> BoxLabels | None:
    """Read the boxes of a folder that holds some: a COCO json, or the text files of YOLO.

    The json is ``annotations.json``, ``_annotations.coco.json`` or ``instances*.json``, in the
    folder or in ``annotations``. Its images are in the folder, in ``images``, or in the folder
    named like the end of ``instances_val2017.json``.

    Returns:
        The labels, or None if there are no such files.

    Raises:
        ConverterError: When there are several json files, or the labels cannot be read.
    """
    try:
        places = [place for place in (folder, folder / "annotations") if place.is_dir()]
        jsons = sorted({p for place in places for name in JSON_NAMES for p in place.glob(name)})
        yolo = not jsons and _has_yolo_labels(folder)
    except OSError as error:
        raise ConverterError(f"Folder {folder} cannot be read: {first_line(error)}") from None
    if len(jsons) > 1:
        raise ConverterError(
            f"Folder {folder} holds labels in {jsons[0].name} and {jsons[1].name}; leave one."
        )
    if jsons:
        return read_coco(jsons[0], _image_folder(folder, jsons[0]))
    return read_yolo(folder) if yolo else None


def from_boxes(labels: BoxLabels, folder: Path, item: Input, preprocessing: Preprocessing) -> Data:
    """Make data of images with boxes, the labels (N, M, 5) in pixels of the input.

    Without ``resize`` and ``crop`` the whole images are fitted into the input, if its size is
    known.

    Args:
        labels: The images and their boxes.
        folder: Their folder, for messages.
        item: The network's input.
        preprocessing: How images are prepared.
    """
    preprocessing = preprocessing.for_input(item)
    transform = Transform(preprocessing.resize, preprocessing.crop)
    sides = preprocessing.sides(item)
    words = preprocessing.describe()
    if transform == Transform() and sides and None not in sides:
        height, width = (int(side or 0) for side in sides)
        transform = Transform(letterbox=(width, height))
        words = f"{words}, fitted into {width}x{height}"

    def read(indices: np.ndarray) -> Arrays:
        images = [preprocessing.read_file(labels.paths[index]) for index in indices]
        if transform.letterbox is not None:
            images = [fitted(image, transform) for image in images]
        return {item.name: preprocessing.prepare(preprocessing.stack(images, item, folder))}

    sizes = [(int(width), int(height)) for width, height in labels.sizes]
    boxes = np.stack([placed(rows, size, transform) for rows, size in zip(labels.boxes, sizes)])
    data = Data(len(labels.paths), read, None, str(folder), preprocessing=words)
    return replace(data.labelled(boxes), named_classes=len(labels.class_names))


def _image_folder(folder: Path, path: Path) -> Path:
    """Choose the folder with the images of a COCO file."""
    part = path.stem.partition("_")[2]
    options = [folder / part, folder / "images" / part, folder / "images"]
    named = [option for option in options if option != folder and option.is_dir()]
    loose = any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())
    return named[0] if named and not loose else folder


def _has_yolo_labels(folder: Path) -> bool:
    """Whether there are text files with boxes in ``labels``, or beside the images."""
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return any((folder / "labels").rglob("*.txt"))
    files = {path.name: path for path in folder.iterdir()}
    images = sorted(p for p in files.values() if p.suffix.lower() in IMAGE_SUFFIXES)
    texts = [path.with_suffix(".txt") for path in images if f"{path.stem}.txt" in files]
    lines = [text.read_bytes().split(b"\n", 1)[0].split() for text in texts[:LOOKED_AT]]
    return any(len(line) == 5 and all(map(_is_number, line)) for line in lines)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
