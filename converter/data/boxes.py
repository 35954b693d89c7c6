"""Labels with boxes: COCO json and YOLO text files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from converter.data.folders import IMAGE_SUFFIXES
from converter.errors import ConverterError, first_line

MARGIN = 1.0  # pixels by which a box may leave its image, as rounding does; it is cut off
FIRST_TURNED = 5  # Orientation in EXIF: from here on, width and height change places
NONE = -1  # class of the rows that fill up the labels of an image
NAMES = ("classes.txt", "obj.names")  # files that name the classes of YOLO labels, a line each


@dataclass(frozen=True)
class BoxLabels:
    """Images with labelled boxes.

    Attributes:
        paths: Image files, N of them.
        sizes: (N, 2) width and height in pixels.
        boxes: (N, M, 5) class, left, top, right, bottom in pixels of the image; the images with
            fewer than M boxes are filled up with rows of class -1.
        class_names: Names of the classes 0..C-1.
    """

    paths: tuple[Path, ...]
    sizes: np.ndarray
    boxes: np.ndarray
    class_names: tuple[str, ...]


def read_coco(path: Path, image_folder: Path) -> BoxLabels:
    """Read labels in the format of COCO (arXiv 1405.0312).

    The classes are the categories in the order of their ids. Annotations of crowds are left out.

    Args:
        path: The json file.
        image_folder: The folder in which its images are.

    Raises:
        ConverterError: When the file or an image cannot be read, or a box is malformed or outside
            of its image.
    """
    content = _load_json(path)
    images = _by_id(content, "images", path)
    categories = sorted(_by_id(content, "categories", path).items())
    numbers = {category: number for number, (category, _) in enumerate(categories)}
    paths = {key: image_folder / str(item.get("file_name")) for key, item in images.items()}
    sizes = {key: _size_of(file) for key, file in paths.items()}
    for key, item in images.items():
        said = (item.get("width", sizes[key][0]), item.get("height", sizes[key][1]))
        if said != sizes[key]:
            raise ConverterError(
                f"Labels {path}: image {paths[key].name} has {sizes[key][0]}x{sizes[key][1]} "
                f"pixels, not {said[0]}x{said[1]}; give the images that were labelled."
            )
    boxes: dict[Any, list[Sequence[float]]] = {key: [] for key in images}
    for item in _list_of(content, "annotations", path):
        where = f"Labels {path}: annotation {item.get('id')}"
        image, category = item.get("image_id"), item.get("category_id")
        listed = isinstance(image, int) and isinstance(category, int)
        if not listed or image not in images or category not in numbers:
            raise ConverterError(
                f"{where} names image {image} and category {category}, which the file does not "
                "list; give a complete file."
            )
        if item.get("iscrowd"):
            continue
        corner = _numbers(item.get("bbox"), 4, where)
        row = [*corner[:2], corner[0] + corner[2], corner[1] + corner[3]]
        boxes[image].append([numbers[category], *_inside(row, sizes[image], where)])
    names = tuple(str(category.get("name", key)) for key, category in categories)
    return _labels(list(paths.values()), list(sizes.values()), list(boxes.values()), names)


def read_yolo(folder: Path) -> BoxLabels:
    """Read labels in the format of YOLO: one text file an image, named like it.

    Each line is class, centre and size of a box, as parts of the width and height of the image.
    The text files are in ``labels`` beside ``images``, in folders of the same names, or beside the
    images. An image without a file, or with an empty one, shows no object.

    Args:
        folder: The folder with the images and the text files.

    Raises:
        ConverterError: When there are no labels, an image cannot be read, or a line is malformed
            or its box outside of the image.
    """
    images, labels = folder / "images", folder / "labels"
    apart = images.is_dir() and labels.is_dir()
    root, label_root = (images, labels) if apart else (folder, folder)
    paths = sorted(p for p in root.rglob("*") if _is_image(p.relative_to(root)))
    texts = [label_root / path.relative_to(root).with_suffix(".txt") for path in paths]
    if not any(text.is_file() for text in texts):
        raise ConverterError(f"Folder {folder} holds no images with text files of boxes.")
    sizes = [_size_of(path) for path in paths]
    boxes = [_read_lines(text, size) for text, size in zip(texts, sizes)]
    count = 1 + max((int(row[0]) for rows in boxes for row in rows), default=0)
    places = [place / name for place in (folder, labels) for name in NAMES]
    names = next((_text(place).split("\n") for place in places if place.is_file()), [])
    names = [name.strip() for name in names if name.strip()] or [str(n) for n in range(count)]
    if len(names) < count:
        raise ConverterError(
            f"Folder {folder} has labels of class {count - 1} and names of {len(names)} classes; "
            "name all classes."
        )
    return _labels(paths, sizes, boxes, tuple(names))


def _labels(
    paths: Sequence[Path],
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[Sequence[Sequence[float]]],
    names: tuple[str, ...],
) -> BoxLabels:
    """Fill up the rows of each image to the same number, at least one."""
    most = max(1, max((len(rows) for rows in boxes), default=0))
    table = np.full((len(paths), most, 5), float(NONE))
    for number, rows in enumerate(boxes):
        if rows:
            table[number, : len(rows)] = rows
    return BoxLabels(tuple(paths), np.array(sizes, int).reshape(-1, 2), table, names)


def _load_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ConverterError(f"Labels {path} are no sound json: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ConverterError(f"Labels {path} are not in the format of COCO: no object at the top.")
    return content


def _list_of(content: Mapping[str, Any], key: str, path: Path) -> list[Mapping[str, Any]]:
    items = content.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConverterError(
            f"Labels {path} are not in the format of COCO: {key!r} must be a list of objects."
        )
    return items


def _by_id(content: Mapping[str, Any], key: str, path: Path) -> dict[int, Mapping[str, Any]]:
    items = _list_of(content, key, path)
    by_id = {item["id"]: item for item in items if isinstance(item.get("id"), int)}
    if len(by_id) < len(items) or not items:
        raise ConverterError(
            f"Labels {path} are not in the format of COCO: {key!r} must hold objects, each with an "
            "integer id of its own."
        )
    return by_id


def _read_lines(path: Path, size: tuple[int, int]) -> list[list[float]]:
    """Read the boxes of one image; none if there is no file."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        label, x, y, width, height = _numbers(line.split(), 5, where)
        if label < 0 or label != int(label):
            raise ConverterError(f"{where} has the class {label:g}; it must be a whole number.")
        centre, half = np.array([x, y]) * size, np.array([width, height]) * size / 2
        rows.append([label, *_inside([*(centre - half), *(centre + half)], size, where)])
    return rows


def _numbers(values: Any, count: int, where: str) -> list[float]:
    """Return ``count`` finite numbers.

    Raises:
        ConverterError: When the values are others.
    """
    try:
        numbers = [float(value) for value in values] if isinstance(values, list) else []
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ConverterError(
            f"{where} must have {count} finite numbers, the box as "
            f"{'class, centre and size' if count == 5 else 'left, top, width and height'}."
        )
    return numbers


def _inside(box: Sequence[float], size: tuple[int, int], where: str) -> list[float]:
    """Cut what rounding added to a box: left, top, right, bottom in an image of ``size``.

    Raises:
        ConverterError: When the box is empty or outside of the image.
    """
    low, high = np.array(box[:2], float), np.array(box[2:], float)
    if (low < -MARGIN).any() or (high > np.array(size) + MARGIN).any():
        raise ConverterError(
            f"{where} has a box outside of its image of {size[0]}x{size[1]} pixels; correct it."
        )
    low, high = np.maximum(low, 0), np.minimum(high, size)
    if (high <= low).any():
        raise ConverterError(f"{where} has a box without an area; correct it.")
    return [*low.tolist(), *high.tolist()]


def _size_of(path: Path) -> tuple[int, int]:
    """Return width and height of an image file, as it is read: upright.

    Raises:
        ConverterError: When there is none.
    """
    if not path.is_file():
        raise ConverterError(f"Image {path}, which has labels, is missing; give it.")
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= FIRST_TURNED
    except Exception as error:  # Pillow raises many classes on damaged files
        raise ConverterError(f"Image {path} cannot be read: {first_line(error)}") from None
    return (height, width) if turned else (width, height)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConverterError(f"Labels {path} cannot be read: {first_line(error)}") from None


def _is_image(path: Path) -> bool:
    """Whether a file's name is that of an image, and neither it nor a folder of it is hidden."""
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden
