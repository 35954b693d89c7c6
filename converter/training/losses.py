"""Losses between the outputs of a converted network and those of its original."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from converter.errors import ConverterError, root_line
from converter.models.export import flat_outputs
from converter.models.factory import find_callable

TEMPERATURE = 4.0  # of the softened outputs (Hinton et al., arXiv 1503.02531)
LABEL_WEIGHT = 0.3  # of the cross-entropy with the labels
ERROR_WEIGHT = 0.1  # of the relative squared error: softmax ignores a constant added to all logits
TINY = 1e-12

Tensors = Sequence[torch.Tensor]
# Loss of outputs, given the teacher's outputs and the labels, if there are any.
Loss = Callable[[Tensors, Tensors, torch.Tensor | None], torch.Tensor]
# Inputs -> the outputs (or features) that are compared.
Run = Callable[[Tensors], list[torch.Tensor]]


def model_outputs(model: nn.Module) -> Run:
    """Return a function that runs a model for its outputs."""
    return lambda inputs: flat_outputs(model(*inputs))


def module_outputs(model: nn.Module, names: Sequence[str]) -> Run:
    """Return a function that runs a model for the outputs of its modules ``names``."""
    outputs: dict[str, torch.Tensor] = {}

    def record_as(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            outputs[name] = output

        return record

    for name in names:
        model.get_submodule(name).register_forward_hook(record_as(name))

    def run(inputs: Tensors) -> list[torch.Tensor]:
        outputs.clear()
        model(*inputs)
        return [outputs[name] for name in names]

    return run


def distillation(
    outputs: Tensors, targets: Tensors, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum the distillation losses of all outputs, and add cross-entropy if there are labels."""
    loss = torch.stack([distillation_loss(o, t) for o, t in zip(outputs, targets)]).sum()
    if labels is not None:
        logits = logits_of(outputs[0], targets[0])
        loss = loss + LABEL_WEIGHT * functional.cross_entropy(logits, labels)
    return loss


def reconstruction(
    outputs: Tensors, targets: Tensors, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Average the relative squared errors of features."""
    return torch.stack([relative_squared_error(o, t) for o, t in zip(outputs, targets)]).mean()


def import_loss(text: str) -> Loss:
    """Import ``module:function``, called as ``loss(outputs, targets, labels)``.

    Raises:
        ConverterError: If there is no such function. When called: if it fails, or does not return
            a single number that depends on the outputs.
    """
    function = find_callable(text, "--loss")

    def loss(outputs: Tensors, targets: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        try:
            value = function(outputs, targets, labels)
        except Exception as error:  # the user's function may raise anything
            raise ConverterError(f"--loss {text} failed: {root_line(error)}") from None
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise ConverterError(f"--loss {text} must give a tensor of one number.")
        return value.reshape(())

    return loss


def distillation_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compare one output with the teacher's.

    Class scores (N, C) are compared by the KL divergence of their softened probabilities (Hinton et
    al., arXiv 1503.02531) and a small part of the relative squared error; all other outputs by the
    relative squared error alone.
    """
    if output.ndim != 2 or output.shape[1] < 2:
        return relative_squared_error(output, target)
    log_p, log_q = (
        functional.log_softmax(logits_of(rows, target) / TEMPERATURE, 1)
        for rows in (output, target)
    )
    divergence = functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return TEMPERATURE**2 * divergence + ERROR_WEIGHT * relative_squared_error(output, target)


def logits_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return logits (N, C): the output, or its logarithm if the teacher gives probabilities."""
    sums = target.float().sum(1)
    if target.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        return output.float().clamp_min(TINY).log()
    return output.float()


def relative_squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute |output - target|^2 / |target|^2."""
    output, target = output.float(), target.float()
    return functional.mse_loss(output, target) / target.square().mean().clamp_min(TINY)
