"""Training a converted network toward its original, so that chains of small filters learn.

A chain multiplies the gradients of its steps (arXiv 1412.5474, section 3.2): the norms of its
factors are balanced before (``Chain.balanced``), each step learns in proportion to the size of its
weights, gradients are clipped, and no step but the last has a bias.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from converter.data.data import Data
from converter.errors import ConverterError, root_line
from converter.models.export import copied
from converter.processes import process_group
from converter.quantization.rounding import fake_quantize
from converter.training.batches import Batches, split_off, tensors
from converter.training.checkpoint import State, Weights, read_checkpoint
from converter.training.losses import Loss, Recipe, Run, Tensors, distillation, inside, whole
from converter.training.optimizers import Optimizers

BATCH = 128  # held-out examples a call, at most
MAX_GRADIENT_NORM = 1.0
WARM_UP, LAST_LR = 0.1, 0.01  # share of the steps, and of the highest learning rate
AVERAGED = 0.25  # of an epoch that the moving average looks back on, at most
SLOWER = 3.0  # by which learning is slowed where it did harm
EARLY = 4  # how often in the first epoch it is seen whether it does
SAVE_S = 60.0

# Outputs of the original and of the other network on the held-out part, by number, and its labels.
Enough = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], "np.ndarray | None"], bool]


@dataclass(frozen=True)
class Trained:
    """A network after training.

    Attributes:
        model: In evaluation mode.
        epochs: Passes over the data that were made.
        first_loss: On the held-out part, before.
        best_loss: And of the weights that were kept.
        held: Examples that were held out.
        enough: Whether the weights kept are enough, or None where that was not asked.
        bfloat16: Whether activations were computed in it.
    """

    model: nn.Module
    epochs: float
    first_loss: float
    best_loss: float
    held: int
    enough: bool | None = None
    bfloat16: bool = False


def train_with_fp32_fallback(attempt: Callable[[Recipe], Trained], recipe: Recipe) -> Trained:
    """Train again in float32 what learnt nothing in bfloat16.

    As components that nearly cancel, whose sum is lost when each is rounded. What was enough, was
    not trained at all, or not in bfloat16, is not trained again.

    Args:
        attempt: Trains by a recipe, from the same weights each time.
        recipe: The first to try.

    Returns:
        What the last attempt gave.

    Raises:
        ConverterError: As ``tune``.
    """
    tuned = attempt(recipe)
    learnt = tuned.best_loss < tuned.first_loss or bool(tuned.enough)
    if learnt or not (recipe.epochs and tuned.bfloat16):
        return tuned
    return attempt(replace(recipe, bfloat16=False))


def tune(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    loss: Loss = distillation,
    features: Sequence[str] = (),
    enough: Enough | None = None,
    device: str = "cpu",
    state: Path | None = None,
    resume: bool = False,
    progress: Callable[[float], None] = lambda done: None,
) -> Trained:
    """Train a copy of ``student`` to give what ``teacher`` gives (and the labels, if any).

    Muon and AdamW, warm-up and cosine, clipped gradients, in float32. Both models run as they do in
    use: BatchNorm keeps its statistics, which the layers were solved for, and nothing is dropped.
    The weights kept are those of the moving average that lose least on a part of the data that is
    held out, those given included: tuning never makes that part worse. Its examples are changed at
    random, once: the original may know the very images by heart, which says little of others. Where
    an epoch, or a quarter of the first, leaves the network worse than it was at first, training
    goes back to the best weights and on at a third of the rate: how fast is right depends on how
    little was lost. Run by ``accelerate launch``, every batch is shared by all processes.

    Args:
        student: The converted model; left as it is.
        teacher: The original, in evaluation mode; left as it is.
        data: Training inputs, in the order of the models' parameters.
        recipe: How to train.
        loss: What outputs (or features) lose.
        features: Modules of both models to compare instead of the outputs.
        enough: Tells from the outputs on the held-out part whether training may stop.
        device: torch device to train on.
        state: File to keep the state of the training in, every minute, or None.
        resume: Whether to go on from that file, if it is there.
        progress: Called with the share done.

    Raises:
        ConverterError: When there is too little data, its labels do not fit, the models cannot be
            trained on it, the device is not there, or accelerate is not installed.
    """
    place = process_group(device)
    model, original = (copied(m).float().to(place.device) for m in (student, teacher))
    answer: Run = inside(model, features) if features else whole(model)
    answer = fake_quantize(answer) if recipe.int8 else answer
    wanted: Run = inside(original, features) if features else whole(original)
    layout, outputs = _tried(model.eval(), original.eval(), answer, wanted, data, place.device)
    each = sum(a.nbytes for a in data.read(np.arange(1)).values())
    if enough is not None:
        each += 2 * sum(4 * output[:1].numel() for output in outputs if output.ndim)
    held, train = split_off(data, each, recipe.seed)
    held = held.augmented(recipe.seed)
    if loss is distillation:
        _check_labels(outputs[0], data)

    bfloat16 = recipe.bfloat16 and place.computes_bfloat16()

    def loss_of(inputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        inputs = _moved(inputs, place.device, layout)
        labels = None if labels is None else labels.to(place.device)
        with torch.autocast(place.device.type, torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                targets = wanted(inputs)
            found = loss(answer(inputs), targets, labels)
        if not found.requires_grad:
            raise ConverterError("What the network gives does not depend on its weights smoothly.")
        return found

    @torch.no_grad()
    def held_out() -> tuple[float, bool]:
        total, before, after = 0.0, list[list[np.ndarray]](), list[list[np.ndarray]]()
        size = min(BATCH, max(recipe.batch_size // (recipe.accumulate * place.processes), 1))
        # Batches of about the same size: none is of one example, which some losses cannot do with.
        parts = max(min(math.ceil(held.count / size), held.count // 2), 1)
        for indices in np.array_split(np.arange(held.count), parts):
            feeds, labels = tensors(held.batch(indices))
            inputs = _moved(feeds, place.device, layout)
            labels = None if labels is None else labels.to(place.device)
            outputs, outputs_wanted = answer(inputs), wanted(inputs)
            total += float(loss(outputs, outputs_wanted, labels)) * len(indices)
            if enough is not None:
                before.append([_array(output) for output in outputs_wanted])
                after.append([_array(output) for output in outputs])
        mean = place.all_reduce_mean(total / held.count)
        if enough is None or not math.isfinite(mean):
            return mean, False
        first, second = ([np.concatenate(p) for p in zip(*all)] for all in (before, after))
        return mean, place.all_reduce_mean(enough(first, second, held.labels)) == 1

    batches = Batches(train, recipe, place.rank, place.processes)
    steps = recipe.epochs * batches.per_epoch
    descent = Optimizers(model, recipe)
    now = read_checkpoint(state, model.state_dict()) if resume and state is not None else None
    if not place.all_equal(-1 if now is None else now.step):
        now = None  # not all processes have it
    if now is None:
        first_loss, done = held_out()
        if recipe.epochs and not math.isfinite(first_loss):
            raise ConverterError(
                f"The network loses {first_loss} on {data.source} before any training; nothing can "
                "be won from there."
            )
        start = _copy(model.state_dict())
        now = State(0, start, start, start, {}, first_loss, first_loss, done)
    model.load_state_dict(now.weights)
    if now.moments:
        descent.restore(now.moments)
    average = {name: tensor.to(place.device) for name, tensor in _copy(now.average).items()}
    saved_s = time.monotonic()
    progress(now.step / max(steps, 1))
    for step, parts in () if now.done else batches.read(now.step):
        model.zero_grad()
        for inputs, labels, share in parts:
            (share * loss_of(inputs, labels)).backward()
        place.average([p.grad for p in model.parameters() if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        if norm.isfinite():
            descent.step(now.share * recipe.lr * _schedule((step + 0.5) / steps))
            window = max(int(AVERAGED * batches.per_epoch), 1)
            _follow(average, model.state_dict(), step, window)
        now = replace(now, step=step + 1)
        judged = _is_judged(now.step, batches.per_epoch)
        if judged:
            current = _copy(model.state_dict())
            model.load_state_dict(average)
            found, done = held_out()
            if found < now.best_loss or done:
                now = replace(now, best_loss=found, best=_copy(average), done=done)
            if not found <= now.first_loss and not done:  # too fast: back, and slower
                now = replace(now, share=now.share / SLOWER)
                best = {name: tensor.to(place.device) for name, tensor in now.best.items()}
                average, current = _copy(best), _copy(best)
                descent.forget()
            model.load_state_dict(current)
        late = judged or time.monotonic() - saved_s > SAVE_S
        if state is not None and place.rank == 0 and late:
            weights, moments = model.state_dict(), descent.moments()
            replace(now, weights=weights, average=average, moments=moments).save(state)
            saved_s = time.monotonic()
        progress(1.0 if now.done else now.step / steps)
        if now.done:
            break
    # A fresh copy has the types and the layout of the student, and no hooks.
    shipped = copied(student)
    shipped.load_state_dict(now.best)
    reached = None if enough is None else now.done
    epochs = now.step / batches.per_epoch
    losses = now.first_loss, now.best_loss
    return Trained(shipped.eval(), epochs, *losses, held.count, reached, bfloat16)


def _tried(
    model: nn.Module,
    original: nn.Module,
    answer: Run,
    wanted: Run,
    data: Data,
    device: torch.device,
) -> tuple[torch.memory_format, list[torch.Tensor]]:
    """Lay both models out so that they run on two examples: channels last, if they can.

    Returns:
        The layout, and what the original gives.

    Raises:
        ConverterError: When they do not run, or do not give the same kind of outputs.
    """
    feeds = [torch.from_numpy(feed) for feed in data.read(np.arange(2) % data.count).values()]
    for layout in (torch.channels_last, torch.contiguous_format):
        for network in (model, original):
            for parameter in network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=layout)
        try:
            with torch.no_grad():
                inputs = _moved(feeds, device, layout)
                outputs, targets = answer(inputs), wanted(inputs)
            break
        except Exception as error:  # the user's model may raise anything
            if layout is torch.contiguous_format:
                raise ConverterError(
                    f"The network cannot be trained on {data.source}, two examples a call: "
                    f"{root_line(error)}"
                ) from None
    if not targets or [o.shape for o in outputs] != [t.shape for t in targets]:
        raise ConverterError("The converted network gives other outputs than the original.")
    return layout, targets


def _check_labels(output: torch.Tensor, data: Data) -> None:
    labels = data.labels
    if labels is None and data.load_batch is None:
        return
    fit = labels is not None and output.ndim == 2
    if not fit or labels is None or not 0 <= labels.min() <= labels.max() < output.shape[1]:
        raise ConverterError(
            f"The labels of {data.source} do not fit the network's outputs of shape "
            f"{tuple(output.shape[1:])}; give classes from 0 on, or pass --labels=false."
        )


def _schedule(done: float) -> float:
    """Give the share of the learning rate when a share of the steps is done."""
    if done < WARM_UP:
        return LAST_LR + (1 - LAST_LR) * done / WARM_UP
    return LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def _is_judged(step: int, per_epoch: int) -> bool:
    """Tell whether the network is tried on the held-out part after so many steps."""
    if step < per_epoch:
        return step in [per_epoch * part // EARLY for part in range(1, EARLY)]
    return step % per_epoch == 0


def _moved(
    inputs: Tensors, device: torch.device, layout: torch.memory_format
) -> list[torch.Tensor]:
    """Bring inputs to a device, floats as float32, images laid out."""
    moved = [x.to(device, torch.float32 if x.is_floating_point() else None) for x in inputs]
    return [x.contiguous(memory_format=layout) if x.ndim == 4 else x for x in moved]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.atleast_1d(tensor.float().cpu().numpy())


def _follow(average: Weights, weights: Weights, step: int, window: int) -> None:
    """Move the average toward the weights."""
    share = 1 / min(window, 1 + step / 4)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, share)
        else:
            average[name].copy_(tensor)


def _copy(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
