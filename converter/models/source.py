"""The input of a conversion: the network as ONNX, the torch model behind it, its data."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from converter.data.data import Arrays, Data, from_arrays, random_data
from converter.data.native import arrays_by_name
from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.graph.canonicalize import canonicalize
from converter.graph.network import Input
from converter.models import export as torch_export
from converter.models.checkpoint import sha256
from converter.models.datasets import conformed, read_named_data, read_unchecked
from converter.models.input_shapes import Shapes, choose_shapes, dynamic_axes, with_known_rank
from converter.options import Options, shapes_by_name

CHECKED_EXAMPLES = 2
Model: TypeAlias = "nn.Module | onnx.ModelProto | str | Path"


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


def open_source(model: Model, example_input: object, options: Options) -> Source:
    """Load a model and its data, and export it if it is a torch model.

    Args:
        model: A torch module (not changed), an ONNX model, the path of an .onnx, .pt2 or pickle
            file, or ``package.module:factory``.
        example_input: Arrays (N, ...) that only give the input shapes, or None.
        options: They name the checkpoint, the input shapes and the data.

    Raises:
        ConverterError: When the model or any of the data cannot be used.
    """
    module, origin = _torch_model(model, options)
    if module is None:
        network = _read_network(model, options.model.trust_pickle)
        inputs = onnx_network.inputs(network)
        if not inputs:
            raise ConverterError(f"{_name(model)} has no inputs; there is nothing to feed it.")
        calib, shapes, more = _calib_and_shapes(inputs, example_input, options)
    else:
        dtype = _input_dtype(module)
        inputs = tuple(Input(name, (), dtype) for name in torch_export.input_names(module))
        calib, shapes, more = _calib_and_shapes(inputs, example_input, options)
        dtypes = {item.name: item.dtype for item in inputs}
        sample = calib or random_data(shapes, dtypes, 2, options.resources.seed)
        feeds = sample.read(np.arange(2) % sample.count)
        network = torch_export.export(module, feeds, dynamic_axes(shapes, more))
        inputs = onnx_network.inputs(network)
        for other in more:
            choose_shapes(inputs, other, None)
        calib = calib and conformed(calib, inputs)
    unused = None
    if calib is not None:
        calib, unused = calib.split_off(options.data.samples, options.resources.seed)
    train, evaluation = read_named_data(inputs, options)
    return Source(
        original=network,
        network=canonicalize(network),
        module=module,
        inputs=inputs,
        shapes=shapes,
        more_shapes=more,
        calib=calib,
        train=train,
        eval=evaluation,
        origin=origin,
        unused_calib=unused,
    )


def examples(source: Source, seed: int, count: int) -> Arrays:
    """Return ``count`` sample inputs, or the network's fixed batch size; random without data."""
    count = source.inputs[0].shape[0] or count
    dtypes = {item.name: item.dtype for item in source.inputs}
    data = source.calib or random_data(source.shapes, dtypes, count, seed)
    return data.read(np.arange(count) % data.count)


def samples(source: Source, seed: int) -> dict[str, Arrays]:
    """Return the inputs that a conversion is checked on, by a description of them."""
    checked = {"random inputs": examples(replace(source, calib=None), seed, CHECKED_EXAMPLES)}
    if source.calib is not None:
        checked["real inputs"] = examples(source, seed, CHECKED_EXAMPLES)
    return checked


def is_factory(model: Model) -> bool:
    """Tell whether a model is named by a factory, ``package.module:factory``."""
    return isinstance(model, str | Path) and ":" in str(model) and not Path(model).exists()


def _torch_model(model: Model, options: Options) -> tuple[nn.Module | None, dict[str, Any]]:
    """Return a torch model and how to build it again; None for ONNX and .pt2 inputs."""
    if isinstance(model, nn.Module):
        return torch_export.copied(model).cpu().eval(), {}
    if isinstance(model, onnx.ModelProto):
        return None, {}
    path = Path(model)
    if is_factory(model):
        arguments = dict(options.model.factory_args)
        origin: dict[str, Any] = {"factory": str(model), "factory_args": arguments}
        if options.model.checkpoint is not None and options.model.checkpoint.is_file():
            origin["checkpoint"] = str(options.model.checkpoint.resolve())
            origin["checkpoint_sha256"] = sha256(options.model.checkpoint)
        built = torch_export.build(
            str(model), arguments, options.model.checkpoint, options.model.trust_pickle
        )
        return built, origin
    if path.suffix in (".pt", ".pth", ".th", ".tar"):
        return torch_export.unpickle(path, options.model.trust_pickle), {}
    return None, {}


def _input_dtype(module: nn.Module) -> np.dtype:
    """Return the type of a torch model's inputs: the type of its parameters."""
    dtype = torch_export.float_type(module)
    if dtype not in (torch.float32, torch.float16):
        name = str(dtype).removeprefix("torch.")
        raise ConverterError(
            f"The model is in {name}, for which onnxruntime has no convolution on the CPU; give "
            "it as float32 (model.float())."
        )
    return torch.zeros(0, dtype=dtype).numpy().dtype


def _read_network(model: Model, trust_pickle: bool) -> ir.Model:
    """Read an ONNX model or file, or a .pt2 program as ONNX."""
    if isinstance(model, onnx.ModelProto):
        return _from_proto(model)
    path = Path(str(model))
    if path.suffix == ".pt2":
        return torch_export.export_program(path, trust_pickle)
    return onnx_network.load(path)


def _from_proto(model: onnx.ModelProto) -> ir.Model:
    """Check an ONNX model in memory as a file is checked."""
    with tempfile.TemporaryDirectory(prefix="flatconv") as folder:
        path = Path(folder) / "model.onnx"
        try:
            onnx.save(model, path)
            return onnx_network.load(path)
        except (ConverterError, ValueError, TypeError) as error:  # protobuf's limit of 2 GB, too
            problem = str(error).replace(str(path), "it")
            raise ConverterError(f"The onnx.ModelProto cannot be used: {problem}") from None


def _name(model: Model) -> str:
    return "The onnx.ModelProto" if isinstance(model, onnx.ModelProto) else str(model)


def _calib_and_shapes(
    inputs: Sequence[Input], example_input: object, options: Options
) -> tuple[Data | None, Shapes, tuple[Shapes, ...]]:
    """Read the sample inputs, and choose the input shapes: the main ones and further ones.

    Inputs with empty shapes are those of a torch model; their sample inputs are checked after its
    export.
    """
    names = [item.name for item in inputs]
    given, *further = shapes_by_name(options.model.input_shape, names)
    calib = options.data.calib
    data = None if calib is None else read_unchecked(calib, inputs, options)
    if example_input is not None:
        arrays = arrays_by_name(example_input, "the example input", names)
        sample = from_arrays(arrays, "the example input", names)
        given |= {n: (sample.count, *a.shape[1:]) for n, a in sample.read(np.arange(1)).items()}
    known = all(item.shape for item in inputs)
    if not known:
        inputs = with_known_rank(inputs, given, data)
    shapes = choose_shapes(inputs, given, data)
    more = tuple(shapes | other for other in further)
    if known:
        more = tuple(choose_shapes(inputs, other, None) for other in more)
    return data and conformed(data, inputs), shapes, more
