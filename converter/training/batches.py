"""The examples of each step: which, in what order, changed how, read by whom."""

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
from converter.training.losses import Recipe

HELD_OUT, MAX_HOLDOUT, HELD_BYTES = 0.1, 2048, 2**28
FEWEST_BATCHES = 8  # of an epoch, smaller ones where there is little data

# Inputs, labels or None, and the share of the batch.
Part = tuple[list[torch.Tensor], "torch.Tensor | None", float]


def split_off(data: Data, example_bytes: int, seed: int) -> tuple[Data, Data]:
    """Hold a part of the data out; the rest is trained on.

    Args:
        data: All of it.
        example_bytes: What one held-out example takes with its outputs.
        seed: Of the choice.

    Raises:
        ConverterError: When too little is left.
    """
    most = min(MAX_HOLDOUT, max(HELD_BYTES // max(example_bytes, 1), 1))
    count = min(max(int(HELD_OUT * data.count), 1), most)
    if data.count - count < 2:
        raise ConverterError(f"Data {data.source} has {data.count} examples; too few to train on.")
    order = np.random.default_rng(seed).permutation(data.count)
    return data.take(np.sort(order[:count])), data.take(np.sort(order[count:]))


class Batches(Dataset[Any]):
    """The batches of all steps, each read and augmented by what its number says."""

    def __init__(self, data: Data, recipe: Recipe, rank: int, processes: int) -> None:
        """Divide every epoch into batches of the same size, and every batch among processes.

        Raises:
            ConverterError: When a process would have no example of a batch.
        """
        self.data, self.recipe, self.rank, self.processes = data, recipe, rank, processes
        fewest = min(FEWEST_BATCHES, data.count // processes)
        steps = min(math.ceil(data.count / recipe.batch_size), data.count // processes)
        self.per_epoch = max(steps, fewest)
        if self.per_epoch < 1 or data.count // self.per_epoch < processes:
            raise ConverterError(
                f"A batch has at least an example for each of {processes} processes; give more "
                "data or a larger --train-batch."
            )
        self.first = 0

    def __len__(self) -> int:
        """Count the steps that are left."""
        return self.recipe.epochs * self.per_epoch - self.first

    def __getitem__(self, number: int) -> list[Part] | ConverterError:
        """Read the parts of a step; what is wrong with them is given, not raised.

        A worker process would wrap it in a trace of its own.
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
        mine = np.array_split(np.array_split(order, self.per_epoch)[batch], self.processes)
        own = mine[self.rank]
        parts: list[Part] = []
        for part in np.array_split(own, min(self.recipe.accumulate, len(own))):
            rng = np.random.default_rng((self.recipe.seed, epoch, int(part[0])))
            inputs, labels = tensors(self.data.batch(part, rng))
            parts.append((inputs, labels, len(part) / len(own)))
        return parts

    def read(self, first: int) -> Iterator[tuple[int, list[Part]]]:
        """Iterate over the steps from number ``first`` on.

        Raises:
            ConverterError: When there can be no other processes to read, or a step cannot be read.
        """
        self.first, workers = first, self.recipe.workers
        if workers and "fork" not in multiprocessing.get_all_start_methods():
            raise ConverterError("--workers needs a system that can fork; leave it out.")
        loader = DataLoader(
            self,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # it draws a number, which is not to be the global one's
        )
        for step, parts in enumerate(loader, first):
            if isinstance(parts, ConverterError):
                raise parts
            yield step, parts


def tensors(lesson: Batch) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Give inputs and labels (n, ...) as tensors, labels as int64 or float32."""
    feeds, labels = lesson
    inputs = [torch.from_numpy(np.ascontiguousarray(feed)) for feed in feeds.values()]
    if labels is None:
        return inputs, None
    kind = np.float32 if labels.dtype.kind == "f" else np.int64
    return inputs, torch.from_numpy(labels.astype(kind))


def _as_it_is(parts: object) -> object:
    return parts
