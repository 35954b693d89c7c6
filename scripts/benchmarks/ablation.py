"""Parts of flattened layers, and of their training, left out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from scripts.benchmarks.distillation import Recipe

CONVS, STEPS = ("conv1", "conv2", "conv3"), ("lateral", "vertical", "horizontal")


def without_direction(direction: str, model: nn.Module) -> nn.Module:
    """Leave one direction out of every flattened layer.

    Without the lateral one, term r takes channel r modulo I.
    """
    model = copy.deepcopy(model)
    for name in CONVS:
        chain: Any = model.get_submodule(name)
        if direction == "lateral":
            R, I = chain[0].weight.shape[:2]
            selection = torch.eye(I)[torch.arange(R) % I].reshape(R, I, 1, 1)
            chain[0].weight = nn.Parameter(selection, requires_grad=False)
        else:
            chain[STEPS.index(direction)] = nn.Identity()
    return model


def unbalanced(model: nn.Module) -> nn.Module:
    """Normalize all filters but those of the last step, as CP decompositions usually come."""
    model = copy.deepcopy(model)
    for name in CONVS:
        chain: Any = model.get_submodule(name)
        *head, last = chain
        with torch.no_grad():
            for step in head:
                norms = step.weight.flatten(1).norm(dim=1)
                step.weight /= norms.reshape(-1, 1, 1, 1)
                last.weight *= norms.reshape(1, -1, 1, 1)
    return model


def unchanged(model: nn.Module) -> nn.Module:
    """Leave nothing out."""
    return model


# Ending of the row's name -> change of the model, how it is trained
VARIANTS: dict[str, tuple[Callable[[nn.Module], nn.Module], Recipe]] = {
    **{
        f" without its {direction} filters": (partial(without_direction, direction), Recipe(1))
        for direction in STEPS
    },
    ", factors not balanced": (unbalanced, Recipe(1)),
    ", AdamW for matrices, too": (unchanged, Recipe(1, orthogonal=False)),
    ", one learning rate": (unchanged, Recipe(1, scaled_steps=False)),
    ", neither": (unbalanced, Recipe(1, scaled_steps=False)),
    ", neither, AdamW for matrices, too": (
        unbalanced,
        Recipe(1, scaled_steps=False, orthogonal=False),
    ),
}
