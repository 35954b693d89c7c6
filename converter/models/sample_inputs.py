"""The sample inputs of a conversion, and the input shapes that they and the options give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from converter.data.data import Data, from_arrays
from converter.data.inputs import Input, examples_in_front
from converter.data.native import arrays_by_name
from converter.models.datasets import conformed, read_unchecked
from converter.models.input_shapes import (
    Propose,
    Shapes,
    choose_shapes,
    user_shapes,
    with_known_rank,
)
from converter.options import Options


def read_example(example_input: object, inputs: Sequence[Input]) -> Data | None:
    """Return the example input that a Python caller gives, in the types of the inputs, or None.

    Raises:
        ConverterError: When the arrays are not those of the inputs.
    """
    if example_input is None:
        return None
    names, source = [item.name for item in inputs], "the example input"
    arrays = arrays_by_name(example_input, source, names)
    dtypes = {item.name: item.dtype for item in inputs}
    typed = {n: a.astype(dtypes[n]) if n in dtypes else a for n, a in arrays.items()}
    return from_arrays(typed | examples_in_front(typed, inputs), source, names)


def read_sample_inputs(
    inputs: Sequence[Input],
    example: Data | None,
    options: Options,
    propose: Propose,
    module: nn.Module | None = None,
) -> tuple[Data | None, Shapes, tuple[Shapes, ...]]:
    """Read ``--calib``, and choose the input shapes: the main ones and further ones.

    Args:
        inputs: The network's inputs. Those of a torch model have empty shapes; its sample inputs
            are checked after its export.
        example: The example input, or None.
        options: They name the sample inputs and the shapes.
        propose: Called for shapes to name where a size stays free.
        module: The torch model, or None.

    Raises:
        ConverterError: When sample inputs cannot be read, or a shape stays free or does not fit.
    """
    given, *further = user_shapes(options.model.input_shape, inputs)
    if example is not None:
        feeds = example.read(np.arange(1))
        given |= {name: (example.count, *array.shape[1:]) for name, array in feeds.items()}
    calib, data = options.data.calib, None
    if calib is not None:
        hints = inputs if module is None else _with_hints(inputs, given, module, options)
        data = read_unchecked(calib, hints, options)
    if module is not None:
        inputs = with_known_rank(inputs, given, data, propose)
    shapes = choose_shapes(inputs, given, data, propose)
    more = tuple(shapes | other for other in further)
    if module is None:
        more = tuple(choose_shapes(inputs, other, None) for other in more)
    return data and conformed(data, inputs), shapes, more


def _with_hints(
    inputs: Sequence[Input], given: Shapes, module: nn.Module, options: Options
) -> list[Input]:
    """Return the inputs of a torch model with what is known of their shapes, to read images by.

    A model whose first convolution has one channel takes grey images.
    """
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    first = next(layers, None)
    grey: tuple[int | None, ...] = ()
    if first is not None and first.in_channels == 1 and options.images.layout == "nchw":
        grey = (None, 1, None, None)
    hints: dict[str, tuple[int | None, ...]] = {inputs[0].name: grey} | {
        name: (None, *shape[1:]) for name, shape in given.items()
    }
    return [replace(item, shape=hints.get(item.name, ())) for item in inputs]
