"""Data named by the options, read for the inputs of a network."""

from __future__ import annotations

from collections.abc import Sequence

from converter.data.data import Data, conform
from converter.data.images import Preprocessing
from converter.data.readers import read
from converter.errors import ConverterError
from converter.graph.network import Input
from converter.models.export import find_callable
from converter.options import Options


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


def read_named_data(inputs: Sequence[Input], options: Options) -> tuple[Data | None, Data | None]:
    """Read the training and the evaluation data that the options name; None if they name none.

    For training without ``--train``, all of ``--calib`` is used, unlabelled.
    """
    source = options.training.train
    labelled = source is not None and options.training.labels
    if source is None and options.training.trains:
        source = options.data.calib
    train = None if source is None else read_data(source, inputs, options)
    if train is not None and options.training.augment == "none":
        train = train.without_augmentation()
    if train is not None and not labelled:
        train = train.unlabelled()
    evaluated = options.data.eval
    return train, None if evaluated is None else read_scored_data(evaluated, inputs, options)


def read_scored_data(source: object, inputs: Sequence[Input], options: Options) -> Data:
    """Read data to measure accuracy on.

    Raises:
        ConverterError: When the data cannot be read or does not fit, or its labels are no classes.
    """
    data = read_data(source, inputs, options)
    if data.labels is None and data.load_batch is not None:
        raise ConverterError(
            f"The labels y of {data.source} are not one class an example, as accuracy takes them; "
            "leave them out, or score a conversion by --evaluate without --eval."
        )
    return data
