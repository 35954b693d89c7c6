"""The holdout examples: choosing them, and evaluating a student on them."""

from __future__ import annotations

import math

import numpy as np
import torch

from converter.data.data import Data
from converter.errors import ConverterError
from converter.processes import ProcessGroup
from converter.training.batches import to_tensors
from converter.training.pair import ModelPair
from converter.training.task import TrainingTask

HOLDOUT_SHARE, MAX_HOLDOUT, MAX_HOLDOUT_BYTES = 0.1, 2048, 2**28


def split_holdout(data: Data, example_bytes: int, seed: int) -> tuple[Data, Data]:
    """Choose holdout examples at random.

    They are augmented once, with a fixed seed: the original may have memorised the images
    themselves, and its outputs for them would then say little about other images.

    Args:
        data: All examples.
        example_bytes: Memory that one holdout example and its outputs take.
        seed: Seed of the choice and of the augmentation.

    Returns:
        The holdout examples and the remaining ones.

    Raises:
        ConverterError: If too few examples remain.
    """
    limit = min(MAX_HOLDOUT, max(MAX_HOLDOUT_BYTES // max(example_bytes, 1), 1))
    count = min(max(int(HOLDOUT_SHARE * data.count), 1), limit)
    if data.count - count < 2:
        raise ConverterError(f"Data {data.source} has {data.count} examples; too few to train on.")
    order = np.random.default_rng(seed).permutation(data.count)
    holdout, rest = data.take(np.sort(order[:count])), data.take(np.sort(order[count:]))
    return holdout.augmented(seed), rest


@torch.no_grad()
def evaluate_holdout(
    pair: ModelPair, task: TrainingTask, holdout: Data, batch_size: int, group: ProcessGroup
) -> tuple[float, bool]:
    """Evaluate the student's present weights on the holdout examples.

    Args:
        pair: Student and teacher.
        task: Gives the loss and ``stop_when``.
        holdout: The holdout examples.
        batch_size: Approximate number of examples per call.
        group: The processes; all evaluate all examples and agree on the result.

    Returns:
        The mean loss, and whether ``stop_when`` accepts the outputs.
    """
    total, targets, outputs = 0.0, list[list[np.ndarray]](), list[list[np.ndarray]]()
    # Batches have about the same size: with a single example some losses are not defined.
    parts = max(min(math.ceil(holdout.count / batch_size), holdout.count // 2), 1)
    for indices in np.array_split(np.arange(holdout.count), parts):
        inputs, labels = pair.to_device(*to_tensors(holdout.batch(indices)))
        output, target = pair.student(inputs), pair.teacher(inputs)
        total += float(task.loss(output, target, labels)) * len(indices)
        if task.stop_when is not None:
            targets.append([_to_numpy(tensor) for tensor in target])
            outputs.append([_to_numpy(tensor) for tensor in output])
    loss = group.all_reduce_mean(total / holdout.count)
    if task.stop_when is None or not math.isfinite(loss):
        return loss, False
    before, after = (
        [np.concatenate(output) for output in zip(*batches)] for batches in (targets, outputs)
    )
    return loss, group.all_reduce_mean(task.stop_when(before, after)) == 1


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return np.atleast_1d(tensor.float().cpu().numpy())
