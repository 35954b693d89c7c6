"""Sample, training and evaluation data, as dictionaries of arrays by input name."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import ConverterError, root_line
from converter.images import Images

Arrays = dict[str, np.ndarray]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Data:
    """Inputs that are read when needed.

    Attributes:
        count: Number of examples.
        read: Indices (n,) -> arrays (n, ...) by input name, ready for the network.
        labels: (count,) integers, or None.
        source: What the user named.
        vary: As ``read``, of examples changed at random by a generator; None where there is no
            way to change them that keeps what they show.
    """

    count: int
    read: Callable[[np.ndarray], Arrays]
    labels: np.ndarray | None
    source: str
    vary: Callable[[np.ndarray, np.random.Generator], Arrays] | None = None

    def augmented(self, indices: np.ndarray, rng: np.random.Generator) -> Arrays:
        """Read examples (n, ...), changed at random where there is a way to."""
        return self.read(indices) if self.vary is None else self.vary(indices, rng)

    def varied(self, seed: int) -> Data:
        """Change examples at random, the same way whenever the same are read together."""
        vary = self.vary
        if vary is None:
            return self

        def read(indices: np.ndarray) -> Arrays:
            return vary(indices, np.random.default_rng((seed, int(indices[0]))))

        return replace(self, read=read)

    def spans(self, size: int) -> Iterator[np.ndarray]:
        """Iterate over the indices of batches, in order; the last may have fewer than ``size``."""
        for start in range(0, self.count, size):
            yield np.arange(start, min(start + size, self.count))

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Iterate over (indices, arrays), in order."""
        for indices in self.spans(size):
            yield indices, self.read(indices)

    def sample(self, count: int, seed: int) -> Data:
        """Choose ``count`` examples at random, or all if there are fewer."""
        return self.parted(count, seed)[0]

    def parted(self, count: int, seed: int) -> tuple[Data, Data | None]:
        """Part off ``count`` examples at random; the second part is None where none is left."""
        if count >= self.count:
            return self, None
        order = np.random.default_rng(seed).permutation(self.count)
        return self.take(np.sort(order[:count])), self.take(order[count:])

    def filled(self, count: int) -> Data:
        """Repeat the examples until there are ``count``."""
        return self.take(np.arange(count) % self.count) if count > self.count else self

    def take(self, picked: np.ndarray) -> Data:
        """Restrict to the examples ``picked``."""
        labels = None if self.labels is None else self.labels[picked]
        read, vary = self.read, self.vary
        return replace(
            self,
            count=len(picked),
            labels=labels,
            read=lambda indices: read(picked[indices]),
            vary=None if vary is None else lambda indices, rng: vary(picked[indices], rng),
        )


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


def random_data(
    shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, np.dtype], count: int, seed: int
) -> Data:
    """Make ``count`` random examples: normal floats; zeros where the type is not a float.

    Args:
        shapes: By input name; the first axis is the batch's and not used.
        dtypes: By input name.
        count: Number of examples.
        seed: Of the numbers.
    """

    def read(indices: np.ndarray) -> Arrays:
        rows = [np.random.default_rng((seed, int(index))) for index in indices]
        return {
            name: np.stack(
                [
                    rng.standard_normal(tuple(shape[1:]))
                    if np.issubdtype(dtypes[name], np.floating)
                    else np.zeros(tuple(shape[1:]))
                    for rng in rows
                ]
            ).astype(dtypes[name])
            for name, shape in shapes.items()
        }

    return Data(count, read, None, "random numbers")


def conform(
    data: Data, shapes: Mapping[str, Sequence[int | None]], dtypes: Mapping[str, np.dtype]
) -> Data:
    """Check data against a network's inputs and cast it to their types.

    Args:
        data: What was read.
        shapes: By input name; None where a size is free. The first axis is the batch's.
        dtypes: By input name.

    Raises:
        ConverterError: When an input's shape does not fit.
    """
    first = data.read(np.arange(1))
    for name, shape in shapes.items():
        got = first[name].shape[1:]
        if len(got) != len(shape) - 1 or any(
            want not in (None, n) for want, n in zip(shape[1:], got)
        ):
            wanted = ",".join("?" if n is None else str(n) for n in shape[1:])
            raise ConverterError(
                f"Data {data.source} has examples of shape {','.join(map(str, got))} for input "
                f"{name!r}; the network takes {wanted}."
            )
    read, vary = data.read, data.vary

    def cast(arrays: Arrays) -> Arrays:
        if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays.values()):
            raise ConverterError(f"Data {data.source} holds NaN or infinite values.")
        return {name: array.astype(dtypes[name], copy=False) for name, array in arrays.items()}

    return replace(
        data,
        read=lambda indices: cast(read(indices)),
        vary=None if vary is None else lambda indices, rng: cast(vary(indices, rng)),
    )


def from_arrays(
    arrays: Mapping[str, np.ndarray], source: str, names: Sequence[str] | None = None
) -> Data:
    """Wrap arrays (N, ...) by input name; ``y``, if there and no input, is the labels.

    Args:
        arrays: By input name.
        source: Words that say what they are.
        names: The network's inputs; whatever is there if left out.

    Raises:
        ConverterError: When an input is missing or unknown, or the arrays do not fit together.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    labels = found.pop("y", None) if "y" not in (names or ()) else None
    names = list(found) if names is None else names
    if not found or set(found) != set(names):
        raise ConverterError(
            f"{source} must have the network's inputs {', '.join(names)}, not "
            f"{', '.join(sorted(found)) or 'none'}."
        )
    found = {name: found[name] for name in names}
    _check_arrays(found, source)
    count = len(found[names[0]])
    if labels is not None:
        labels = _check_labels(labels, count, source)
    return Data(count, lambda indices: {n: a[indices] for n, a in found.items()}, labels, source)


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
    _check_arrays(found, path)
    count = len(found[names[0]])
    if labels is not None:
        labels = _check_labels(labels, count, path)

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

    return Data(count, read, labels, str(path), vary if pictures == set(found) else None)


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

    Its examples are tuples of the inputs, with a class behind them or not, or dictionaries.
    ``dataset.targets`` spares reading every example for its class. What it changes at random
    follows from the number of the example, and in training from that of the step.
    """
    dataset, collate = loader.dataset, loader.collate_fn

    def take(indices: np.ndarray, salt: int = 0) -> Arrays:
        try:
            batch = collate([_seeded(dataset, int(index), salt) for index in indices])
        except Exception as error:  # the user's dataset may raise anything
            raise ConverterError(f"Data {source} failed: {root_line(error)}") from None
        if not isinstance(batch, Mapping):
            parts = batch if isinstance(batch, (tuple, list)) else [batch]
            batch = dict(zip([*names, "y"], parts))
        if any(name not in batch for name in names):
            raise ConverterError(f"Data {source} must give the inputs {', '.join(names)}.")
        return {str(name): np.asarray(value) for name, value in batch.items()}

    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset)):
        raise ConverterError(f"Data {source} needs a dataset of examples by number, not a stream.")
    count = len(dataset)
    first, labels = take(np.arange(1)), getattr(dataset, "targets", None)
    if "y" in first and "y" not in names and labels is None:
        labels = np.concatenate([take(np.arange(n, n + 1))["y"] for n in range(count)])
    if labels is not None:
        labels = _check_labels(np.asarray(labels), count, source)

    def read(indices: np.ndarray) -> Arrays:
        found = take(indices)
        return {name: found[name] for name in names}

    def vary(indices: np.ndarray, rng: np.random.Generator) -> Arrays:
        found = take(indices, int(rng.integers(1, 2**31)))
        return {name: found[name] for name in names}

    return Data(count, read, labels, source, vary)


def _seeded(dataset: Any, index: int, salt: int) -> Any:
    """Read an example of a dataset that may change it at random, the same way each time."""
    import torch

    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([]):
            seed = hash((index, salt)) % 2**31
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            return dataset[index]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _check_arrays(arrays: Mapping[str, np.ndarray], source: object) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ConverterError(f"Array {name!r} of {source} holds {array.dtype}, not numbers.")
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise ConverterError(f"{source} must hold the same number of examples, above 0, per input.")


def _check_labels(labels: np.ndarray, count: int, source: object) -> np.ndarray:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ConverterError(
            f"The labels y of {source} must be {count} integers, not {labels.dtype} "
            f"of shape {labels.shape}."
        )
    return labels
