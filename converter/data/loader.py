"""The dataset of a torch DataLoader as ``Data``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from converter.data.data import Arrays, Batch, Data
from converter.data.labels import are_classes, as_classes
from converter.errors import ConverterError, root_line

T = TypeVar("T")
CHECKED_TARGETS = 8  # examples whose labels are compared with ``dataset.targets``


def is_loader(values: object) -> bool:
    """Whether an object is a torch DataLoader, or has its ``dataset`` and ``collate_fn``."""
    return hasattr(values, "dataset") and hasattr(values, "collate_fn")


def from_loader(loader: Any, source: str, names: Sequence[str]) -> Data:
    """Read a torch DataLoader's dataset by index, with its ``collate_fn``.

    The loader's own order and batch size are not used. Examples are tuples of the inputs, with or
    without labels, or dictionaries. If ``dataset.targets`` holds the classes of the examples that
    are compared, it saves a pass over all examples. Random transforms are seeded by the index of
    the example, in training also by the step.

    Args:
        loader: The DataLoader; its dataset has a length.
        source: A description for messages.
        names: The network's inputs.

    Raises:
        ConverterError: When there are no examples, or they cannot be read.
    """
    dataset, collate = loader.dataset, loader.collate_fn

    def load(indices: np.ndarray, salt: int = 0) -> Arrays:
        try:
            examples = [_seeded(partial(dataset.__getitem__, n), n, salt) for n in indices.tolist()]
            batch = _seeded(lambda: collate(examples), int(indices[0]), salt)
        except Exception as error:  # the user's dataset may raise anything
            raise ConverterError(f"Data {source} failed: {root_line(error)}") from None
        if not isinstance(batch, Mapping):
            parts = batch if isinstance(batch, (tuple, list)) else [batch]
            batch = dict(zip([*names, "y"], parts))
        if any(name not in batch for name in names):
            raise ConverterError(f"Data {source} must give the inputs {', '.join(names)}.")
        return {str(name): np.asarray(value) for name, value in batch.items()}

    def load_batch(indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
        arrays = load(indices, 0 if rng is None else int(rng.integers(1, 2**31)))
        return {name: arrays[name] for name in names}, arrays.get("y")

    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ConverterError(f"Data {source} needs a dataset of examples by number, not a stream.")
    count = len(dataset)
    if not count or (hasattr(loader, "__len__") and not len(loader)):
        raise ConverterError(f"Data {source} yields nothing; give a loader with examples.")
    data = Data(
        count,
        lambda indices: load_batch(indices, None)[0],
        None,
        source,
        lambda indices, rng: load_batch(indices, rng)[0],
    )
    first_label = load(np.arange(1)).get("y") if "y" not in names else None
    targets = getattr(dataset, "targets", None)
    if first_label is None:
        return data if targets is None else data.labelled(np.asarray(targets))
    if not are_classes(first_label, 1, source) and as_classes(first_label) is None:
        return replace(data, load_batch=load_batch)

    def classes(indices: Iterable[int]) -> np.ndarray:
        return np.concatenate([load(np.array([index]))["y"] for index in indices])

    compared = np.linspace(0, count - 1, min(count, CHECKED_TARGETS)).astype(int)
    labels = np.zeros(0) if targets is None else np.asarray(targets)
    if labels.shape != (count,) or not np.array_equal(labels[compared], classes(compared)):
        labels = classes(range(count))
    return replace(data.labelled(labels), load_batch=load_batch)


def _seeded(make: Callable[[], T], *numbers: int) -> T:
    """Call a function that may draw random numbers, from generators seeded by ``numbers``."""
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
