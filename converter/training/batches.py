"""The training batches: the examples of each step, divided among the processes."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from converter.data.data import Batch, Data
from converter.errors import ConverterError
from converter.training.task import Recipe

MIN_BATCHES = 8  # per epoch; small data sets use smaller batches

# Inputs, labels or None, and the fraction of the process's share of the batch in this part.
Part = tuple[list[torch.Tensor], "torch.Tensor | None", float]


class Batches(Dataset[Any]):
    """The batches of all steps; the examples and the augmentation follow from the step's number."""

    def __init__(self, data: Data, recipe: Recipe, rank: int, size: int) -> None:
        """Divide every epoch into batches of equal size, and every batch among ``size`` processes.

        Raises:
            ConverterError: If a process would have no example of a batch.
        """
        self.data, self.recipe, self.rank, self.size = data, recipe, rank, size
        steps = min(math.ceil(data.count / recipe.batch_size), data.count // size)
        self.per_epoch = max(steps, min(MIN_BATCHES, data.count // size))
        if self.per_epoch < 1 or data.count // self.per_epoch < size:
            raise ConverterError(
                f"A batch has at least an example for each of {size} processes; give more data or "
                "a larger --train-batch."
            )
        self.first = 0

    def __len__(self) -> int:
        """Count the remaining steps."""
        return self.recipe.epochs * self.per_epoch - self.first

    def __getitem__(self, number: int) -> list[Part] | ConverterError:
        """Read the parts of a step.

        An error is returned, not raised: a worker process would wrap it in a traceback.
        """
        try:
            return self._parts(number)
        except ConverterError as error:
            return error

    def _parts(self, number: int) -> list[Part]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        epoch, batch = divmod(self.first + number, self.per_epoch)
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(self.data.count)
        indices = np.array_split(np.array_split(order, self.per_epoch)[batch], self.size)[self.rank]
        parts: list[Part] = []
        for part in np.array_split(indices, min(self.recipe.accumulate, len(indices))):
            rng = np.random.default_rng((self.recipe.seed, epoch, int(part[0])))
            inputs, labels = to_tensors(self.data.batch(part, rng))
            parts.append((inputs, labels, len(part) / len(indices)))
        return parts

    def read(self, first: int) -> Iterator[tuple[int, list[Part]]]:
        """Iterate over the steps from number ``first`` on.

        Raises:
            ConverterError: If a step cannot be read, or the system has no fork for ``--workers``.
        """
        self.first, workers = first, self.recipe.workers
        if workers and "fork" not in multiprocessing.get_all_start_methods():
            raise ConverterError("--workers needs a system that can fork; leave it out.")
        loader = DataLoader(
            self,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # keeps the loader from advancing the global one
        )
        for step, parts in enumerate(loader, first):
            if isinstance(parts, ConverterError):
                raise parts
            yield step, parts


def to_tensors(batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Convert inputs and labels (n, ...) to tensors; labels become int64 or float32."""
    feeds, labels = batch
    inputs = [torch.from_numpy(np.ascontiguousarray(feed)) for feed in feeds.values()]
    if labels is None:
        return inputs, None
    dtype = np.float32 if labels.dtype.kind == "f" else np.int64
    return inputs, torch.from_numpy(labels.astype(dtype))


def _unchanged(parts: object) -> object:
    return parts
