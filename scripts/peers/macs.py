"""Multiply-accumulates of torch modules, and settings that bring a network to a share of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

BISECTIONS = 12
SMALL = 0.25  # of the MACs that may be left: a first layer of less stays whole, as is usual


def macs_of(model: nn.Module, example: torch.Tensor) -> int:
    """Count the multiply-accumulates of all convolutions and linear layers."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        total += weight.numel() * (output[0, 0].numel() if output.ndim > 2 else 1)

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return total


def first_conv(model: nn.Module) -> nn.Conv2d:
    """Give the first convolution."""
    return next(m for m in model.modules() if isinstance(m, nn.Conv2d))


def first_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Count the multiply-accumulates of the first convolution."""
    first = first_conv(model)
    return macs_of(first, torch.zeros(1, first.in_channels, *example.shape[2:]))


def first_is_small(model: nn.Module, example: torch.Tensor, share: float) -> bool:
    """Tell whether making the first convolution smaller would gain little."""
    return first_macs(model, example) < SMALL * share * macs_of(model, example)


def largest_setting(
    attempt: Callable[[float], nn.Module], model: nn.Module, example: torch.Tensor, share: float
) -> float:
    """Find the largest setting in 0..1 whose network has at most ``share`` of the MACs."""
    limit, low, high = share * macs_of(model, example), 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if macs_of(attempt(middle), example) > limit:
            high = middle
        else:
            low = middle
    return low
