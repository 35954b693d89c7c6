"""Training of a converted network toward its original.

In a chain the gradients of the steps multiply (arXiv 1412.5474, section 3.2). For this reason the
norms of its factors are balanced beforehand (``Chain.balanced``), the learning rate of each step is
scaled by the size of its weights, gradients are clipped, and only the last step has a bias.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from converter.errors import ConverterError
from converter.models.wrappers import copied
from converter.processes import ProcessGroup, process_group
from converter.training.batches import Batches, Part
from converter.training.checkpoint import Checkpoint, Weights, read_checkpoint
from converter.training.holdout import evaluate_holdout, split_holdout
from converter.training.losses import Loss, distillation
from converter.training.optimizers import Optimizers
from converter.training.pair import ModelPair, check_labels, prepare_models
from converter.training.task import Recipe, Trained, TrainingTask

MAX_HOLDOUT_BATCH = 128
MAX_GRADIENT_NORM = 1.0
WARM_UP, LAST_LR = 0.1, 0.01  # share of the steps, and of the highest learning rate
MAX_WINDOW = 0.25  # epochs that the moving average spans
LR_REDUCTION = 3.0  # divides the learning rate after an epoch that made the network worse
EARLY_EVALUATIONS = 4  # in the first epoch; later ones end with an evaluation each
SAVE_INTERVAL_S = 60.0

Evaluate = Callable[[], tuple[float, bool]]  # holdout loss, and whether stop_when accepts


def train_with_fp32_fallback(attempt: Callable[[Recipe], Trained], recipe: Recipe) -> Trained:
    """Train, and once more in float32 if bfloat16 did not lower the holdout loss.

    bfloat16 fails when large components nearly cancel, since their rounding errors exceed their
    sum. Training is not repeated if ``stop_when`` accepts the weights, no epoch was trained, or
    training was in float32 already.

    Args:
        attempt: Trains by a recipe, from the same weights each time.
        recipe: The first recipe.

    Returns:
        The result of the last attempt.

    Raises:
        ConverterError: As ``train``.
    """
    trained = attempt(recipe)
    improved = trained.best_loss < trained.first_loss or bool(trained.accepted)
    if improved or not (recipe.epochs and trained.bfloat16):
        return trained
    return attempt(replace(recipe, bfloat16=False))


def train(
    task: TrainingTask,
    recipe: Recipe,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Callable[[float], None] = lambda done: None,
) -> Trained:
    """Train a copy of the student to give the teacher's outputs (and the labels, if any).

    The optimizers are Muon and AdamW in float32, with warm-up, cosine decay and clipped gradients.
    Both models stay in evaluation mode: BatchNorm keeps the statistics that the layers were solved
    for, and there is no dropout. The result is the moving average of the weights with the lowest
    loss on holdout examples, or the given weights if no average is better. If an epoch, or a
    quarter of the first, leaves the network worse than it was before training, training returns to
    the best weights and goes on at a third of the learning rate. With ``accelerate launch`` all
    processes share every batch.

    Args:
        task: Student, teacher, data and loss.
        recipe: Epochs, learning rate and so on.
        device: torch device.
        checkpoint: File in which the state is saved once a minute, or None.
        resume: Continue from that file if it exists.
        progress: Called with the fraction of the steps that is done.

    Raises:
        ConverterError: If there is too little data, its labels do not fit, the models cannot be
            trained on it, the device does not exist, or accelerate is not installed.
    """
    group = process_group(device)
    pair, targets = prepare_models(task, recipe, group)
    example_bytes = sum(array.nbytes for array in task.data.read(np.arange(1)).values())
    if task.stop_when is not None:
        example_bytes += 2 * sum(4 * t[:1].numel() for t in targets if t.ndim)
    holdout, data = split_holdout(task.data, example_bytes, recipe.seed)
    if task.loss is distillation:
        check_labels(task.data, targets[0])
    share = recipe.batch_size // (recipe.accumulate * group.size)
    batch_size = min(MAX_HOLDOUT_BATCH, max(share, 1))
    evaluate = partial(evaluate_holdout, pair, task, holdout, batch_size, group)
    batches = Batches(data, recipe, group.rank, group.size)
    start = _read_shared(checkpoint, pair.model, group) if resume and checkpoint else None
    if start is None:
        start = _first_checkpoint(pair.model, evaluate)
        if recipe.epochs and not math.isfinite(start.first_loss):
            raise ConverterError(
                f"The network loses {start.first_loss} on {task.data.source} before any training; "
                "training cannot start from there."
            )
    state = _State.of(pair.model, batches, start)
    gradients = partial(_compute_gradients, pair, task.loss, group)
    save_to = None if group.rank else checkpoint
    end = _fit(state, gradients, batches, start, evaluate, save_to, progress)
    model = copied(task.student)  # has the student's types and memory format, and no hooks
    model.load_state_dict(end.best)
    return Trained(
        model.eval(),
        end.step / batches.per_epoch,
        end.first_loss,
        end.best_loss,
        holdout.count,
        None if task.stop_when is None else end.accepted,
        pair.bfloat16,
    )


@dataclass(frozen=True)
class _State:
    """The objects that training changes: a model, its moving average and its optimizers."""

    model: nn.Module
    average: AveragedModel
    optimizers: Optimizers

    @classmethod
    def of(cls, model: nn.Module, batches: Batches, start: Checkpoint) -> _State:
        """Load a checkpoint into a model that has its initial weights."""
        window = max(int(MAX_WINDOW * batches.per_epoch), 1)
        average = AveragedModel(model, multi_avg_fn=moving_average(window))
        state = cls(model, average, Optimizers(model, batches.recipe))
        model.load_state_dict(start.weights)
        average.module.load_state_dict(start.average)
        if start.moments:
            state.optimizers.restore(start.moments)
        return state

    def capture(self, checkpoint: Checkpoint) -> Checkpoint:
        """Complete a checkpoint with the present weights, average and moments."""
        average = self.average.module.state_dict()
        moments = self.optimizers.moments()
        return replace(
            checkpoint, weights=self.model.state_dict(), average=average, moments=moments
        )


def _read_shared(path: Path, model: nn.Module, group: ProcessGroup) -> Checkpoint | None:
    """Read a checkpoint; None if not all processes have it."""
    checkpoint = read_checkpoint(path, model.state_dict())
    shared = group.all_equal(-1 if checkpoint is None else checkpoint.step)
    return checkpoint if shared else None


def _first_checkpoint(model: nn.Module, evaluate: Evaluate) -> Checkpoint:
    """Evaluate the initial weights."""
    loss, accepted = evaluate()
    weights = _copy(model.state_dict())
    return Checkpoint(0, weights, weights, weights, {}, loss, loss, accepted)


def _fit(
    state: _State,
    compute_gradients: Callable[[Sequence[Part]], None],
    batches: Batches,
    checkpoint: Checkpoint,
    evaluate: Evaluate,
    save_to: Path | None,
    progress: Callable[[float], None],
) -> Checkpoint:
    """Take the steps after a checkpoint, until the last or until ``stop_when`` accepts."""
    steps = batches.recipe.epochs * batches.per_epoch
    saved_s = time.monotonic()
    progress(checkpoint.step / max(steps, 1))
    for step, parts in () if checkpoint.accepted else batches.read(checkpoint.step):
        compute_gradients(parts)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), MAX_GRADIENT_NORM)
        if norm.isfinite():
            scale = lr_schedule((step + 0.5) / steps)
            state.optimizers.step(checkpoint.lr_scale * batches.recipe.lr * scale)
            state.average.n_averaged.fill_(step)  # counts steps that were left out, too
            state.average.update_parameters(state.model)
        checkpoint = replace(checkpoint, step=step + 1)
        evaluated = _is_evaluated(checkpoint.step, batches.per_epoch)
        if evaluated:
            checkpoint = _evaluate_average(state, checkpoint, evaluate)
        if save_to is not None and (evaluated or time.monotonic() - saved_s > SAVE_INTERVAL_S):
            state.capture(checkpoint).save(save_to)
            saved_s = time.monotonic()
        progress(1.0 if checkpoint.accepted else checkpoint.step / steps)
        if checkpoint.accepted:
            break
    return checkpoint


def _compute_gradients(
    pair: ModelPair, loss: Loss, group: ProcessGroup, parts: Sequence[Part]
) -> None:
    """Compute the gradients of a batch, averaged over all processes."""
    pair.model.zero_grad()
    for inputs, labels, share in parts:
        (share * pair.training_loss(loss, inputs, labels)).backward()
    group.average([p.grad for p in pair.model.parameters() if p.grad is not None])


def _evaluate_average(state: _State, checkpoint: Checkpoint, evaluate: Evaluate) -> Checkpoint:
    """Evaluate the moving average; if it is worse than no training, return to the best weights."""
    weights = _copy(state.model.state_dict())
    average = state.average.module.state_dict()
    state.model.load_state_dict(average)
    loss, accepted = evaluate()
    if loss < checkpoint.best_loss or accepted:
        checkpoint = replace(checkpoint, best_loss=loss, best=_copy(average), accepted=accepted)
    if not loss <= checkpoint.first_loss and not accepted:
        checkpoint = replace(checkpoint, lr_scale=checkpoint.lr_scale / LR_REDUCTION)
        weights = checkpoint.best
        state.average.module.load_state_dict(weights)
        state.optimizers.reset()
    state.model.load_state_dict(weights)
    return checkpoint


def moving_average(window: int) -> Callable[..., None]:
    """Return the update of an exponential moving average over up to ``window`` steps.

    The average spans fewer steps at first: a quarter of those done.
    """

    def update(
        averages: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], step: torch.Tensor
    ) -> None:
        for average, weight in zip(averages, weights):
            average.lerp_(weight, 1 / min(window, 1 + int(step) / 4))

    return update


def lr_schedule(done: float) -> float:
    """Return the learning rate, as a fraction of the highest, when a fraction of steps is done."""
    if done < WARM_UP:
        return LAST_LR + (1 - LAST_LR) * done / WARM_UP
    return LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def _is_evaluated(step: int, per_epoch: int) -> bool:
    """Tell whether the network is evaluated after so many steps."""
    if step < per_epoch:
        return step in [per_epoch * n // EARLY_EVALUATIONS for n in range(1, EARLY_EVALUATIONS)]
    return step % per_epoch == 0


def _copy(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
