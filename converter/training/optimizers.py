"""Steps of a training: Muon moves the matrices, AdamW all other weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from converter.training.checkpoint import Weights
from converter.training.losses import Recipe

MOMENTUM = 0.95
# Coefficients of the quintic iteration, and how often it is done (Jordan 2024).
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
ADAM_RMS = 0.2  # of the entries of AdamW's steps, in units of the learning rate
# Rows or columns, whichever are fewer, of the matrices that Muon moves. Work grows with the square
# of them, that of the gradient does not.
SMALL, LARGE = 8, 2048
MOST_SCALE = 8.0  # by which a tensor's learning rate may differ from the usual
TINY = 1e-7


class Optimizers:
    """The optimizers of a model.

    At the same learning rate both move the entries of a tensor by about as much (Liu et al., arXiv
    2502.16982, section 2.2). Nothing is raised: what cannot be trained is refused before.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        """Prepare to train the parameters of ``model`` that want a gradient."""
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
        """Move the parameters along their gradients; ``rate`` is that of weights of usual size."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()

    def forget(self) -> None:
        """Begin anew."""
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def moments(self) -> Weights:
        """Name what the optimizers remember: optimizer/parameter/tensor, each of its shape."""
        return {
            f"{kind}/{number}/{name}": tensor
            for kind, optimizer in enumerate(self._optimizers)
            for number, tensors in optimizer.state_dict()["state"].items()
            for name, tensor in tensors.items()
        }

    def restore(self, moments: Weights) -> None:
        """Go on from what ``moments`` gave for a model of the same parameters."""
        found: list[dict[int, Weights]] = [{} for _ in self._optimizers]
        for key, tensor in moments.items():
            kind, number, name = key.split("/")
            found[int(kind)].setdefault(int(number), {})[name] = tensor
        for optimizer, state in zip(self._optimizers, found):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})


class Muon(torch.optim.Optimizer):
    """Moves matrices, tensors of more axes with all but the first as one, by Nesterov's momentum.

    Of the momentum only the orthogonal factor counts, so that directions in which the gradient is
    small are learned as quickly as the others (K. Jordan, "Muon: An optimizer for hidden layers in
    neural networks", 2024). ``torch.optim.Muon`` takes two axes alone and iterates in bfloat16,
    which is tens of times slower on CPUs without instructions for it.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        """Take groups of one tensor each."""
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix."""
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
    """Find about ``U V^T`` of a matrix ``U S V^T`` by Newton and Schulz's iteration (Jordan 2024).

    What it multiplies by are polynomials of the Gram matrix, so that only that is iterated on.

    Args:
        matrix: (n, m), of float32 or better; all zeros give zeros.

    Returns:
        (n, m), its singular values between 0.6 and 1.3; those that were below a 500th of the norm
        of ``matrix`` smaller.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + TINY)
    gram = wide @ wide.T
    one, three, five = QUINTIC
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = identity
    for _ in range(ITERATIONS):
        step = one * identity + three * gram + five * gram @ gram
        factor, gram = step @ factor, step @ gram @ step
    found: torch.Tensor = factor @ wide
    return found if found.shape == matrix.shape else found.T


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Tell whether Muon moves a tensor; the filters of a depthwise convolution are one, too."""
    return parameter.ndim > 1 and SMALL <= min(parameter.flatten(1).shape) <= LARGE


def _scales(parameters: Sequence[torch.Tensor]) -> list[float]:
    """Say how the learning rate of each tensor is scaled.

    The entries of a 1-D filter are several times those of the 1x1 convolutions beside it, which
    would forget before it learns.
    """
    sizes = [float(p.detach().square().mean().sqrt()) if p.ndim > 1 else 0.0 for p in parameters]
    known = [math.log(size) for size in sizes if size > 0]
    usual = math.exp(sum(known) / max(len(known), 1))
    return [min(max(size / usual, 1 / MOST_SCALE), MOST_SCALE) if size else 1.0 for size in sizes]
