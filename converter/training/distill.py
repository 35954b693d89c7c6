"""Fine-tuning of a conversion: what is trained, on what, toward what, and how it goes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import onnx_ir as ir
from torch import nn

from converter.data.data import Data
from converter.decomposition.conv import Chain
from converter.errors import ConverterError
from converter.evaluation.check import check_torch_vs_onnx
from converter.evaluation.compare import Progress
from converter.evaluation.loss import accuracy, expected_drop, relative_error, temperature_of
from converter.graph.outputs import with_outputs
from converter.graph.survey import Layer
from converter.models import export as torch_export
from converter.models import from_onnx as torch_import
from converter.models import match as torch_network
from converter.models.input_shapes import free_axes
from converter.models.source import Source, examples, samples
from converter.options import Options
from converter.processes import process_group
from converter.reconstruction.realize import with_chains
from converter.training.checkpoint_file import checkpoint_path
from converter.training.losses import Loss, Recipe, distillation, own_loss, reconstruction
from converter.training.train import Enough, Trained, train_with_fp32_fallback, tune

FEW = 64  # examples that it is seen on whether a network can be trained; a tenth are held out
FEWEST = 200  # held-out examples that can say that --max-drop is kept


@dataclass(frozen=True)
class Phase:
    """A part of a training.

    Attributes:
        name: Shown beside the progress.
        recipe: How it is done.
        loss: What is lost.
        features: Whether what the converted layers give is compared, not the outputs.
        enough: Tells from held-out outputs whether the budget is kept, or None.
    """

    name: str
    recipe: Recipe
    loss: Loss
    features: bool = False
    enough: Enough | None = None


def distill(
    student: nn.Module | None,
    network: ir.Model,
    original: Source,
    layers: Sequence[Layer],
    budget: Mapping[str, float],
    options: Options,
    progress: Progress,
    *,
    to_the_end: bool = False,
) -> tuple[nn.Module | None, ir.Model, str | None]:
    """Train a converted network toward its original.

    Args:
        student: The converted torch model, or None for an ONNX network.
        network: The converted network.
        original: Where it came from; the teacher.
        layers: Those that were converted.
        budget: Training ends when it is kept.
        options: The options.
        progress: Called with a stage and the share of it that is done.
        to_the_end: Whether training goes on where the budget is kept.

    Returns:
        Both, trained; and why the held-out part does not say that ``--max-drop`` is kept, or None.

    Raises:
        ConverterError: When there is nothing to train on, or the network cannot be trained.
    """
    data = original.train
    if data is None and original.calib is not None:
        data = original.calib.unlabelled()
    if data is None:
        raise ConverterError("There are no inputs to train on; give --train.")
    told = None
    for phase in phases(options, budget, to_the_end):
        if student is not None:
            assert original.module is not None
            names = [layer.name for layer in layers] if phase.features else []
            tuned = run_phase(
                student, original.module, data, phase, names, budget, options, progress
            )
            student = tuned.model
        else:
            outputs = [layer.output for layer in layers] if phase.features else []
            learner, master = (
                trainable(with_outputs(n, outputs) if outputs else n, original, options)
                for n in (network, original.network)
            )
            tuned = run_phase(learner, master, data, phase, [], budget, options, progress)
            network = torch_import.with_weights(network, tuned.model)
        told = _doubt(tuned) if "max_drop" in budget else None
    if student is not None:
        feeds, free = examples(original, options.resources.seed, 1), free_axes(original.inputs)
        network = torch_export.export(student, feeds, free)
    return student, network, told


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
    """Put chains in the place of layers, and train the network; all processes call this alike.

    Args:
        chains: By layer name.
        budget: Training ends when it is kept.
        source: The network that the chains are of.
        layers: All of it.
        options: The options.
        progress: Called with a stage and the share of it that is done.
        teacher: What to train it toward; ``source`` if left out.

    Returns:
        As ``distill``.

    Raises:
        ConverterError: As ``distill``.
    """
    done = [layer for layer in layers if layer.name in chains]
    student = source.module and torch_network.apply(source.module, layers, chains)
    network = with_chains(source.network, layers, chains)
    return distill(student, network, teacher or source, done, budget, options, progress)


def phases(options: Options, budget: Mapping[str, float], to_the_end: bool = False) -> list[Phase]:
    """List the parts of the training that the options ask for.

    Outputs are held against the budget in the last of them. What int8 will lose is not seen there:
    for it, as where it is asked for, training goes on to its end.
    """
    recipe = _recipe(options)
    found = []
    if options.training.reconstruct:
        first = replace(recipe, epochs=options.training.reconstruct)
        found.append(Phase("reconstructing", first, reconstruction, features=True))
    enough, to_the_end = budget_test(budget, options), to_the_end or options.search.int8
    if options.training.epochs:
        stop = None if to_the_end else enough
        found.append(Phase("fine-tuning", recipe, _loss(options), enough=stop))
    if enough is not None and (to_the_end or not options.training.epochs):
        judging = replace(recipe, epochs=0, int8=False)
        found.append(Phase("judging", judging, reconstruction, enough=enough))
    return found


def _recipe(options: Options) -> Recipe:
    return Recipe(
        epochs=options.training.epochs,
        lr=options.training.lr,
        batch_size=options.training.train_batch,
        accumulate=options.training.accumulate,
        bfloat16=options.training.precision == "bfloat16",
        int8=options.search.int8,
        workers=options.training.workers,
        seed=options.resources.seed,
    )


def _loss(options: Options) -> Loss:
    return own_loss(options.training.loss) if options.training.loss else distillation


def check_trainable(source: Source, options: Options) -> None:
    """Refuse at once what cannot be trained: the original toward itself, on a few examples.

    Raises:
        ConverterError: When there is nothing to train on, or it does not run or fit.
    """
    data = source.train or source.calib
    if data is None:
        raise ConverterError("--finetune needs inputs to train on; give --train.")
    if source.train is None:
        data = data.unlabelled()
    module = source.module or trainable(source.network, source, options)
    processes = process_group(options.resources.device).processes
    some = np.arange(min(data.count, FEW + 2 * processes))
    if data.labels is not None:
        some = np.union1d(some, [data.labels.argmin(), data.labels.argmax()])
    recipe = replace(_recipe(options), epochs=0)
    loss = _loss(options) if options.training.epochs else reconstruction
    tune(module, module, data.take(some), recipe, loss=loss, device=options.resources.device)


def _doubt(tuned: Trained) -> str | None:
    """Say why the held-out part does not say that ``--max-drop`` is kept; None where it does."""
    if tuned.enough:
        return None
    if tuned.held < FEWEST:
        return (
            f"{tuned.held} training inputs were held out, too few to say whether --max-drop is "
            "kept; give labelled --eval, or more --train."
        )
    return "Fine-tuning ended before the held-out inputs said that --max-drop is kept."


def trainable(network: ir.Model, source: Source, options: Options) -> nn.Module:
    """Give an ONNX network as a torch model that computes the same.

    Raises:
        ConverterError: When there is no such model.
    """
    module = torch_import.to_torch(network)
    problem = check_torch_vs_onnx(module, network, samples(source, options.resources.seed))
    if problem:
        raise ConverterError(f"The network cannot be fine-tuned as ONNX. {problem}")
    return module


def run_phase(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    phase: Phase,
    features: Sequence[str],
    budget: Mapping[str, float],
    options: Options,
    progress: Progress,
) -> Trained:
    """Go through one part of a training; in float32 where nothing is learnt in bfloat16."""

    def attempt(recipe: Recipe) -> Trained:
        about = phase.name, astuple(recipe), phase.enough is None, sorted(budget.items())
        name = phase.name if recipe == phase.recipe else f"{phase.name} in float32"
        return tune(
            student,
            teacher,
            data,
            recipe,
            loss=phase.loss,
            features=features,
            enough=phase.enough,
            device=options.resources.device,
            state=checkpoint_path(student, teacher, data, options, *about),
            resume=options.training.resume,
            progress=lambda done: progress(name, done),
        )

    return train_with_fp32_fallback(attempt, phase.recipe)


def budget_test(budget: Mapping[str, float], options: Options) -> Enough | None:
    """Make the test of a budget on held-out outputs; None where there is none to keep."""
    most_drop, most_error = budget.get("max_drop"), budget.get("max_error")
    if most_drop is None and most_error is None:
        return None

    def enough(
        before: Sequence[np.ndarray], after: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> bool:
        errors = [relative_error([o], [t]) for o, t in zip(after, before)]
        if most_error is not None and not max(errors) <= most_error:
            return False
        if most_drop is None:
            return True
        rows = before[0]
        if rows.ndim != 2 or rows.shape[1] < 2 or len(rows) < FEWEST:
            return False
        known = labels is not None and labels.min() >= 0 and labels.max() < rows.shape[1]
        temperature = temperature_of(rows, labels) if known and labels is not None else 1.0
        allowed = most_drop * (accuracy(rows, temperature) if relative else 1.0)
        return expected_drop(rows, after[0], temperature)[1] <= allowed

    relative = options.budget.drop_type == "relative"
    return enough
