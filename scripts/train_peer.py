"""Train what another tool made of a network as flatconv trains its own, and export it.

All networks go through here, whatever the environment of the tool that made them.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from converter.networks import onnx_network
from converter.networks.source import Source, examples, free_axes
from converter.networks.torch_export import export
from converter.tuning.lesson import Recipe
from converter.tuning.tune import tune

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
    """Read the network that ``build_peer.py`` wrote, which is a pickle of our own."""
    model: nn.Module = torch.load(folder / STUDENT, weights_only=False)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def trained(folder: Path, source: Source, epochs: int, device: str, made_of: str) -> nn.Module:
    """Train the network of a folder; its weights are kept there, and found again.

    Components that nearly cancel, as CP decompositions have, may learn nothing in bfloat16: then it
    is trained in float32.

    Args:
        folder: Where ``build_peer.py`` wrote to.
        source: The original, and what is trained on.
        epochs: Passes over that.
        device: Of torch.
        made_of: Names what the network follows from; weights of another are not believed.
    """
    student, path = made(folder), folder / TUNED
    key = f"{made_of}, {epochs} epochs"
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made_of") == key:
                student.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                return student
    assert source.module is not None and source.train is not None
    for bfloat16 in (True, False):
        recipe = Recipe(epochs=epochs, bfloat16=bfloat16)
        tuned = tune(student, source.module, source.train, recipe, device=device)
        if tuned.best_loss < tuned.first_loss:
            break
    weights = {name: tensor.contiguous() for name, tensor in tuned.model.state_dict().items()}
    save_file(weights, path, {"made_of": key})
    return tuned.model


def write(model: nn.Module, source: Source, path: Path) -> None:
    """Export a network."""
    network = export(plain(model), examples(source, 0, 1), free_axes(source.inputs))
    onnx_network.save(network, path)
