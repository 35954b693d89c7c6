"""The optimizers: Muon for matrices, AdamW for all other weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from converter.training.checkpoint import Weights
from converter.training.task import Recipe

MOMENTUM = 0.95
# Coefficients of x, x^3 and x^5, and the number of Newton-Schulz iterations (Jordan 2024).
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
ADAM_RMS = 0.2  # root mean square of AdamW's steps, in units of the learning rate
# Limits of the smaller side of a matrix for Muon, whose cost grows with the square of that side.
MIN_SIDE, MAX_SIDE = 8, 2048
MAX_SCALE = 8.0  # of a tensor's learning rate; the smallest scale is its inverse
TINY = 1e-7


class Optimizers:
    """The optimizers of a model.

    Muon's steps are scaled to the size of AdamW's, so that both use one learning rate (Liu et al.,
    arXiv 2502.16982, section 2.2).
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        """Divide the trainable parameters of ``model`` between both optimizers."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        scales = _scales(parameters) if recipe.scaled_steps else [1.0] * len(parameters)
        matrices, others = list[dict[str, Any]](), list[dict[str, Any]]()
        for parameter, scale in zip(parameters, scales):
            groups = matrices if recipe.orthogonal and _is_matrix(parameter) else others
            groups.append({"params": [parameter], "scale": scale})
        self._optimizers = list[torch.optim.Optimizer]()
        if matrices:
            self._optimizers.append(Muon(matrices))
        if others:
            self._optimizers.append(torch.optim.AdamW(others, weight_decay=0.0))

    def step(self, rate: float) -> None:
        """Take a step; ``rate`` is the learning rate before it is scaled for each tensor."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()

    def reset(self) -> None:
        """Clear the momentum and the moments."""
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def moments(self) -> Weights:
        """Return the state tensors, named optimizer/parameter/tensor."""
        return {
            f"{kind}/{number}/{name}": tensor
            for kind, optimizer in enumerate(self._optimizers)
            for number, tensors in optimizer.state_dict()["state"].items()
            for name, tensor in tensors.items()
        }

    def restore(self, moments: Weights) -> None:
        """Load the result of ``moments`` of a model with the same parameters."""
        states: list[dict[int, Weights]] = [{} for _ in self._optimizers]
        for key, tensor in moments.items():
            kind, number, name = key.split("/")
            states[int(kind)].setdefault(int(number), {})[name] = tensor
        for optimizer, state in zip(self._optimizers, states):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024).

    It steps along the orthogonal factor of Nesterov's momentum, so that directions with small
    gradients are learned as quickly as the others. Kernels are flattened to (O, I * Kh * Kw).
    ``torch.optim.Muon`` takes 2-D tensors only and iterates in bfloat16, which is tens of times
    slower on CPUs without bfloat16 instructions.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        """Make the optimizer of parameter groups of one tensor each."""
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            (parameter,) = group["params"]
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"]
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            ahead = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)  # (O, I * Kh * Kw)
            length = group["lr"] * ADAM_RMS * math.sqrt(max(ahead.shape))
            parameter.sub_(orthogonal(ahead).reshape(parameter.shape), alpha=length)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Approximate ``U V^T`` of a matrix ``U S V^T`` by the Newton-Schulz iteration (Jordan 2024).

    Each iteration multiplies by a polynomial of the Gram matrix, so only that is iterated on.

    Args:
        matrix: (n, m), in float32 or float64; zeros give zeros.

    Returns:
        (n, m), with singular values between 0.6 and 1.3. Singular values below 1/500 of the norm of
        ``matrix`` give smaller ones.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + TINY)
    gram = wide @ wide.T
    a, b, c = QUINTIC
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = identity
    for _ in range(ITERATIONS):
        step = a * identity + b * gram + c * gram @ gram
        factor, gram = step @ factor, step @ gram @ step
    result: torch.Tensor = factor @ wide
    return result if result.shape == matrix.shape else result.T


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Tell whether Muon trains a tensor."""
    return parameter.ndim > 1 and MIN_SIDE <= min(parameter.flatten(1).shape) <= MAX_SIDE


def _scales(parameters: Sequence[torch.Tensor]) -> list[float]:
    """Return a factor for the learning rate of each tensor: the relative size of its entries.

    The entries of a 1-D filter are several times larger than those of the 1x1 convolutions beside
    it. At one learning rate, the convolutions would diverge before the filter learns.
    """
    sizes = [float(p.detach().square().mean().sqrt()) if p.ndim > 1 else 0.0 for p in parameters]
    logs = [math.log(size) for size in sizes if size > 0]
    typical = math.exp(sum(logs) / max(len(logs), 1))
    return [min(max(size / typical, 1 / MAX_SCALE), MAX_SCALE) if size else 1.0 for size in sizes]
