"""Train what flatconv or another tool made of a network, all alike, and export it.

All networks go through here, whatever the environment of the tool that made them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from converter.graph import network as onnx_network
from converter.models.export import export
from converter.models.source import Source, examples, free_axes
from converter.training.losses import Recipe
from converter.training.train import Trained, train_with_fp32_fallback, tune

STUDENT, TUNED = "student.pt", "tuned.safetensors"


class Pruned(nn.Conv2d):
    """A convolution some of whose weights stay zero."""

    mask: torch.Tensor

    @classmethod
    def of(cls, conv: nn.Conv2d, mask: torch.Tensor) -> Pruned:
        """Copy a convolution; ``mask``, of its weight's shape, tells what is kept."""
        found = copy.deepcopy(conv)
        found.__class__ = cls
        found.register_buffer("mask", mask)
        return found  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve with the weights that are kept."""
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def plain(model: nn.Module) -> nn.Module:
    """Write pruned convolutions as what they are."""
    found = copy.deepcopy(model)
    for module in found.modules():
        if isinstance(module, Pruned):
            module.weight.data *= module.mask
            del module.mask
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    return found.eval()


def made(folder: Path) -> nn.Module:
    """Read the network of a folder, which is a pickle of our own."""
    model: nn.Module = torch.load(folder / STUDENT, weights_only=False)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def trained(folder: Path, source: Source, epochs: int) -> nn.Module:
    """Train the network of a folder; its weights are kept there, and found again.

    It is trained in bfloat16, or in float32 where it learns nothing so; the file tells which. A
    training that was stopped goes on.

    Args:
        folder: With the network, and ``figures.json``, which tells what it follows from.
        source: The original, and what is trained on.
        epochs: Passes over that.

    Raises:
        ConverterError: When it cannot be trained.
    """
    student, path = made(folder), folder / TUNED
    made_of = json.loads((folder / "figures.json").read_text())["made_of"]
    told = f"{made_of}, {epochs} epochs, {Path(__file__).read_text()}"
    key = hashlib.sha256(told.encode() + (folder / STUDENT).read_bytes()).hexdigest()
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made_of") == key:
                student.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                return student
    teacher, data = source.module, source.train
    assert teacher is not None and data is not None

    def attempt(recipe: Recipe) -> Trained:
        state = folder / f"{key}.{'bfloat16' if recipe.bfloat16 else 'float32'}.safetensors"
        return tune(student, teacher, data, recipe, state=state, resume=True)

    tuned = train_with_fp32_fallback(attempt, Recipe(epochs=epochs, bfloat16=True))
    weights = {name: tensor.contiguous() for name, tensor in tuned.model.state_dict().items()}
    precision = "bfloat16" if tuned.bfloat16 else "float32"
    save_file(weights, path, {"made_of": key, "precision": precision})
    for state in folder.glob(f"{key}.*"):
        state.unlink()
    return tuned.model


def trained_in(folder: Path) -> str:
    """Tell in which precision the network of a folder was trained.

    Raises:
        OSError: When it was not.
    """
    with safe_open(folder / TUNED, "pt") as file:
        return str(file.metadata()["precision"])


def write(model: nn.Module, source: Source, path: Path) -> None:
    """Export a network."""
    network = export(plain(model), examples(source, 0, 1), free_axes(source.inputs))
    onnx_network.save(network, path)
