"""Data as users name it: files of arrays, folders of images, functions of their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from converter.data.data import Arrays, Batch, Data, are_classes, check_arrays, from_arrays
from converter.data.images import Images
from converter.errors import ConverterError, root_line

T = TypeVar("T")
LOOKED_AT = 8  # examples whose classes are held against what the dataset says of all
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def load(
    source: str,
    names: Sequence[str],
    images: Images,
    find: Callable[[str, str], Callable[[], object]],
    bytes_as_they_are: Set[str] = frozenset(),
) -> Data:
    """Read data from what the user named.

    Args:
        source: An .npz file, a folder of images, or ``module:function`` that yields dictionaries
            of arrays or returns a torch DataLoader.
        names: The network's inputs; ``x`` in a file stands for the first.
        images: How uint8 images are prepared.
        find: Imports ``module:function``.
        bytes_as_they_are: Inputs whose uint8 arrays are not images to prepare.

    Raises:
        ConverterError: When there is no such data, or it lacks an input.
    """
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, names[0], images)
    if path.suffix == ".npz":
        return _from_npz(path, names, images, bytes_as_they_are)
    if ":" in source and not path.exists():
        return _from_function(source, names, find)
    if not path.exists():
        raise ConverterError(f"Data {source} does not exist.")
    raise ConverterError(f"Data {source} is neither .npz, a folder of images, nor module:function.")


def _from_npz(
    path: Path, names: Sequence[str], images: Images, bytes_as_they_are: Set[str]
) -> Data:
    if not path.exists():
        raise ConverterError(f"Data {path} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise many classes on damaged files
        raise ConverterError(f"Data {path} is not a sound .npz file: {error}.") from None
    stored = {name: array for name, array in members.items() if isinstance(array, np.ndarray)}
    labels = stored.pop("y", None) if "y" not in names else None
    arrays = {
        name: stored.get(name, stored.get("x") if name == names[0] else None) for name in names
    }
    lacking = [name for name, array in arrays.items() if array is None]
    if lacking:
        raise ConverterError(
            f"Data {path} has arrays {', '.join(sorted(stored)) or 'none'}; it lacks the network's "
            f"input {lacking[0]!r} (or x for the first)."
        )
    found = {name: array for name, array in arrays.items() if array is not None}
    check_arrays(found, path)
    count = len(found[names[0]])
    pictures = {
        name
        for name, array in found.items()
        if array.dtype == np.uint8 and array.ndim == 4 and name not in bytes_as_they_are
    }

    def read(indices: np.ndarray) -> Arrays:
        return {
            name: images.prepare(array[indices]) if name in pictures else array[indices]
            for name, array in found.items()
        }

    def vary(indices: np.ndarray, rng: np.random.Generator) -> Arrays:
        picked = {name: array[indices] for name, array in found.items()}
        return {
            name: images.prepare(images.moved(array, rng)) if name in pictures else array
            for name, array in picked.items()
        }

    data = Data(count, read, None, str(path), vary if pictures == set(found) else None)
    return data if labels is None else data.labelled(labels)


def _from_folder(folder: Path, name: str, images: Images) -> Data:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ConverterError(f"Folder {folder} holds no images.")
    classes = sorted({p.parent.name for p in paths if p.parent != folder})
    labelled = bool(classes) and all(p.parent.parent == folder for p in paths)
    labels = np.array([classes.index(p.parent.name) for p in paths]) if labelled else None

    def read(indices: np.ndarray) -> Arrays:
        return together([images.open(paths[index]) for index in indices])

    def vary(indices: np.ndarray, rng: np.random.Generator) -> Arrays:
        return together([images.open(paths[index], rng) for index in indices])

    def together(opened: list[np.ndarray]) -> Arrays:
        if len({image.shape for image in opened}) > 1:
            raise ConverterError(
                f"The images in {folder} differ in size; give --resize and --crop."
            )
        return {name: images.prepare(np.stack(opened))}

    return Data(len(paths), read, labels, str(folder), vary)


def _from_function(
    source: str, names: Sequence[str], find: Callable[[str, str], Callable[[], object]]
) -> Data:
    produced = find(source, "Data")()
    if hasattr(produced, "dataset") and hasattr(produced, "collate_fn"):
        return _from_loader(produced, source, names)
    if not isinstance(produced, Iterator):
        raise ConverterError(
            f"Data {source} must be a generator of dictionaries of arrays, or give a DataLoader."
        )
    chunks = []
    try:
        yielded = list(produced)
    except Exception as error:  # the user's generator may raise anything
        raise ConverterError(f"Data {source} failed: {root_line(error)}") from None
    for chunk in yielded:
        if not isinstance(chunk, Mapping) or any(name not in chunk for name in names):
            raise ConverterError(
                f"Data {source} must yield dictionaries with the inputs {', '.join(names)}."
            )
        chunks.append({str(key): np.asarray(value) for key, value in chunk.items()})
    if not chunks:
        raise ConverterError(f"Data {source} yields nothing.")
    try:
        arrays = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    except (KeyError, ValueError) as error:
        raise ConverterError(f"Data {source} yields arrays that differ: {error}.") from None
    return from_arrays({n: arrays[n] for n in (*names, "y") if n in arrays}, source, names)


def _from_loader(loader: Any, source: str, names: Sequence[str]) -> Data:
    """Read a torch DataLoader's dataset by its ``collate_fn``; order and batches are ours.

    Its examples are tuples of the inputs, with labels behind them or not, or dictionaries. Labels
    are read with the inputs; of classes, ``dataset.targets`` spares a pass over all examples, where
    it says the same of those that are looked at. What is changed at random follows from the numbers
    of the examples, and in training from that of the step.
    """
    dataset, collate = loader.dataset, loader.collate_fn

    def take(indices: np.ndarray, salt: int = 0) -> Arrays:
        try:
            every = [_seeded(partial(dataset.__getitem__, n), n, salt) for n in indices.tolist()]
            batch = _seeded(lambda: collate(every), int(indices[0]), salt)
        except Exception as error:  # the user's dataset may raise anything
            raise ConverterError(f"Data {source} failed: {root_line(error)}") from None
        if not isinstance(batch, Mapping):
            parts = batch if isinstance(batch, (tuple, list)) else [batch]
            batch = dict(zip([*names, "y"], parts))
        if any(name not in batch for name in names):
            raise ConverterError(f"Data {source} must give the inputs {', '.join(names)}.")
        return {str(name): np.asarray(value) for name, value in batch.items()}

    def lesson(indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
        found = take(indices, 0 if rng is None else int(rng.integers(1, 2**31)))
        return {name: found[name] for name in names}, found.get("y")

    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset)):
        raise ConverterError(f"Data {source} needs a dataset of examples by number, not a stream.")
    count = len(dataset)
    data = Data(
        count,
        lambda indices: lesson(indices, None)[0],
        None,
        source,
        lambda indices, rng: lesson(indices, rng)[0],
    )
    seen = take(np.arange(1)).get("y") if "y" not in names else None
    targets = getattr(dataset, "targets", None)
    if seen is None:
        return data if targets is None else data.labelled(np.asarray(targets))
    if not are_classes(seen, 1, source):
        return replace(data, lessons=lesson)

    def classes(picked: Iterable[int]) -> np.ndarray:
        return np.concatenate([take(np.array([number]))["y"] for number in picked])

    some = np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)
    labels = np.zeros(0) if targets is None else np.asarray(targets)
    if labels.shape != (count,) or not np.array_equal(labels[some], classes(some)):
        labels = classes(range(count))
    return replace(data.labelled(labels), lessons=lesson)


def _seeded(make: Callable[[], T], *numbers: int) -> T:
    """Call what may draw random numbers, so that it draws the same each time."""
    import torch

    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([]):
            seed = hash(numbers) % 2**31
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            return make()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
