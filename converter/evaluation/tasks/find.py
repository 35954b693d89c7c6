"""Find the tasks of a network: what each of its outputs means."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays
from converter.errors import ConverterError
from converter.evaluation.tasks.channels import Channels
from converter.evaluation.tasks.class_scores import ClassScores, probability_axis, whole_numbers
from converter.evaluation.tasks.classify import Classify
from converter.evaluation.tasks.detect import Detect, find_detection
from converter.evaluation.tasks.embed import Embed
from converter.evaluation.tasks.endings import SmallRun, find_channels, last_operator, words
from converter.evaluation.tasks.label import label_of
from converter.evaluation.tasks.regress import Regress
from converter.evaluation.tasks.states import find_states
from converter.evaluation.tasks.task import Task
from converter.evaluation.tasks.texts import find_blank
from converter.graph.network import inputs, values_by_name
from converter.options.parsing import TASKS

CLASS_WORDS = {"cls", "logit", "logits", "prob", "probabilities", "probability", "probs", "softmax"}
POSITION_WORDS = CLASS_WORDS - {"cls"}  # heads of detectors are called so
POINT_WORDS = {"bbox", "box", "boxes", "coords", "keypoints", "kpts", "landmark", "landmarks"}
POINT_WORDS |= {"points", "pose"}
UNIT_LENGTH = 1e-3  # by which the length of an embedding may differ from 1
SOFTMAXES = {"LogSoftmax", "Softmax"}
COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
DECISIONS = {"ArgMax", "ArgMin"} | COMPARISONS


@dataclass(frozen=True)
class _Output:
    """An output: values of the original, and what is known of where they come from.

    Attributes:
        name: Its name.
        values: The original's values for sample inputs.
        operator: The last operator that does more than move or cast values.
        channels: Where its examples and channels are.
        classes: Whether the file says that a vector of this size holds classes.
        tokens: Whether the network reads whole numbers, such as words.
    """

    name: str
    values: np.ndarray
    operator: str
    channels: Channels
    classes: bool
    tokens: bool

    @property
    def is_vector(self) -> bool:
        """Whether it is (N, C)."""
        floats = self.values.ndim == 2 and self.values.dtype.kind == "f"
        return floats and self.channels.axis is not None

    @property
    def is_mask(self) -> bool:
        """Whether a Sigmoid gives each of several positions one score."""
        axis = self.channels.axis
        single = axis is None or self.values.shape[axis] == 1
        several_positions = self.values.ndim > 1 and not self.is_vector
        return self.operator == "Sigmoid" and single and several_positions

    @property
    def is_text(self) -> bool:
        """Whether it looks like the scores of CTC."""
        axis = self.channels.axis
        if self.values.ndim != 3 or self.values.dtype.kind != "f" or self.tokens or axis is None:
            return False
        paths = np.moveaxis(self.values.argmax(axis), self.channels.batch_axis * (axis > 0), 0)
        return find_blank(paths, self.values.shape[axis]) is not None


def find_tasks(
    network: ir.Model,
    outputs: Arrays,
    feeds_shapes: Mapping[str, tuple[int, ...]],
    labels: np.ndarray | None,
    requested: Mapping[str, str],
) -> tuple[Task, ...]:
    """Find what the outputs of a network mean.

    What is requested comes first, then what labels fit, then detectors; any other output is judged
    by its operators, values and name, and as numbers where those say nothing. States, masks and
    lengths are left out.

    Args:
        network: The original network.
        outputs: Its outputs, or the values that stand for them, for sample inputs, by name.
        feeds_shapes: Shapes of its inputs by name, for any number of examples.
        labels: Labels of the sample inputs, or None.
        requested: Names of tasks by output name; the name "" stands for all outputs that fit.

    Returns:
        The tasks, in the order of their first outputs.

    Raises:
        ConverterError: When there is no such output, or a requested task does not fit.
    """
    _check_requested(requested, outputs)
    run = SmallRun.of(network, list(outputs), feeds_shapes)
    items = _describe(network, outputs, run)
    size = next((shape for shape in feeds_shapes.values() if len(shape) == 4), ())
    tasks: dict[str, Task] = {}

    def add(*more: Task) -> list[_Output]:
        """Add tasks; return the outputs that are left."""
        for task in more:
            taken = [name for name in task.outputs if name in tasks]
            if taken:
                raise ConverterError(f"Two tasks are given to output {taken[0]!r} by --task.")
            tasks.update(dict.fromkeys(task.outputs, task))
        return [item for item in items if item.name not in {*tasks, *left_out}]

    left_out = find_states(network, outputs, run.shapes)
    for kind in dict.fromkeys(kind for name, kind in requested.items() if name):
        named = [item for item in items if requested.get(item.name) == kind]
        add(*_requested(kind, named, size, labels))
    rest = add()
    if "" in requested and rest:
        rest = add(*_requested(requested[""], _fitting(requested[""], rest, labels), size, labels))
    elif labels is not None and (fitting := _labelled(rest, labels)):
        rest = add(fitting)
    detection = find_detection({item.name: item.values for item in rest}, size)
    if detection is not None:
        rest = add(detection)
    add(*(_by_itself(item) for item in rest))
    return tuple({id(task): task for name in outputs if (task := tasks.get(name))}.values())


def _check_requested(requested: Mapping[str, str], outputs: Arrays) -> None:
    for name, kind in requested.items():
        if kind not in TASKS:
            raise ConverterError(f"There is no task {kind!r}; --task takes {', '.join(TASKS)}.")
        if name and name not in outputs:
            raise ConverterError(
                f"--task names the output {name!r}; the network has {', '.join(outputs)}."
            )


def _describe(network: ir.Model, outputs: Arrays, run: SmallRun) -> list[_Output]:
    values, channels = values_by_name(network), find_channels(network, outputs, run)
    tokens = any(len(i.shape) == 2 and np.issubdtype(i.dtype, np.integer) for i in inputs(network))
    return [
        _Output(
            name=name,
            values=array,
            operator=last_operator(values.get(name)),
            channels=channels[name],
            classes=array.ndim == 2 and _names_classes(network, array.shape[1]),
            tokens=tokens,
        )
        for name, array in outputs.items()
    ]


def _names_classes(network: ir.Model, count: int) -> bool:
    """Whether the file says in its metadata, as ultralytics writes them, that it tells classes."""
    if network.metadata_props.get("task") == "classify":
        return True
    try:
        names = ast.literal_eval(network.metadata_props.get("names", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(names, (dict, list, tuple)) and len(names) == count


def _requested(
    kind: str, items: list[_Output], size: tuple[int, ...], labels: np.ndarray | None
) -> list[Task]:
    """Make the tasks that were asked for; raise ``ConverterError`` where one does not fit."""
    if kind == "detect":
        return [Detect.of({item.name: item.values for item in items}, size)]
    return [_task(kind, item, labels) for item in items]


def _fitting(kind: str, items: list[_Output], labels: np.ndarray | None) -> list[_Output]:
    """Choose the outputs that a task without an output is for; all if it fits none."""
    if kind in ("detect", "regress"):
        return items
    fitting = _labelled(items, labels) if labels is not None else None
    if fitting is not None and fitting.name == kind:
        return [item for item in items if item.name in fitting.outputs]
    clear = [item for item in items if _kind(item) == kind]
    return clear or [item for item in items if item.is_vector == (kind != "label")] or items


def _labelled(items: list[_Output], labels: np.ndarray) -> Task | None:
    """Return the task for the output that labels fit, or None; labels are whole numbers."""
    if not whole_numbers(labels) or not len(labels):
        return None
    fitting = []
    for item in items:
        kind = "classify" if item.is_vector else "label"
        if item.values.ndim < 2 or item.values.dtype.kind != "f" or _kind(item) == "embed":
            continue
        independent = labels.shape == item.values.shape and labels.ndim == 2
        task = _task(kind, item, labels, independent or item.operator == "Sigmoid")
        if task.check_labels(labels) is None:
            fitting.append((_kind(item) == kind, _hits(item, labels), task))
    return max(fitting, key=lambda row: row[:2])[2] if fitting else None


def _hits(item: _Output, labels: np.ndarray) -> float:
    """Return the accuracy of an output (N, C) by labels (N,); 0 for others."""
    if not item.is_vector or labels.ndim != 1 or item.values.shape[1] < 2:
        return 0.0
    return float((item.values[: len(labels)].argmax(1) == labels[: len(item.values)]).mean())


def _kind(item: _Output) -> str | None:
    """Return the task that operator, values and name of an output speak for; None for none."""
    values, operator, name = item.values, item.operator, words(item.name)
    if values.dtype.kind != "f":
        return "label" if operator in DECISIONS else None
    if item.is_mask:
        return "label"
    if not item.is_vector:
        clear = values.ndim > 2 and (operator in SOFTMAXES or bool(name & POSITION_WORDS))
        return "label" if clear or item.is_text else None
    probabilities = values.min(initial=0) >= 0 and probability_axis(values) == 1
    if operator in SOFTMAXES or probabilities:
        return "classify"
    if not name & POINT_WORDS and (operator == "Sigmoid" or name & CLASS_WORDS or item.classes):
        return "classify"
    lengths = np.linalg.norm(values.astype(np.float64), axis=1)
    return "embed" if values.shape[1] > 2 and (abs(lengths - 1) < UNIT_LENGTH).all() else None


def _by_itself(item: _Output) -> Task:
    """Return the task of an output of which nobody said what it is."""
    kind = _kind(item)
    if kind is None:
        return Regress.of(item.name, item.values, item.channels, assumed=True)
    return _task(kind, item, None)


def _task(
    kind: str, item: _Output, labels: np.ndarray | None, independent: bool | None = None
) -> Task:
    """Make a task for one output; raise ``ConverterError`` where it does not fit."""
    sigmoid = item.operator == "Sigmoid" if independent is None else independent
    if kind == "classify":
        return Classify.of(item.name, item.values, labels, sigmoid)
    if kind == "embed":
        return Embed.of(item.name, item.values)
    if kind == "label":
        scores = ClassScores.of(
            item.name,
            item.values,
            class_axis=_class_axis(item),
            batch_axis=item.channels.batch_axis,
            independent=item.operator == "Sigmoid",
            single=item.channels.axis is None,
        )
        return label_of(item.name, item.values, scores, ctc=not item.tokens)
    return Regress.of(item.name, item.values, item.channels)


def _class_axis(item: _Output) -> int | None:
    """Return the axis of the classes of an output with positions."""
    values, axis = item.values, item.channels.axis
    if values.dtype.kind != "f" or axis is None or item.is_mask:
        return axis
    values = np.exp(values) if item.operator == "LogSoftmax" else values
    summing = probability_axis(values, item.channels.batch_axis)
    return axis if summing is None else summing
