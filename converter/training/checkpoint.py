"""Where a training stands: arrays in one safetensors file, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from converter.cache import atomic_write, digest

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class State:
    """Where a training stands.

    All that is random in a step follows from its number, so that nothing else need be kept.

    Attributes:
        step: How many steps were taken.
        weights: Of the model, by name.
        average: Their moving average, by name.
        best: The best average so far, by name.
        moments: Of the optimiser, by name.
        best_loss: What ``best`` loses on the held-out part.
        first_loss: What the network lost there before.
        done: Whether ``best`` is enough.
        share: Of the learning rate that did no harm.
    """

    step: int
    weights: Weights
    average: Weights
    best: Weights
    moments: Weights
    best_loss: float
    first_loss: float
    done: bool = False
    share: float = 1.0

    def save(self, path: Path) -> None:
        """Write the state; a folder that cannot be written keeps nothing."""
        groups = {
            "weights": self.weights,
            "average": self.average,
            "best": self.best,
            "moments": self.moments,
        }
        tensors = {
            f"{group}/{name}": tensor.detach().cpu().clone().contiguous()
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        named = ("best_loss", "first_loss", "share")
        numbers = {name: float(getattr(self, name)) for name in named}
        metadata = {"step": str(self.step), "done": str(self.done)}
        metadata |= {name: number.hex() for name, number in numbers.items()}
        metadata["sum"] = _sum(tensors, metadata)
        with contextlib.suppress(OSError, SafetensorError), atomic_write(path) as scratch:
            save_file(tensors, scratch, metadata)


def read_checkpoint(path: Path, like: Mapping[str, torch.Tensor]) -> State | None:
    """Read what ``State.save`` wrote; None where nothing is there that fits ``like``."""
    try:
        groups: dict[str, Weights] = {n: {} for n in ("weights", "average", "best", "moments")}
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata.pop("sum") != _sum(tensors, metadata):
            return None
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        numbers = {n: float.fromhex(metadata[n]) for n in ("best_loss", "first_loss", "share")}
        found = State(
            int(metadata["step"]),
            **groups,
            best_loss=numbers["best_loss"],
            first_loss=numbers["first_loss"],
            share=numbers["share"],
            done=metadata["done"] == "True",
        )
    except Exception:  # whatever is wrong with it, the remedy is to begin anew
        return None
    for group in (found.weights, found.average, found.best):
        if {n: t.shape for n, t in group.items()} != {n: t.shape for n, t in like.items()}:
            return None
    return found


def _sum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Sum up what a state holds, since the format would not notice a byte that has changed."""
    return digest(
        [[name, tensors[name].numpy()] for name in sorted(tensors)], sorted(metadata.items())
    )
