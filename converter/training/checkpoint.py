"""Checkpoints of a training: one safetensors file each, written as a whole or not at all."""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from converter.cache import atomic_write, digest, entry_path
from converter.models.factory import find_callable
from converter.training.task import TrainingTask

Weights = dict[str, torch.Tensor]
GROUPS, NUMBERS = ("weights", "average", "best", "moments"), ("best_loss", "first_loss", "lr_scale")
FOLDER, MAX_AGE_S = "tuning", 7 * 24 * 3600.0


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a number of steps.

    Everything random in a step follows from the step's number, so no generator is saved.

    Attributes:
        step: Number of steps done.
        weights: Weights of the model, by name.
        average: Their moving average, by name.
        best: The average with the lowest loss so far, by name.
        moments: State of the optimizers, by name.
        best_loss: Loss of ``best`` on the holdout examples.
        first_loss: Loss on the holdout examples before training.
        accepted: Whether ``stop_when`` accepts ``best``.
        lr_scale: Factor by which the learning rate was lowered.
    """

    step: int
    weights: Weights
    average: Weights
    best: Weights
    moments: Weights
    best_loss: float
    first_loss: float
    accepted: bool = False
    lr_scale: float = 1.0

    def save(self, path: Path) -> None:
        """Write the checkpoint; if the file cannot be written, nothing is saved or raised."""
        tensors = {
            f"{group}/{name}": tensor.detach().cpu().clone().contiguous()
            for group in GROUPS
            for name, tensor in getattr(self, group).items()
        }
        metadata = {"step": str(self.step), "accepted": str(self.accepted)}
        metadata |= {name: float(getattr(self, name)).hex() for name in NUMBERS}
        metadata["digest"] = _digest(tensors, metadata)
        with contextlib.suppress(OSError, SafetensorError), atomic_write(path) as scratch:
            save_file(tensors, scratch, metadata)


def read_checkpoint(path: Path, like: Mapping[str, torch.Tensor]) -> Checkpoint | None:
    """Read a checkpoint that ``Checkpoint.save`` wrote.

    Args:
        path: The file.
        like: Weights of the model that is trained, by name.

    Returns:
        The checkpoint; None if there is none, or it is damaged or of another model.
    """
    try:
        groups: dict[str, Weights] = {name: {} for name in GROUPS}
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata.pop("digest") != _digest(tensors, metadata):
            return None
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        best_loss, first_loss, lr_scale = (float.fromhex(metadata[name]) for name in NUMBERS)
        step, accepted = int(metadata["step"]), metadata["accepted"] == "True"
    except Exception:  # with a damaged file, training starts from the beginning
        return None
    shapes = {name: tensor.shape for name, tensor in like.items()}
    for group in ("weights", "average", "best"):
        if {name: tensor.shape for name, tensor in groups[group].items()} != shapes:
            return None
    weights, average, best, moments = groups.values()
    return Checkpoint(
        step, weights, average, best, moments, best_loss, first_loss, accepted, lr_scale
    )


def checkpoint_path(folder: Path | None, task: TrainingTask, *settings: object) -> Path | None:
    """Name a training's checkpoint by everything the training depends on; delete old checkpoints.

    Args:
        folder: The cache, or None.
        task: What is trained.
        settings: Further values that the training depends on, in nested tuples and lists.

    Returns:
        The path, whether or not the file exists; None without a cache.
    """
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        for path in (folder / FOLDER).rglob("*.safetensors"):
            if time.time() - path.stat().st_mtime > MAX_AGE_S:
                path.unlink()
    data, models = task.data, (task.student, task.teacher)
    feeds, labels = data.batch(np.arange(min(data.count, 4)))
    key = digest(
        [tensor.detach().cpu().numpy() for m in models for tensor in m.state_dict().values()],
        list(feeds.values()),
        labels is None or [labels],
        data.source,
        data.count,
        [] if data.labels is None else [data.labels],
        data.augment is None,
        *settings,
        torch.__version__,
    )
    return entry_path(folder / FOLDER, key, "safetensors")


def loss_source(text: str) -> str:
    """Return the source code of ``module:function``, or of its module if it is no function."""
    function = find_callable(text, "--loss")
    with contextlib.suppress(TypeError, OSError):
        return inspect.getsource(function)
    return inspect.getsource(sys.modules[text.partition(":")[0]])


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Digest a checkpoint, since safetensors does not notice a changed byte."""
    return digest(
        [[name, tensors[name].numpy()] for name in sorted(tensors)], sorted(metadata.items())
    )
