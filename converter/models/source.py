"""What is to be converted: the network as ONNX, the torch model behind it, its sample inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from converter.data.data import Arrays, Data, conform, from_arrays, random_data
from converter.data.images import Images
from converter.data.readers import load as load_data
from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.graph.canonicalize import canonicalize
from converter.graph.network import Input
from converter.models import export as torch_export
from converter.models.checkpoint import sha256
from converter.options import Options, shapes_by_name
from converter.processes import SINGLE_PROCESS, ProcessGroup

CHECKED_EXAMPLES = 2
LARGEST_INPUT = 2**30  # numbers


@dataclass(frozen=True)
class Source:
    """What is to be converted.

    Attributes:
        original: The network as the user gave it, or as it was exported.
        network: The same in normal form, which all planning works on.
        module: The torch model it came from, or None.
        inputs: The network's inputs.
        shapes: The input shapes worked with.
        more_shapes: Further input shapes, which are timed too.
        calib: Sample inputs, or None.
        train: Training inputs, or None.
        eval: Inputs to score on, or None.
        origin: How to build the torch model again, as JSON values.
        spare: Sample inputs beyond those that ``calib`` was limited to, in random order, or None.
        place: Where work on the sample inputs runs; several processes share it.
    """

    original: ir.Model
    network: ir.Model
    module: nn.Module | None
    inputs: tuple[Input, ...]
    shapes: dict[str, tuple[int, ...]]
    more_shapes: tuple[dict[str, tuple[int, ...]], ...]
    calib: Data | None
    train: Data | None
    eval: Data | None
    origin: dict[str, Any]
    spare: Data | None = None
    place: ProcessGroup = SINGLE_PROCESS


def open_source(
    model: nn.Module | str | Path,
    example_input: object,
    options: Options,
    calib: object,
) -> Source:
    """Load what the user named, export it if it is a torch model, and settle the input shapes.

    Raises:
        ConverterError: When the model or any of the data that ``options`` names cannot be used.
    """
    module, origin = _torch_model(model, options)
    origin["options"] = options.to_json()
    if module is None:
        network = _read_network(Path(str(model)), options.model.trust_pickle)
        spec = onnx_network.inputs(network)
        if not spec:
            raise ConverterError(f"{model} has no inputs; there is nothing to feed it.")
        shapes, more, calibration, spare = _settle(spec, example_input, options, calib)
        train, scored = read_named_data(spec, options)
        return Source(
            network,
            canonicalize(network),
            None,
            spec,
            shapes,
            more,
            calibration,
            train,
            scored,
            origin,
            spare,
        )
    dtype = _input_type(module)
    unknown = [Input(name, (), dtype) for name in torch_export.input_names(module)]
    shapes, more, calibration, spare = _settle(unknown, example_input, options, calib)
    noise = random_data(
        shapes, {item.name: item.dtype for item in unknown}, 2, options.resources.seed
    )
    sample = calibration or noise
    feeds = sample.read(np.arange(2) % sample.count)
    network = torch_export.export(module, feeds, _varying(shapes, more))
    spec = onnx_network.inputs(network)
    for other in more:
        example_shapes(spec, other, None)
    if calibration is not None:
        calibration = _conformed(calibration, spec)
    train, scored = read_named_data(spec, options)
    return Source(
        network,
        canonicalize(network),
        module,
        spec,
        shapes,
        more,
        calibration,
        train,
        scored,
        origin,
        spare,
    )


def examples(source: Source, seed: int, count: int) -> Arrays:
    """Give ``count`` sample inputs, or as many as the network insists on; random without data."""
    count = source.inputs[0].shape[0] or count
    dtypes = {item.name: item.dtype for item in source.inputs}
    data = source.calib or random_data(source.shapes, dtypes, count, seed)
    return data.read(np.arange(count) % data.count)


def samples(source: Source, seed: int) -> dict[str, Arrays]:
    """Give the inputs that a conversion is checked on."""
    found = {"random inputs": examples(replace(source, calib=None), seed, CHECKED_EXAMPLES)}
    if source.calib is not None:
        found["real inputs"] = examples(source, seed, CHECKED_EXAMPLES)
    return found


def read_data(text: str, spec: Sequence[Input], options: Options) -> Data:
    """Read data for the inputs ``spec``."""
    names = [item.name for item in spec]
    data = load_data(text, names, Images.of(options), torch_export.find_callable, _bytes(spec))
    return _conformed(data, spec)


def read_named_data(spec: Sequence[Input], options: Options) -> tuple[Data | None, Data | None]:
    """Read ``--train`` and ``--eval`` for the inputs ``spec``; None for what is not named.

    Where a network is to be trained, all of ``--calib`` stands in for ``--train``, unlabelled.
    """
    named = options.training.train or (options.data.calib if options.training.trains else None)
    train = read_data(named, spec, options) if named else None
    if train is not None and options.training.augment == "none":
        train = train.still()
    if train is not None and not (options.training.train and options.training.labels):
        train = train.unlabelled()
    return train, read_scored_data(options.data.eval, spec, options) if options.data.eval else None


def read_scored_data(text: str, spec: Sequence[Input], options: Options) -> Data:
    """Read data to score on for the inputs ``spec``.

    Raises:
        ConverterError: When its labels are no classes.
    """
    data = read_data(text, spec, options)
    if data.labels is None and data.lessons is not None:
        raise ConverterError(
            f"The labels y of {text} are not one class an example, as accuracy takes them; leave "
            "them out, or score a conversion by --evaluate without --eval."
        )
    return data


def example_shapes(
    spec: Sequence[Input], given: Mapping[str, tuple[int, ...]], data: Data | None
) -> dict[str, tuple[int, ...]]:
    """Settle the shape of every input: as given, else as the data, else as the network says.

    Raises:
        ConverterError: When a size stays open or contradicts the network.
    """
    seen = {} if data is None else data.read(np.arange(1))
    shapes = {}
    for item in spec:
        shape = given.get(item.name)
        if shape is None and item.name in seen:
            shape = seen[item.name].shape
        if shape is None:
            if None in item.shape[1:]:
                wanted = ",".join("?" if n is None else str(n) for n in item.shape)
                raise ConverterError(
                    f"Input {item.name!r} has free sizes ({wanted}); give --input-shape "
                    f"{item.name}:... or data."
                )
            shape = tuple(n or 1 for n in item.shape)
        fits = len(shape) == len(item.shape) and all(
            want in (None, got) for want, got in zip(item.shape[1:], shape[1:])
        )
        if not fits:
            wanted = ",".join("?" if n is None else str(n) for n in item.shape)
            raise ConverterError(
                f"Input {item.name!r} takes shape {wanted}, not {','.join(map(str, shape))}."
            )
        whole = (item.shape[0] or shape[0], *shape[1:]) if item.shape else shape
        if math.prod(whole) > LARGEST_INPUT:
            wanted = ",".join(map(str, whole))
            raise ConverterError(f"Input {item.name!r} of shape {wanted} is too large to be made.")
        shapes[item.name] = shape
    return shapes


def _torch_model(
    model: nn.Module | str | Path, options: Options
) -> tuple[nn.Module | None, dict[str, Any]]:
    """Build or read a torch model, and say how it is built again; None for ONNX and .pt2 files."""
    if isinstance(model, nn.Module):
        return torch_export.copied(model).cpu().eval(), {}
    path = Path(model)
    if ":" in str(model) and not path.exists():
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


def _input_type(module: nn.Module) -> np.dtype:
    """Give the type of a torch model's inputs: that of its parameters."""
    kind = torch_export.float_type(module)
    if kind not in (torch.float32, torch.float16):
        name = str(kind).removeprefix("torch.")
        raise ConverterError(
            f"The model is in {name}, for which onnxruntime has no convolution on the CPU; give "
            "it as float32 (model.float())."
        )
    return torch.zeros(0, dtype=kind).numpy().dtype


def _read_network(path: Path, trust_pickle: bool) -> ir.Model:
    """Read an ONNX file, or a .pt2 program as ONNX."""
    if path.suffix == ".pt2":
        return torch_export.export_program(path, trust_pickle)
    return onnx_network.load(path)


def _settle(
    spec: Sequence[Input], example_input: object, options: Options, calib: object
) -> tuple[
    dict[str, tuple[int, ...]], tuple[dict[str, tuple[int, ...]], ...], Data | None, Data | None
]:
    """Read the sample inputs, and what is left of them; settle the input shapes, main and further.

    A ``spec`` whose shapes are empty is that of a torch model, which says nothing of its inputs.
    """
    names = [item.name for item in spec]
    given, *further = shapes_by_name(options.model.input_shape, names)
    data = None
    if calib is not None:
        data = from_arrays(_as_arrays(calib, names), "the given calibration inputs", names)
    elif options.data.calib:
        find = torch_export.find_callable
        data = load_data(options.data.calib, names, Images.of(options), find, _bytes(spec))
    if example_input is not None:
        sample = from_arrays(_as_arrays(example_input, names), "the example input", names)
        given |= {n: (sample.count, *a.shape[1:]) for n, a in sample.read(np.arange(1)).items()}
    known = all(item.shape for item in spec)
    if not known:
        spec = _free_spec(spec, given, data)
    shapes = example_shapes(spec, given, data)
    more = tuple(shapes | other for other in further)
    if known:
        more = tuple(example_shapes(spec, other, None) for other in more)
    spare = None
    if data is not None:
        data, spare = _conformed(data, spec).split_off(options.data.samples, options.resources.seed)
    return shapes, more, data, spare


def _free_spec(
    spec: Sequence[Input], given: Mapping[str, tuple[int, ...]], data: Data | None
) -> list[Input]:
    """Give a torch model's inputs as many free axes as the shapes that are known of them."""
    seen = {} if data is None else data.read(np.arange(1))
    known = {name: array.ndim for name, array in seen.items()}
    known |= {name: len(shape) for name, shape in given.items()}
    for item in spec:
        if item.name not in known:
            raise ConverterError(
                f"The shape of input {item.name!r} is not known; give "
                f"--input-shape {item.name}:1,3,32,32."
            )
    return [replace(item, shape=(None,) * known[item.name]) for item in spec]


def _varying(
    shapes: Mapping[str, tuple[int, ...]], more: Sequence[Mapping[str, tuple[int, ...]]]
) -> dict[str, set[int]]:
    """List the axes of each input in which its shapes differ; the batch axis is always one."""
    return {
        name: {0} | {n for other in more for n, size in enumerate(other[name]) if size != shape[n]}
        for name, shape in shapes.items()
    }


def free_axes(spec: Sequence[Input]) -> dict[str, list[int]]:
    """List the axes of each input whose size is free."""
    return {item.name: [n for n, size in enumerate(item.shape) if size is None] for item in spec}


def _bytes(spec: Sequence[Input]) -> set[str]:
    """Name the inputs that take bytes as they are."""
    return {item.name for item in spec if item.dtype == np.uint8}


def _conformed(data: Data, spec: Sequence[Input]) -> Data:
    return conform(data, {i.name: i.shape for i in spec}, {i.name: i.dtype for i in spec})


def _as_arrays(values: object, names: Sequence[str]) -> Arrays:
    """Take an array, a tensor, a tuple of them, or a dictionary, as inputs by name."""
    if isinstance(values, Mapping):
        items = {str(name): value for name, value in values.items()}
    elif isinstance(values, (tuple, list)):
        items = dict(zip(names, values))
    else:
        items = {names[0]: values}
    return {
        name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for name, value in items.items()
    }
