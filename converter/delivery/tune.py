"""Fine-tuning: distillation from the original, with or without labels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional

from converter.data import Data
from converter.errors import ConverterError, first_line
from converter.networks.onnx_network import open_session
from converter.networks.runtime import run
from converter.networks.torch_export import flat_outputs

TEMPERATURE = 2.0  # of the softened outputs (Hinton et al., arXiv 1503.02531)
HELD_OUT, BATCH = 0.1, 128
MAX_GRADIENT_NORM = 1.0  # chains of 1-D filters multiply their gradients (arXiv 1412.5474)


def tune(
    student: nn.Module,
    teacher: ir.Model,
    data: Data,
    *,
    epochs: int,
    lr: float = 1e-3,
    device: str = "cpu",
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[float], None] = lambda done: None,
) -> nn.Module:
    """Train a copy of ``student`` to give the outputs of ``teacher`` (and the labels, if any).

    AdamW, one cycle, clipped gradients; the weights kept are the best on a tenth of the data
    that is held out, those given included: tuning never makes that part worse.

    Args:
        student: The converted model; left as it is.
        teacher: The original network.
        data: Training inputs, in the order of the student's parameters.
        epochs: Passes over the data.
        lr: Highest learning rate.
        device: torch device to train on.
        seed: Of the order of the examples.
        threads: Threads of onnxruntime for the teacher.
        progress: Called with the share done.

    Raises:
        ConverterError: When there is too little data, or the device is not there.
    """
    held_count = max(int(HELD_OUT * data.count), 1)
    if data.count - held_count < 2:
        raise ConverterError(f"Data {data.source} has {data.count} examples; too few to train on.")
    order = np.random.default_rng(seed).permutation(data.count)
    held, train = data.take(np.sort(order[:held_count])), data.take(np.sort(order[held_count:]))
    check_device(device)
    model = copy.deepcopy(student).to(device)
    session = open_session(teacher, threads)
    if data.labels is not None:
        first = next(iter(run(session, train.read(np.arange(2))).values()))
        if first.ndim != 2 or not 0 <= data.labels.min() <= data.labels.max() < first.shape[1]:
            raise ConverterError(
                f"The labels of {data.source} do not fit the network's outputs of shape "
                f"{first.shape[1:]}; give classes from 0 on, or leave y out."
            )

    def loss_of(source: Data, indices: np.ndarray) -> torch.Tensor:
        feeds = source.read(indices)
        targets = [torch.from_numpy(target).to(device) for target in run(session, feeds).values()]
        outputs = flat_outputs(
            model(*(torch.from_numpy(feed).to(device) for feed in feeds.values()))
        )
        loss = torch.stack([distance(o, t) for o, t in zip(outputs, targets)]).sum()
        if source.labels is not None:
            labels = torch.from_numpy(source.labels[indices].astype(np.int64)).to(device)
            loss = loss + functional.cross_entropy(outputs[0], labels)
        return loss

    @torch.no_grad()
    def held_out_loss() -> float:
        model.eval()
        parts = np.array_split(np.arange(held.count), -(-held.count // BATCH))
        return float(sum(loss_of(held, p).item() * len(p) for p in parts)) / held.count

    steps = max(train.count // BATCH, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * steps + 1, pct_start=0.1
    )
    best_loss, best = held_out_loss(), copy.deepcopy(model.state_dict())
    where = torch.device(device)
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(seed)  # of dropout, say, that a model calls as a function
        for epoch in range(epochs):
            shuffled = np.random.default_rng((seed, epoch)).permutation(train.count)
            for step, indices in enumerate(np.array_split(shuffled, steps)):
                training_mode(model)
                loss = loss_of(train, indices)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
                optimizer.step()
                schedule.step()
                progress((epoch + (step + 1) / steps) / epochs)
            found = held_out_loss()
            if found < best_loss:
                best_loss, best = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    return model.cpu().eval()


def check_device(name: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        ConverterError: When it cannot.
    """
    try:
        torch.ones(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConverterError(f"Device {name!r} cannot be used: {first_line(error)}") from None


def distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL divergence of softened class outputs (N, classes); relative squared error otherwise."""
    if output.ndim == 2 and output.shape[1] > 1:
        return TEMPERATURE**2 * functional.kl_div(
            functional.log_softmax(output / TEMPERATURE, 1),
            functional.log_softmax(target / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
    return functional.mse_loss(output, target) / target.square().mean().clamp_min(1e-12)


def training_mode(model: nn.Module) -> None:
    """Train with the BatchNorm statistics of the batches, but without dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
