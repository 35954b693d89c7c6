"""The input of a conversion: the network as ONNX, the torch model behind it, its data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from torch import nn

from converter.data.data import Arrays, Data, random_data
from converter.data.inputs import Input
from converter.graph import network as onnx_network
from converter.graph.canonicalize import canonicalize
from converter.models import export as torch_export
from converter.models.datasets import conformed, read_named_data, with_fitting_labels
from converter.models.input_shapes import Shapes, choose_shapes, dynamic_axes
from converter.models.notes import data_notes, model_notes, own_batch_note
from converter.models.open_model import Model as Model
from converter.models.open_model import inputs_of, open_onnx, open_torch
from converter.models.open_model import is_factory as is_factory
from converter.models.own_batch import takes_batches, with_fixed_batch
from converter.models.random_inputs import random_inputs
from converter.models.sample_inputs import read_example, read_sample_inputs
from converter.models.shape_proposal import propose_for_module, propose_shapes
from converter.options import Options

CHECKED_EXAMPLES = 2
RANDOM_EXAMPLES = 64
# Network, sample inputs, input shapes and further ones.
Opened: TypeAlias = tuple[ir.Model, "Data | None", Shapes, tuple[Shapes, ...]]


@dataclass(frozen=True)
class Source:
    """The input of a conversion.

    Attributes:
        original: The network as the user gave it, or as it was exported.
        network: The canonical form of it, which everything else works on.
        module: The torch model it came from, or None.
        inputs: The network's inputs.
        shapes: The input shapes that the network is run with.
        more_shapes: Further input shapes, which are timed too.
        calib: Sample inputs, or None.
        train: Training inputs, or None.
        eval: Inputs to score on, or None.
        origin: How to build the torch model again, as JSON values.
        unused_calib: Sample inputs beyond ``--samples``, in random order, or None.
        random: Random inputs that the network runs on, in place of sample inputs, or None.
        notes: Sentences on the model and the data that the user should read.
    """

    original: ir.Model
    network: ir.Model
    module: nn.Module | None
    inputs: tuple[Input, ...]
    shapes: Shapes
    more_shapes: tuple[Shapes, ...]
    calib: Data | None
    train: Data | None
    eval: Data | None
    origin: dict[str, Any]
    unused_calib: Data | None = None
    random: Data | None = None
    notes: tuple[str, ...] = ()

    @property
    def preprocessing(self) -> str | None:
        """What is done to images, in words; None without images."""
        given = [data for data in (self.calib, self.eval, self.train) if data is not None]
        return next((data.preprocessing for data in given if data.preprocessing), None)


def open_source(model: Model, example_input: object, options: Options) -> Source:
    """Load a model and its data, and export it if it is a torch model.

    Args:
        model: A torch module (not changed), an ONNX model, the path of an .onnx, .pt2 or pickle
            file, or ``package.module:factory``.
        example_input: Arrays (N, ...) that give the input shapes, or None.
        options: They name the checkpoint, the input shapes and the data.

    Raises:
        ConverterError: When the model or any of the data cannot be used.
    """
    opened = open_torch(model, options)
    module = opened.module
    if module is None:
        network, calib, shapes, more = _open_onnx(model, example_input, options)
    else:
        network, calib, shapes, more = _export(module, example_input, options)
    inputs, seed = onnx_network.inputs(network), options.resources.seed
    random = None if calib else random_inputs(network, inputs, shapes, RANDOM_EXAMPLES, seed)
    network, notes = _with_own_batch(network, calib or random, shapes, module is not None)
    calib = calib and with_fitting_labels(calib, network, options)
    train, evaluation = read_named_data(network, options)
    notes = [*opened.notes, *notes, *data_notes(calib, evaluation)]
    unused = None
    if calib is not None:
        calib, unused = calib.split_off(options.data.samples, seed)
    return Source(
        original=network,
        network=canonicalize(network),
        module=module,
        inputs=onnx_network.inputs(network),
        shapes=shapes,
        more_shapes=more,
        calib=calib,
        train=train,
        eval=evaluation,
        origin=opened.origin,
        unused_calib=unused,
        random=random,
        notes=tuple(dict.fromkeys(notes)),
    )


def _open_onnx(model: Model, example_input: object, options: Options) -> Opened:
    """Read an ONNX network, its sample inputs and its input shapes."""
    network = open_onnx(model, options.model.trust_pickle)
    inputs = onnx_network.inputs(network)
    example = read_example(example_input, inputs)
    propose = partial(propose_shapes, network)
    return network, *read_sample_inputs(inputs, example, options, propose)


def _export(module: nn.Module, example_input: object, options: Options) -> Opened:
    """Export a torch model, on its first sample inputs, the example input or random ones."""
    inputs = inputs_of(module)
    example = read_example(example_input, inputs)
    propose = partial(propose_for_module, module, [item.name for item in inputs])
    calib, shapes, more = read_sample_inputs(inputs, example, options, propose, module)
    count, dtypes = next(iter(shapes.values()))[0], {item.name: item.dtype for item in inputs}
    data = calib or example or random_data(shapes, dtypes, count, options.resources.seed)
    feeds = data.read(np.arange(count) % data.count)
    torch_export.materialize(module, feeds)
    network = torch_export.export(module, feeds, dynamic_axes(shapes, more))
    inputs = onnx_network.inputs(network)
    for other in more:
        choose_shapes(inputs, other, None)
    return network, calib and conformed(calib, inputs), shapes, more


def _with_own_batch(
    network: ir.Model, sample: Data | None, shapes: Shapes, exported: bool
) -> tuple[ir.Model, list[str]]:
    """Fix the batch of a network that gives an example other outputs in a batch, and say so.

    Also says whether the network draws random numbers.
    """
    assert sample is not None
    batch, notes = next(iter(shapes.values()))[0], []
    fixed = exported and onnx_network.inputs(network)[0].shape[0] is not None
    if not takes_batches(network, sample.read(np.arange(2) % sample.count)):
        network, fixed = with_fixed_batch(network, batch), True
    if fixed:
        notes.append(own_batch_note(batch))
    size = onnx_network.inputs(network)[0].shape[0] or 1
    return network, [*notes, *model_notes(network, sample.read(np.arange(size) % sample.count))]


def examples(source: Source, seed: int, count: int) -> Arrays:
    """Return ``count`` sample inputs, or the network's fixed batch size; random without data."""
    count = source.inputs[0].shape[0] or count
    data = source.calib or source.random
    if data is None:
        data = random_inputs(source.original, source.inputs, source.shapes, RANDOM_EXAMPLES, seed)
    return data.read(np.arange(count) % data.count)


def samples(source: Source, seed: int) -> dict[str, Arrays]:
    """Return the inputs that a conversion is checked on, by a description of them."""
    kind = "random" if source.calib is None else "real"
    checked = {f"{kind} inputs": examples(source, seed, CHECKED_EXAMPLES)}
    if source.inputs[0].shape[0] is None:
        checked[f"one {kind} input"] = examples(source, seed, 1)
    return checked
