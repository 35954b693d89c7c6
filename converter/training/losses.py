"""What a network is taught: who teaches, what an answer is worth, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from converter.errors import ConverterError, root_line
from converter.models.export import find_callable, flat_outputs

TEMPERATURE = 4.0  # of the softened outputs (Hinton et al., arXiv 1503.02531)
LABELS = 0.3  # what the labels count beside the original's outputs
LEVEL = 0.1  # and what the level of vectors counts, which classes do not depend on
TINY = 1e-12

Tensors = Sequence[torch.Tensor]
# What is lost by outputs, given the original's and the labels, if there are any.
Loss = Callable[[Tensors, Tensors, torch.Tensor | None], torch.Tensor]
# Inputs -> outputs, or what is compared instead of them.
Run = Callable[[Tensors], list[torch.Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the data.
        lr: Highest learning rate, of weights of the usual size; less where that does harm.
        batch_size: Examples a step, of all processes together; fewer where there is little data.
        accumulate: Parts that each process computes its share of a batch in.
        bfloat16: Whether activations are computed in bfloat16, where the device has it.
        int8: Whether the network learns with the rounding of int8.
        scaled_steps: Whether each weight tensor learns in proportion to the size of its entries.
        orthogonal: Whether matrices move along the orthogonal factor of their gradient.
        workers: Processes that read the data.
        seed: Of the order of the examples and of augmentation.
    """

    epochs: int
    lr: float = 1e-3
    batch_size: int = 128
    accumulate: int = 1
    bfloat16: bool = False
    int8: bool = False
    scaled_steps: bool = True
    orthogonal: bool = True
    workers: int = 0
    seed: int = 0


def whole(model: nn.Module) -> Run:
    """Run a model for its outputs."""
    return lambda inputs: flat_outputs(model(*inputs))


def inside(model: nn.Module, names: Sequence[str]) -> Run:
    """Run a model for what the modules ``names`` give."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            seen[name] = output

        return keep

    for name in names:
        model.get_submodule(name).register_forward_hook(hook(name))

    def run(inputs: Tensors) -> list[torch.Tensor]:
        seen.clear()
        model(*inputs)
        return [seen[name] for name in names]

    return run


def distillation(
    outputs: Tensors, targets: Tensors, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Add up the distances of all outputs, and cross-entropy where there are labels."""
    loss = torch.stack([distance(o, t) for o, t in zip(outputs, targets)]).sum()
    if labels is not None:
        logits = logits_of(outputs[0], targets[0])
        loss = loss + LABELS * functional.cross_entropy(logits, labels)
    return loss


def reconstruction(
    outputs: Tensors, targets: Tensors, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Average the relative squared errors of features."""
    return torch.stack([relative_error(o, t) for o, t in zip(outputs, targets)]).mean()


def own_loss(text: str) -> Loss:
    """Import ``module:function``, called as ``loss(outputs, targets, labels)``.

    Raises:
        ConverterError: When there is no such function; when called, when it fails or gives no
            single number that depends on the outputs.
    """
    function = find_callable(text, "--loss")

    def loss(outputs: Tensors, targets: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        try:
            found = function(outputs, targets, labels)
        except Exception as error:  # the user's function may raise anything
            raise ConverterError(f"--loss {text} failed: {root_line(error)}") from None
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            raise ConverterError(f"--loss {text} must give a tensor of one number.")
        return found.reshape(())

    return loss


def distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Relative squared error; of vectors, KL divergence of them softened besides."""
    if output.ndim != 2 or output.shape[1] < 2:
        return relative_error(output, target)
    soft, wanted = (
        functional.log_softmax(logits_of(rows, target) / TEMPERATURE, 1)
        for rows in (output, target)
    )
    divergence = functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)
    return TEMPERATURE**2 * divergence + LEVEL * relative_error(output, target)


def logits_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits (N, C) of an output; its logarithm where the original gives probabilities."""
    sums = target.float().sum(1)
    if target.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        return output.float().clamp_min(TINY).log()
    return output.float()


def relative_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """|output - target|^2 / |target|^2."""
    output, target = output.float(), target.float()
    return functional.mse_loss(output, target) / target.square().mean().clamp_min(TINY)
