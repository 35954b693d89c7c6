"""The phases of a training, and the test of its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter.evaluation.loss import loss_between, original_accuracy
from converter.evaluation.tasks.task import Task
from converter.options import Options
from converter.runtime.ort_quantizer import saturates
from converter.training.checkpoint import loss_source
from converter.training.losses import Loss, distillation, import_loss, reconstruction
from converter.training.task import Recipe, StopWhen, Trained

MIN_HOLDOUT = 200  # holdout examples from which a drop of accuracy is estimated


@dataclass(frozen=True)
class Phase:
    """A part of a training.

    Attributes:
        name: Shown beside the progress.
        recipe: How the network is trained.
        loss: Compares outputs (or features).
        budget: Limits by option name.
        features: Compare the outputs of the converted layers, not those of the network.
        stop_when: Tells from holdout outputs whether the budget is kept, or None.
        resume: Continue from the checkpoint of an interrupted training.
        settings: All other values that the result depends on, for the name of the checkpoint.
    """

    name: str
    recipe: Recipe
    loss: Loss
    budget: Mapping[str, float]
    features: bool = False
    stop_when: StopWhen | None = None
    resume: bool = False
    settings: tuple[object, ...] = ()


def list_phases(
    options: Options,
    budget: Mapping[str, float],
    tasks: Sequence[Task],
    outputs: Sequence[str],
    all_epochs: bool = False,
) -> list[Phase]:
    """List the phases of the training that the options ask for.

    Only the last phase tests the budget, and training ends early if it is kept. With
    ``all_epochs``, or for ``--int8``, whose loss does not show in floating-point outputs, the test
    is a phase of its own after all epochs.
    """
    training, recipe = options.training, recipe_of(options)
    source = training.loss and loss_source(training.loss)
    settings = options.budget.drop_type, training.augment, source, recipe.int8 and saturates()
    stop_when = budget_test(budget, tasks, outputs, options)
    all_epochs = all_epochs or recipe.int8
    tuning = Phase(
        "fine-tuning", recipe, loss_of(options), budget, False, None, training.resume, settings
    )
    phases = []
    if training.reconstruct:
        shorter = replace(recipe, epochs=training.reconstruct)
        phases.append(
            replace(
                tuning, name="reconstructing", recipe=shorter, loss=reconstruction, features=True
            )
        )
    if training.epochs:
        phases.append(replace(tuning, stop_when=None if all_epochs else stop_when))
    if stop_when is not None and (all_epochs or not training.epochs):
        no_epochs = replace(recipe, epochs=0, int8=False)
        phases.append(
            replace(
                tuning,
                name="evaluating",
                recipe=no_epochs,
                loss=reconstruction,
                stop_when=stop_when,
            )
        )
    return phases


def recipe_of(options: Options) -> Recipe:
    """Take the recipe of fine-tuning from the options."""
    training = options.training
    return Recipe(
        epochs=training.epochs,
        lr=training.lr,
        batch_size=training.train_batch,
        accumulate=training.accumulate,
        bfloat16=training.precision == "bfloat16",
        int8=options.search.int8,
        workers=training.workers,
        seed=options.resources.seed,
    )


def loss_of(options: Options) -> Loss:
    """Return the loss of fine-tuning."""
    return import_loss(options.training.loss) if options.training.loss else distillation


def why_unproven(trained: Trained) -> str | None:
    """Say why the holdout examples do not show that ``--max-drop`` is kept; None if they do."""
    if trained.accepted:
        return None
    if trained.holdout < MIN_HOLDOUT:
        return (
            f"{trained.holdout} training inputs were held out, too few to say whether --max-drop "
            "is kept; give labelled --eval, or more --train."
        )
    return "Fine-tuning ended before the held-out inputs said that --max-drop is kept."


def budget_test(
    budget: Mapping[str, float], tasks: Sequence[Task], names: Sequence[str], options: Options
) -> StopWhen | None:
    """Return a test whether outputs keep ``max_drop`` and ``max_error``; None without either.

    ``names`` are those of the network's outputs, in order.
    """
    max_drop, max_error = budget.get("max_drop"), budget.get("max_error")
    if max_drop is None and max_error is None:
        return None
    relative = options.budget.drop_type == "relative"

    def within_budget(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> bool:
        if not {name for task in tasks for name in task.outputs} <= set(names):
            return False  # inner values are judged, which are no outputs
        loss = loss_between(tasks, [dict(zip(names, before))], [dict(zip(names, after))])
        if max_error is not None and not loss.output_error <= max_error:
            return False
        if max_drop is None:
            return True
        if loss.estimate.examples < MIN_HOLDOUT:
            return False
        scale = original_accuracy(tasks, dict(zip(names, before))) if relative else 1.0
        return loss.estimate.high <= max_drop * scale

    return within_budget
