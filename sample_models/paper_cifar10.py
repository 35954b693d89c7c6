"""The kind of network flattened by Jin, Dundar and Culurciello (arXiv 1412.5474), for CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """Per-channel normalisation of 0..1 images, kept inside the network."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        """Hold mean and standard deviation of CIFAR-10's training images."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` of shape (N, 3, H, W)."""
        return (x - self.mean) / self.std


def build(channels: tuple[int, int, int] = (96, 128, 256), classes: int = 10) -> nn.Sequential:
    """Build the network: three times 5x5 convolution, BatchNorm, ReLU, 2x2 max pooling; linear.

    Input: RGB images of shape (N, 3, 32, 32) in 0..1. Output: logits (N, classes).
    """
    layers: dict[str, nn.Module] = {"normalize": Normalize()}
    for number, (inputs, outputs) in enumerate(zip((3, *channels), channels), start=1):
        layers |= {
            f"conv{number}": nn.Conv2d(inputs, outputs, 5, padding=2, bias=False),
            f"bn{number}": nn.BatchNorm2d(outputs),
            f"relu{number}": nn.ReLU(),
            f"pool{number}": nn.MaxPool2d(2),
        }
    layers |= {
        "flatten": nn.Flatten(),
        "dropout": nn.Dropout(0.3),
        "linear": nn.Linear(channels[-1] * 4 * 4, classes),
    }
    return nn.Sequential(OrderedDict(layers))
