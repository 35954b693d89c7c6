"""Fine-tuning of a converted network by distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import onnx_ir as ir
from torch import nn

from converter.data.data import Data
from converter.errors import ConverterError
from converter.evaluation.check import check_torch_vs_onnx
from converter.graph.outputs import with_outputs
from converter.graph.survey import Layer
from converter.models import export as torch_export
from converter.models import from_onnx as torch_import
from converter.models.input_shapes import free_axes
from converter.models.source import Source, examples, samples
from converter.options import Options
from converter.processes import Resources
from converter.training.checkpoint import checkpoint_path
from converter.training.losses import reconstruction
from converter.training.phases import Phase, loss_of, recipe_of, why_unproven
from converter.training.task import Recipe, Trained, TrainingTask
from converter.training.train import train, train_with_fp32_fallback

MAX_CHECK_EXAMPLES = 64  # of which a tenth are holdout examples


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
        compared = layers if phase.features else ()
        if student is not None:
            assert teacher.module is not None
            pair, features = (student, teacher.module), [layer.name for layer in compared]
        else:  # the compared features become the outputs of the networks
            outputs, features = [layer.output for layer in compared], []
            networks = [
                with_outputs(n, outputs) if outputs else n for n in (network, teacher.network)
            ]
            pair = (
                trainable(networks[0], teacher, resources.seed),
                trainable(networks[1], teacher, resources.seed),
            )
        task = TrainingTask(*pair, data, phase.loss, features, phase.stop_when)
        trained = run_phase(task, phase, resources)
        if student is not None:
            student = trained.model
        else:
            network = torch_import.with_weights(network, trained.model)
        unproven = why_unproven(trained) if "max_drop" in phase.budget else None
    if student is not None:
        feeds, free = examples(teacher, resources.seed, 1), free_axes(teacher.inputs)
        network = torch_export.export(student, feeds, free)
    return student, network, unproven


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
    recipe = replace(recipe_of(options), epochs=0)
    loss = loss_of(options) if options.training.epochs else reconstruction
    task = TrainingTask(module, module, data.take(indices), loss)
    train(task, recipe, device=options.resources.device)


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
