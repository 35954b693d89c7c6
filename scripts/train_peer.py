"""Train what flatconv or another tool made of a network, all alike, and export it.

``scripts/bench_peers.py`` calls this, whatever the environment of the tool was. Where another
machine trains faster, run this there on copies of the folders under ``runs/peers``, and bring back
``tuned.safetensors``: it is found again.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import inspect
import json
import sys
from pathlib import Path

from bench_results import ROOT

sys.path.insert(0, str(ROOT))

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import converter
from converter.networks import onnx_network
from converter.networks.source import Source, examples, free_axes
from converter.networks.torch_export import export
from converter.pipeline import open_source
from converter.tuning.lesson import Recipe
from converter.tuning.tune import tune

STUDENT, TUNED, EPOCHS = "student.pt", "tuned.safetensors", 3


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
    model: nn.Module = torch.load(folder / STUDENT, weights_only=False, map_location="cpu")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def trained(folder: Path, source: Source, epochs: int, device: str) -> nn.Module:
    """Train the network of a folder; its weights are kept there, and found again.

    Components that nearly cancel, as CP decompositions have, may learn nothing in bfloat16: then it
    is trained in float32. A training that was stopped goes on.

    Args:
        folder: With the network, and ``figures.json``, which tells what it follows from.
        source: The original, and what is trained on.
        epochs: Passes over that.
        device: Of torch.

    Raises:
        ConverterError: When it cannot be trained.
    """
    student, path = made(folder), folder / TUNED
    made_of = json.loads((folder / "figures.json").read_text())["made_of"]
    key = f"{made_of}, {epochs} epochs, {inspect.getsource(trained)}"
    key = hashlib.sha256(key.encode()).hexdigest()
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made_of") == key:
                student.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                return student
    assert source.module is not None and source.train is not None
    for bfloat16 in (True, False):
        recipe = Recipe(epochs=epochs, bfloat16=bfloat16)
        state = folder / f"{key}.{'bfloat16' if bfloat16 else 'float32'}.safetensors"
        tuned = tune(
            student, source.module, source.train, recipe, device=device, state=state, resume=True
        )  # fmt: skip
        if tuned.best_loss < tuned.first_loss:
            break
    weights = {name: tensor.contiguous() for name, tensor in tuned.model.state_dict().items()}
    told = {"made_of": key, "first_loss": tuned.first_loss, "best_loss": tuned.best_loss}
    told |= {"bfloat16": bfloat16, "device": device, "torch": torch.__version__}
    save_file(weights, path, {name: str(value) for name, value in told.items()})
    return tuned.model


def write(model: nn.Module, source: Source, path: Path) -> None:
    """Export a network."""
    network = export(plain(model), examples(source, 0, 1), free_axes(source.inputs))
    onnx_network.save(network, path)


def main() -> int:
    """Train the network of one folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True, help="module:factory of the original")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--train", required=True, help=".npz of images and labels")
    parser.add_argument("--mean", help="of the images, by channel")
    parser.add_argument("--std")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    config = converter.ConvertConfig(
        checkpoint=options.checkpoint, train=options.train, calib=options.train,
        mean=options.mean, std=options.std,
    )  # fmt: skip
    source = open_source(options.model, None, config, None)
    trained(options.folder, source, options.epochs, options.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
