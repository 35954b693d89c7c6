"""Guards against inputs that are not what the original was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from scipy.special import softmax

from converter.data.data import Data
from converter.evaluation import information as info
from converter.evaluation.feeding import Images, normalises, options_text
from converter.evaluation.feeding_trials import SURE_SHARE, Better, Examples, Trials, significant
from converter.evaluation.score import Z_99
from converter.evaluation.tasks.classify import Classify
from converter.evaluation.tasks.regress import Regress
from converter.evaluation.tasks.task import Task
from converter.evaluation.untrained import look_untrained
from converter.graph.network import inputs, open_session
from converter.graph.outputs import comparison_outputs, with_outputs
from converter.graph.survey import Layer
from converter.options import ImageOptions

MIN_EXAMPLES = 16  # fewer show nothing
SAME_CLASS = 0.95  # share of one class from which on nearly all answers are the same
# Shares of the power of scores and of other outputs that vary. One class alone leaves 0.2 of the
# scores, a wrong scale of the images 0.1 and less.
SAME_SCORES, SAME_VALUES, VARIED_INPUTS = 0.1, 1e-3, 0.01
MAX_GAP = 0.3  # between confidence and accuracy; 0.1 is usual, 0.2 where a network is overfit
MIN_RENUMBERED = 0.3  # accuracy that other numbers of the classes must gain
CHECK = (
    "Check --mean, --std, --channels, --layout and --resize: inputs must be prepared as in its "
    "training."
)
RANDOM = "Its weights look random: give its --checkpoint."
RENUMBERED = (
    "With the classes of the labels numbered in another way it gets {:.1%} right: check the "
    "numbers of the labels, or the names of the folders."
)
RAW = (
    "Images were only scaled to 0..1. If the network was trained on normalised images, give their "
    "--mean and --std."
)
TWICE = (
    "The network itself begins with a normalisation, and --mean and --std normalise its inputs "
    "before; leave them out unless it was trained so."
)


@dataclass(frozen=True)
class Guarded:
    """What the guards say.

    Attributes:
        warnings: Sentences that say that the original is probably fed wrongly.
        notes: Sentences on what cannot be told from its answers.
    """

    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def guards(
    network: ir.Model,
    data: Data,
    tasks: Sequence[Task],
    images: ImageOptions,
    layers: Sequence[Layer] = (),
    threads: int = 1,
) -> Guarded:
    """Look whether the original is fed as it was trained.

    Its answers are held against the labels, its own confidence, and its answers for the same images
    prepared in other usual ways. At most 256 examples are run for each way, and other means and
    standard deviations are tried only where there is reason to.

    Args:
        network: The original network.
        data: Inputs, labelled if possible.
        tasks: What its outputs mean.
        images: How images of bytes were prepared.
        layers: Its layers. If their weights look random, other ways are not tried.
        threads: Threads of onnxruntime.
    """
    session = open_session(with_outputs(network, comparison_outputs(network)), threads)
    macs = sum(layer.macs for layer in layers)
    examples = Examples.of(session, data, inputs(network)[0].shape[0], macs)
    name, photos = _images(examples, images)
    own, plain = normalises(network), photos is not None and photos.plain
    notes = (TWICE,) if own and photos is not None and not plain else ()
    classes = next((t for t in tasks if isinstance(t, Classify) and not t.independent), None)
    examples = replace(examples, labels=_class_labels(classes, examples.labels))
    if examples.count < MIN_EXAMPLES or not _finite(examples, tasks):
        return Guarded((), notes)
    scores = None if classes is None else examples.output(classes.outputs[0])
    logits = None if classes is None or scores is None else classes.logits(scores)
    problems = [] if logits is None else _problems(logits, examples)
    problems = problems or _same_values(examples, tasks)
    if look_untrained(layer.conv.kernel for layer in layers if layer.conv is not None):
        known = examples.labels is not None  # without labels, random answers show nothing
        return Guarded(tuple(f"{sentence} {RANDOM}" for sentence in problems if known), notes)
    renumbered = _renumbered(logits, examples) if problems and logits is not None else None
    better = None
    if photos is not None:
        doubtful = logits is not None and info.varying_share(logits) < SURE_SHARE
        rescaled = bool(problems) or plain is not own or doubtful
        trials = (Trials(session, t, examples, name, photos) for t in _with_scores(tasks, classes))
        better = next(filter(None, (trial.better(rescaled) for trial in trials)), None)
    if not problems and better is None:
        unsure = plain and not own and classes is None
        return Guarded((), (*notes, RAW) if unsure else notes)
    advice = CHECK
    if renumbered is not None and (better is None or renumbered > better.after):
        advice = RENUMBERED.format(renumbered)
    elif better is not None and photos is not None:
        advice = _advice(better, photos, examples)
    return Guarded((" ".join([*problems, advice]),), notes)


def _images(examples: Examples, options: ImageOptions) -> tuple[str, Images | None]:
    """Return the first input that takes images, and its images; None if there is none."""
    for name in examples.batches[0]:
        array = examples.input(name)
        photos = None if array is None else Images.of(array, options)
        if photos is not None:
            return name, photos
    return "", None


def _with_scores(tasks: Sequence[Task], classes: Classify | None) -> list[Classify | Regress]:
    """List the tasks of class scores: the known ones, else the vectors that may be such."""
    if classes is not None:
        return [classes]
    vectors = [task for task in tasks if isinstance(task, Regress) and task.assumed]
    return [task for task in vectors if len(task.shape) == 2 and task.shape[1] > 2]


def _class_labels(task: Classify | None, labels: np.ndarray | None) -> np.ndarray | None:
    """Return labels as classes (N,), or None if they are not classes of the task."""
    if task is None or labels is None or task.check_labels(labels) is not None:
        return None
    return labels.astype(np.int64)


def _finite(examples: Examples, tasks: Sequence[Task]) -> bool:
    names = [name for task in tasks for name in task.outputs]
    return all(np.isfinite(arrays[name]).all() for arrays in examples.outputs for name in names)


def _problems(scores: np.ndarray, examples: Examples) -> list[str]:
    """Say what is wrong with logits (N, C): against the labels, or else by themselves."""
    chosen, labels, where = scores.argmax(1), examples.labels, f"inputs of {examples.source}"
    if labels is None:
        commonest = int(np.bincount(chosen).argmax())
        share = float((chosen == commonest).mean())
        if share < SAME_CLASS or info.varying_share(scores) > SAME_SCORES:
            return []
        return [
            f"The original gives class {commonest} for {share:.0%} of {examples.count} {where}, "
            "with nearly the same scores."
        ]
    hits = chosen == labels
    right = f"The original gets {hits.mean():.1%} of {examples.count} labelled {where} right"
    if info.guesses(chosen, labels):
        return [f"{right}, no better than guessing."]
    if info.below_commonest(hits, labels):
        return [f"{right}; always giving their most frequent class would be right more often."]
    confidence = softmax(scores, axis=1).max(1)
    gap = confidence - hits
    if gap.mean() - Z_99 * gap.std() / math.sqrt(len(gap)) > MAX_GAP:
        return [f"{right}, but its own confidence is {confidence.mean():.1%}."]
    return []


def _same_values(examples: Examples, tasks: Sequence[Task]) -> list[str]:
    """Say so if the outputs of all tasks are nearly the same for inputs that differ."""
    names = {name for task in tasks for name in task.outputs}
    outputs = [examples.output(name) for name in names]
    varied = max(_varying(examples.input(name)) for name in examples.batches[0])
    if varied < VARIED_INPUTS or not outputs or any(array is None for array in outputs):
        return []
    if any(_varying(array) > SAME_VALUES for array in outputs):
        return []
    where = f"{examples.count} inputs of {examples.source}"
    return [f"The outputs of the original are nearly the same for {where}."]


def _varying(arrays: np.ndarray | None) -> float:
    """Return the share of the power that varies over examples (N, ...), at its largest."""
    if arrays is None:
        return 0.0
    values = arrays.astype(np.float64)
    power = np.maximum(np.square(values).mean(0), info.TINY)
    return float((values.var(0) / power).max(initial=0))


def _renumbered(scores: np.ndarray, examples: Examples) -> float | None:
    """Return the accuracy of logits (N, C) by other numbers of the labels, if far higher."""
    if examples.labels is None:
        return None
    others = info.renumbered_hits(scores, examples.labels)
    hits = (scores.argmax(1) == examples.labels)[1::2]
    better = significant(others.astype(np.float64) - hits, MIN_RENUMBERED)
    return float(others.mean()) if better else None


def _advice(better: Better, images: Images, examples: Examples) -> str:
    """Name the options with which the original's answers are better."""
    where = f"{examples.count} inputs of {examples.source}"
    if examples.labels is None:
        what = (
            f"its answers tell {where} apart better: {better.after:.2f} nats of information on the "
            f"class, not {better.before:.2f}"
        )
    else:
        what = f"it gets {better.after:.1%} of {where} right, not {better.before:.1%}"
    return (
        f"The original is probably fed wrongly: with {options_text(better.options, images.fed)} "
        f"{what}. Give these options; inputs that are floats must be prepared so beforehand."
    )
