"""Data named by the options, read for the inputs of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from converter.data.data import Data, conform
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.data.labels import IGNORED, misfit, name_class
from converter.data.readers import read
from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.models.factory import find_callable
from converter.options import Options
from converter.runtime.ort import run


def read_data(source: object, inputs: Sequence[Input], options: Options) -> Data:
    """Read data for the inputs of a network, cast to their types.

    Args:
        source: A name (.npz, folder, ``module:function``), arrays, batches or a DataLoader.
        inputs: The network's inputs.
        options: They hold the preprocessing of images.

    Raises:
        ConverterError: When the data cannot be read, or does not fit the inputs.
    """
    return conformed(read_unchecked(source, inputs, options), inputs)


def read_unchecked(source: object, inputs: Sequence[Input], options: Options) -> Data:
    """Read data without a check of shapes: a torch model's are unknown before its export."""
    return read(source, inputs, Preprocessing.of(options), find_callable)


def conformed(data: Data, inputs: Sequence[Input]) -> Data:
    """Check data against the shapes of the inputs, and cast it to their types."""
    return conform(data, {i.name: i.shape for i in inputs}, {i.name: i.dtype for i in inputs})


def read_named_data(network: ir.Model, options: Options) -> tuple[Data | None, Data | None]:
    """Read the training and the evaluation data that the options name; None if they name none.

    For training without ``--train``, all of ``--calib`` is used, unlabelled.
    """
    source, inputs = options.training.train, onnx_network.inputs(network)
    labelled = source is not None and options.training.labels
    if source is None and options.training.trains:
        source = options.data.calib
    train = None if source is None else read_data(source, inputs, options)
    if train is not None and options.training.augment == "none":
        train = train.without_augmentation()
    if train is not None and not labelled:
        train = train.unlabelled()
    if train is not None and options.training.loss is None:
        train = train.with_classes()
    evaluated = options.data.eval
    return train, None if evaluated is None else read_scored_data(evaluated, network, options)


def read_scored_data(source: object, network: ir.Model, options: Options) -> Data:
    """Read data to score a network on; examples without a class are left out.

    Raises:
        ConverterError: When the data cannot be read, or do not fit the network.
    """
    data = read_data(source, onnx_network.inputs(network), options).with_classes()
    if data.labels is None:
        return data
    classes = class_count(network, data, options)
    if classes is None:
        return data
    named = name_class(data.labels, classes)
    _check_labels(data, classes)
    if not named.all():
        left_out = int(np.count_nonzero(~named))
        data = data.take(np.flatnonzero(named)).noted(
            f"{left_out} of {data.count} examples of {data.source} have no class (labels below 0, "
            f"or {IGNORED}) and are left out."
        )
    return _with_class_note(data, classes)


def with_fitting_labels(data: Data, network: ir.Model, options: Options) -> Data:
    """Return sample inputs with labels only if all name a class of the network.

    Raises:
        ConverterError: When labels are not those of the network.
    """
    data = data.with_classes()
    classes = None if data.labels is None else class_count(network, data, options)
    if data.labels is None or classes is None:
        return data
    _check_labels(data, classes)
    if name_class(data.labels, classes).all():
        return _with_class_note(data, classes)
    return data.unlabelled().noted(
        f"Some examples of {data.source} have no class (labels below 0, or {IGNORED}); the labels "
        "are not used."
    )


def class_count(network: ir.Model, data: Data, options: Options) -> int | None:
    """Return the width of the widest output (N, C), or None if labels may not be its classes.

    They need not be if there is no such output, or ``--task`` names another task than classes.
    """
    if any(task != "classify" for _, task in options.data.task):
        return None
    fixed = onnx_network.inputs(network)[0].shape[:1]
    batch = np.arange((fixed[0] if fixed else None) or 1) % data.count
    outputs = run(onnx_network.open_session(network), data.read(batch))
    widths = [array.shape[1] for array in outputs.values() if array.ndim == 2]
    return max((width for width in widths if width > 1), default=None)


def _check_labels(data: Data, classes: int) -> None:
    assert data.labels is not None
    problem = misfit(data.labels, classes, data.source)
    if problem:
        raise ConverterError(problem)


def _with_class_note(data: Data, classes: int) -> Data:
    """Add a sentence if the data name fewer or more classes than the network has."""
    if data.named_classes in (None, classes):
        return data
    return data.noted(
        f"{data.source} holds {data.count} images in {data.named_classes} classes, but the network "
        f"has {classes}."
    )
