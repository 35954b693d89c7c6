"""Convolutions with weights that stay zero, and the files that hold networks of other tools."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

MODULE = "student.pt"  # a pickle of our own


class Pruned(nn.Conv2d):
    """A convolution with a mask of weights that stay zero, also in training."""

    mask: torch.Tensor

    @classmethod
    def of(cls, conv: nn.Conv2d, mask: torch.Tensor) -> Pruned:
        """Copy a convolution; ``mask`` has its weight's shape, and is true for weights to keep."""
        pruned = copy.deepcopy(conv)
        pruned.__class__ = cls
        pruned.register_buffer("mask", mask)
        assert isinstance(pruned, cls)
        return pruned

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve with the weights that are kept."""
        y: torch.Tensor = self._conv_forward(x, self.weight * self.mask, self.bias)
        return y


def without_masks(model: nn.Module) -> nn.Module:
    """Turn pruned convolutions into plain ones, their zeros stored."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Pruned):
            module.weight.data *= module.mask
            del module.mask
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    return model.eval()


def load(folder: Path) -> nn.Module:
    """Read the network of a folder."""
    model: nn.Module = torch.load(folder / MODULE, weights_only=False)
    return model.requires_grad_(True).eval()
