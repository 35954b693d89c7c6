"""``TrainingTask``, ``Recipe`` and ``Trained``: the input and the output of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from converter.data.data import Data
from converter.training.losses import Loss, distillation

# (teacher's outputs, student's outputs), all on the holdout examples -> whether training may stop.
StopWhen = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], bool]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the data.
        lr: Highest learning rate, of a tensor whose entries have the usual size. It is lowered if
            training makes the network worse.
        batch_size: Examples per step, in all processes together. Small data sets use fewer.
        accumulate: Number of parts in which each process computes its share of a batch.
        bfloat16: Compute activations in bfloat16 if the device supports it.
        int8: Simulate the rounding of int8.
        scaled_steps: Scale the learning rate of each tensor by the size of its entries.
        orthogonal: Train matrices with Muon.
        workers: Processes that read the data.
        seed: Seed of the order of the examples and of augmentation.
    """

    epochs: int
    lr: float = 1e-3
    batch_size: int = 128
    accumulate: int = 1
    bfloat16: bool = False
    int8: bool = False
    scaled_steps: bool = True
    orthogonal: bool = True
    workers: int = 0
    seed: int = 0


@dataclass(frozen=True)
class TrainingTask:
    """A student, its teacher, the data, and the loss.

    Attributes:
        student: The converted model; it is not changed.
        teacher: The original, in evaluation mode; it is not changed.
        data: Training inputs, in the order of the models' parameters.
        loss: Compares the outputs (or features) of both.
        features: Modules of both models whose outputs are compared instead of the models' outputs.
        stop_when: Ends training once it returns true on the holdout outputs, or None.
    """

    student: nn.Module
    teacher: nn.Module
    data: Data
    loss: Loss = distillation
    features: Sequence[str] = ()
    stop_when: StopWhen | None = None


@dataclass(frozen=True)
class Trained:
    """A network after training.

    Attributes:
        model: The trained model, in evaluation mode.
        epochs: Passes over the data that were made.
        first_loss: Loss on the holdout examples before training.
        best_loss: Loss on the holdout examples of the weights in ``model``.
        holdout: Number of holdout examples.
        accepted: Whether ``stop_when`` accepts the weights in ``model``; None without it.
        bfloat16: Whether activations were computed in bfloat16.
    """

    model: nn.Module
    epochs: float
    first_loss: float
    best_loss: float
    holdout: int
    accepted: bool | None = None
    bfloat16: bool = False
