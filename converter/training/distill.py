"""Fine-tuning of a conversion: its phases, their data, and the way back into the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

import numpy as np
import onnx_ir as ir
from torch import nn

from converter.data.data import Data
from converter.decomposition.conv import Chain
from converter.errors import ConverterError
from converter.evaluation.check import check_torch_vs_onnx
from converter.evaluation.loss import accuracy, expected_drop, relative_error, temperature_of
from converter.graph.outputs import with_outputs
from converter.graph.survey import Layer
from converter.models import export as torch_export
from converter.models import from_onnx as torch_import
from converter.models import match as torch_network
from converter.models.input_shapes import free_axes
from converter.models.source import Source, examples, samples
from converter.options import Options
from converter.processes import Progress, Resources
from converter.reconstruction.realize import with_chains
from converter.runtime.ort_quantizer import saturates
from converter.training.checkpoint import checkpoint_path, loss_source
from converter.training.losses import Loss, distillation, import_loss, reconstruction
from converter.training.task import Recipe, StopWhen, Trained, TrainingTask
from converter.training.train import train, train_with_fp32_fallback

MAX_CHECK_EXAMPLES = 64  # of which a tenth are holdout examples
MIN_HOLDOUT = 200  # holdout examples from which a drop of accuracy is estimated


@dataclass(frozen=True)
class Phase:
    """A part of a training.

    Attributes:
        name: Shown beside the progress.
        recipe: How the network is trained.
        loss: Compares outputs (or features).
        features: Compare the outputs of the converted layers, not those of the network.
        budget: Limits by option name; training may end once they are kept.
        stop_when: Tells from holdout outputs whether the budget is kept, or None.
        resume: Continue from the checkpoint of an interrupted training.
        settings: Plain values of all else that the result depends on.
    """

    name: str
    recipe: Recipe
    loss: Loss
    features: bool = False
    budget: Mapping[str, float] = field(default_factory=dict)
    stop_when: StopWhen | None = None
    resume: bool = False
    settings: tuple[object, ...] = ()


def distill(
    student: nn.Module | None,
    network: ir.Model,
    teacher: Source,
    layers: Sequence[Layer],
    phases: Sequence[Phase],
    resources: Resources,
) -> tuple[nn.Module | None, ir.Model, str | None]:
    """Train a converted network toward its original. All processes call this alike.

    Args:
        student: The converted torch model, or None for an ONNX network.
        network: The converted network.
        teacher: The original.
        layers: The converted layers.
        phases: The parts of the training, in order.
        resources: Device, seed, cache and progress.

    Returns:
        The trained model and network, and the reason why the holdout examples do not show that
        ``--max-drop`` is kept, or None.

    Raises:
        ConverterError: If there is nothing to train on, or the network cannot be trained.
    """
    data, unproven = _training_data(teacher), None
    for phase in phases:
        outputs = [layer.output for layer in layers] if phase.features else []
        if student is not None:
            assert teacher.module is not None
            pair = student, teacher.module
            features = [layer.name for layer in layers] if phase.features else []
        else:
            student_onnx, teacher_onnx = (
                with_outputs(n, outputs) if outputs else n for n in (network, teacher.network)
            )
            pair = (
                trainable(student_onnx, teacher, resources.seed),
                trainable(teacher_onnx, teacher, resources.seed),
            )
            features = []
        task = TrainingTask(*pair, data, phase.loss, features, phase.stop_when)
        trained = run_phase(task, phase, resources)
        if student is not None:
            student = trained.model
        else:
            network = torch_import.with_weights(network, trained.model)
        unproven = _why_unproven(trained) if "max_drop" in phase.budget else None
    if student is not None:
        feeds, free = examples(teacher, resources.seed, 1), free_axes(teacher.inputs)
        network = torch_export.export(student, feeds, free)
    return student, network, unproven


def distill_chains(
    chains: Mapping[str, Chain],
    budget: Mapping[str, float],
    source: Source,
    layers: Sequence[Layer],
    options: Options,
    progress: Progress,
    *,
    teacher: Source | None = None,
) -> tuple[nn.Module | None, ir.Model, str | None]:
    """Replace layers by chains, and train the network. All processes call this alike.

    Args:
        chains: By layer name.
        budget: Limits by option name; training may end once they are kept.
        source: The network whose layers are replaced.
        layers: All layers of the network.
        options: The options.
        progress: Called with a stage and the fraction of it that is done.
        teacher: The original to train toward; ``source`` if left out.

    Returns:
        As ``distill``.

    Raises:
        ConverterError: As ``distill``.
    """
    converted = [layer for layer in layers if layer.name in chains]
    student = source.module and torch_network.apply(source.module, layers, chains)
    network = with_chains(source.network, layers, chains)
    resources = Resources.of(options, progress=progress)
    stages = phases(options, budget)
    return distill(student, network, teacher or source, converted, stages, resources)


def phases(options: Options, budget: Mapping[str, float], to_the_end: bool = False) -> list[Phase]:
    """List the parts of the training that the options ask for.

    Only the last part tests the budget. The loss of int8 does not show in its floating-point
    outputs; for ``--int8``, or with ``to_the_end``, all epochs are trained and the budget is tested
    afterwards.
    """
    training, recipe = options.training, _recipe(options)
    loss = _loss(options)
    base = Phase(
        "fine-tuning",
        recipe,
        loss,
        budget=budget,
        resume=training.resume,
        settings=(
            options.budget.drop_type,
            training.augment,
            training.loss and loss_source(training.loss),
            recipe.int8 and saturates(),
        ),
    )
    parts = []
    if training.reconstruct:
        first = replace(recipe, epochs=training.reconstruct)
        parts.append(
            replace(base, name="reconstructing", recipe=first, loss=reconstruction, features=True)
        )
    stop_when, to_the_end = budget_test(budget, options), to_the_end or recipe.int8
    if training.epochs:
        parts.append(replace(base, stop_when=None if to_the_end else stop_when))
    if stop_when is not None and (to_the_end or not training.epochs):
        untrained = replace(recipe, epochs=0, int8=False)
        parts.append(
            replace(
                base,
                name="evaluating",
                recipe=untrained,
                loss=reconstruction,
                stop_when=stop_when,
            )
        )
    return parts


def _recipe(options: Options) -> Recipe:
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


def _loss(options: Options) -> Loss:
    return import_loss(options.training.loss) if options.training.loss else distillation


def _training_data(source: Source) -> Data:
    """Return the training inputs, else the sample inputs without labels.

    Raises:
        ConverterError: If there are neither.
    """
    if source.train is not None:
        return source.train
    if source.calib is not None:
        return source.calib.unlabelled()
    raise ConverterError("There are no inputs to train on; give --train.")


def check_trainable(source: Source, options: Options, group_size: int = 1) -> None:
    """Check that the original can be trained toward itself, on a few examples.

    Raises:
        ConverterError: If there is nothing to train on, or the network or the data cannot be used.
    """
    data = _training_data(source)
    module = source.module or trainable(source.network, source, options.resources.seed)
    indices = np.arange(min(data.count, MAX_CHECK_EXAMPLES + 2 * group_size))
    if data.labels is not None:
        indices = np.union1d(indices, [data.labels.argmin(), data.labels.argmax()])
    recipe = replace(_recipe(options), epochs=0)
    loss = _loss(options) if options.training.epochs else reconstruction
    task = TrainingTask(module, module, data.take(indices), loss)
    train(task, recipe, device=options.resources.device)


def _why_unproven(trained: Trained) -> str | None:
    """Say why the holdout examples do not show that ``--max-drop`` is kept; None if they do."""
    if trained.accepted:
        return None
    if trained.holdout < MIN_HOLDOUT:
        return (
            f"{trained.holdout} training inputs were held out, too few to say whether --max-drop "
            "is kept; give labelled --eval, or more --train."
        )
    return "Fine-tuning ended before the held-out inputs said that --max-drop is kept."


def trainable(network: ir.Model, source: Source, seed: int) -> nn.Module:
    """Convert an ONNX network to a torch model, and check that both compute the same.

    Raises:
        ConverterError: If there is no such model.
    """
    module = torch_import.to_torch(network)
    problem = check_torch_vs_onnx(module, network, samples(source, seed))
    if problem:
        raise ConverterError(f"The network cannot be fine-tuned as ONNX. {problem}")
    return module


def run_phase(task: TrainingTask, phase: Phase, resources: Resources) -> Trained:
    """Train for one phase; in float32 if bfloat16 does not lower the loss."""

    def attempt(recipe: Recipe) -> Trained:
        name = phase.name if recipe == phase.recipe else f"{phase.name} in float32"
        settings = phase.name, astuple(recipe), phase.stop_when is None, *phase.settings
        return train(
            task,
            recipe,
            device=resources.device,
            checkpoint=checkpoint_path(
                resources.cache, task, sorted(phase.budget.items()), settings
            ),
            resume=phase.resume,
            progress=resources.stage(name),
        )

    return train_with_fp32_fallback(attempt, phase.recipe)


def budget_test(budget: Mapping[str, float], options: Options) -> StopWhen | None:
    """Return a test whether outputs keep ``max_drop`` and ``max_error``; None without either."""
    max_drop, max_error = budget.get("max_drop"), budget.get("max_error")
    if max_drop is None and max_error is None:
        return None
    relative = options.budget.drop_type == "relative"

    def within_budget(
        before: Sequence[np.ndarray], after: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> bool:
        errors = [relative_error([o], [t]) for o, t in zip(after, before)]
        if max_error is not None and not max(errors) <= max_error:
            return False
        if max_drop is None:
            return True
        scores = before[0]
        if scores.ndim != 2 or scores.shape[1] < 2 or len(scores) < MIN_HOLDOUT:
            return False
        classes = labels is not None and labels.min() >= 0 and labels.max() < scores.shape[1]
        temperature = temperature_of(scores, labels) if classes and labels is not None else 1.0
        allowed = max_drop * (accuracy(scores, temperature) if relative else 1.0)
        return expected_drop(scores, after[0], temperature)[1] <= allowed

    return within_budget
