"""The CIFAR-10 ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2), option A shortcuts.

Parameter names follow the widely used checkpoints of these networks (``conv1.weight``,
``layer1.0.conv1.weight``, ..., ``linear.weight``). Input: RGB / 255, normalised with mean
(0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225), shape (N, 3, 32, 32).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Shortcut(nn.Module):
    """Option A: every second row and column, zeros for the new channels, a half on each side."""

    def __init__(self, new_channels: int) -> None:
        """Pad by ``new_channels`` channels in all."""
        super().__init__()
        self.pad = new_channels // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C + new_channels, H / 2, W / 2)."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """conv, BatchNorm, ReLU, conv, BatchNorm, plus shortcut, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build a block from ``inputs`` to ``outputs`` channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(outputs - inputs) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet of 6 n + 2 layers."""

    def __init__(self, n: int, classes: int = 10) -> None:
        """Build three groups of ``n`` blocks with 16, 32 and 64 channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._group(16, 16, n, 1)
        self.layer2 = self._group(16, 32, n, 2)
        self.layer3 = self._group(32, 64, n, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _group(inputs: int, outputs: int, n: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(outputs, outputs, 1) for _ in range(n - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, 32, 32) to logits (N, classes)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        logits: torch.Tensor = self.linear(y.mean(dim=(2, 3)))
        return logits


def resnet20(classes: int = 10) -> ResNet:
    """Build ResNet-20 (40.5 M MACs at 32x32)."""
    return ResNet(3, classes)


def resnet32(classes: int = 10) -> ResNet:
    """Build ResNet-32 (68.7 M MACs at 32x32)."""
    return ResNet(5, classes)


def resnet44(classes: int = 10) -> ResNet:
    """Build ResNet-44 (97.0 M MACs at 32x32)."""
    return ResNet(7, classes)


def resnet56(classes: int = 10) -> ResNet:
    """Build ResNet-56 (125.8 M MACs at 32x32)."""
    return ResNet(9, classes)


def resnet110(classes: int = 10) -> ResNet:
    """Build ResNet-110 (252.9 M MACs at 32x32)."""
    return ResNet(18, classes)
