"""Recognize what the outputs of a network mean, from sample inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from converter.data.data import Data
from converter.errors import ConverterError
from converter.evaluation.loss import all_outputs, run_original
from converter.evaluation.tasks.find import find_tasks
from converter.evaluation.tasks.task import Task

MAX_EXAMPLES, MAX_NUMBERS = 256, 2**27  # of the outputs that are looked at together


def recognize(
    network: ir.Model, data: Data, requested: Mapping[str, str], threads: int = 1
) -> tuple[Task, ...]:
    """Run a network on sample inputs, and find the task of each output.

    Args:
        network: The original network.
        data: Sample inputs; their labels say where classes are.
        requested: Names of tasks by output name; the name "" stands for the only output.
        threads: Threads of onnxruntime.

    Raises:
        ConverterError: When a requested task does not fit.
    """
    few = data.take(np.arange(min(data.count, MAX_EXAMPLES)))
    feeds, labels = few.batch(np.arange(1))
    _, first = run_original(network, few.take(np.arange(1)), threads)
    numbers = sum(array.size for arrays in first for array in arrays.values())
    few = few.take(np.arange(max(min(few.count, MAX_NUMBERS // max(numbers, 1)), 1)))
    batches, outputs = run_original(network, few, threads)
    count = sum(len(next(iter(feeds.values()))) for feeds in batches)
    if labels is not None:
        labels = few.batch(np.arange(min(count, few.count)))[1]
    shapes = {name: array.shape for name, array in feeds.items()}
    values = {name: np.nan_to_num(array) for name, array in all_outputs(outputs).items()}
    return find_tasks(network, values, shapes, labels, requested)


def check_labels(data: Data, tasks: Sequence[Task]) -> None:
    """Check that the labels of data, if there are any, are those of one of the tasks.

    Raises:
        ConverterError: When they fit none.
    """
    _, labels = data.batch(np.arange(min(data.count, MAX_EXAMPLES)))
    problems = [] if labels is None else [task.check_labels(labels) for task in tasks]
    if problems and all(problems):
        raise ConverterError(f"The labels y of {data.source} fit no output. {problems[0]}")
