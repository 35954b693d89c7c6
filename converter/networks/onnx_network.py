"""An ONNX graph: load, read its convolutions, run, observe, save."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from google.protobuf.message import DecodeError

from converter.data import Arrays, Data
from converter.errors import ConverterError, first_line
from converter.networks.runtime import open_file, run

LARGEST_BATCH = 64


@dataclass(frozen=True)
class Input:
    """An input of a network: ``shape`` has None where a size is free; ``dtype`` is numpy's."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype


def load(path: Path) -> ir.Model:
    """Read and check an ONNX file.

    Raises:
        ConverterError: When ``path`` is not a readable, valid ONNX file.
    """
    if not path.exists():
        raise ConverterError(f"{path} does not exist.")
    if path.is_dir():
        raise ConverterError(f"{path} is a folder; name an .onnx file.")
    try:
        onnx.checker.check_model(str(path))
        model = ir.load(path)
        ir.external_data.load_to_model(model)
    except (
        DecodeError, onnx.checker.ValidationError, ValueError, KeyError, TypeError, RuntimeError,
    ) as error:  # fmt: skip
        raise ConverterError(
            f"{path} is not a valid ONNX file (empty, truncated or of another kind): "
            f"{first_line(error)}"
        ) from None
    except OSError as error:
        raise ConverterError(f"{path} cannot be read: {first_line(error)}") from None
    if not model.graph.outputs:
        raise ConverterError(f"{path} is not a valid ONNX file: its graph has no outputs.")
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``, weights inside."""
    ir.save(model, path)


def inputs(model: ir.Model) -> tuple[Input, ...]:
    """List the inputs that a caller must feed (initializers listed as inputs are left out)."""
    found = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None or value.dtype is None:
            raise ConverterError(
                f"Input {value.name!r} of the network has no tensor type or shape."
            )
        shape = tuple(dim if isinstance(dim, int) else None for dim in value.shape)
        found.append(Input(str(value.name), shape, value.dtype.numpy()))
    return tuple(found)


def free_batch(model: ir.Model, name: str = "batch") -> ir.Model:
    """Return a copy in which the symbol of the inputs' free first axes is called ``name``."""
    copy = model.clone()
    shapes = [v.shape for v in copy.graph.inputs if v.shape is not None and len(v.shape)]
    symbols = {shape[0].value for shape in shapes if not isinstance(shape[0], int)} - {None}
    for value in [*copy.graph.inputs, *(v for node in copy.graph for v in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    name if isinstance(dim, ir.SymbolicDim) and dim.value in symbols else dim
                    for dim in value.shape
                ]
            )
    return copy


def open_session(
    model: ir.Model | Path, threads: int = 1, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """Open a network in onnxruntime.

    Raises:
        ConverterError: When the provider is not there or onnxruntime cannot run the network.
    """
    source = model if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return open_file(source, threads, provider)


def observe(model: ir.Model, names: Iterable[str], feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Run ``model`` and return the values of the inner tensors ``names``."""
    copy = model.clone()
    values = _values(copy)
    present = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(values[n] for n in dict.fromkeys(names) if n not in present)
    outputs = run(open_session(copy), feeds)
    return {name: outputs[name] for name in names}


def observe_batches(
    model: ir.Model,
    names: Sequence[str],
    data: Data,
    batch_size: int | None,
    memory: float,
    threads: int,
) -> Iterator[tuple[float, Arrays]]:
    """Run ``model`` over ``data`` once and give inner tensors, batch by batch.

    Args:
        model: The network.
        names: Tensors wanted.
        data: Its inputs.
        batch_size: The batch size that the network insists on, or None.
        memory: Bytes that the tensors of one batch may take.
        threads: Of onnxruntime.

    Yields:
        The share of the data that is done, and the tensors by name; where the network insists
        on a batch size, an incomplete last batch is left out.
    """
    copy = model.clone()
    values = _values(copy)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    session = open_session(copy, threads)
    first = run(session, data.read(np.arange(batch_size or 1) % data.count))
    each = sum(array.nbytes for array in first.values()) / (batch_size or 1)
    size = batch_size or int(min(max(memory / max(each, 1), 1), LARGEST_BATCH))
    for indices, feeds in data.batches(size):
        if batch_size and len(indices) != batch_size:
            break
        yield (int(indices[-1]) + 1) / data.count, run(session, feeds)


def observe_shapes(
    model: ir.Model, names: Sequence[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, ...]]:
    """Run ``model`` and return the shapes of the tensors ``names``."""
    if not names:
        return {}
    copy = model.clone()
    values = _values(copy)
    copy.graph.outputs.clear()
    for number, name in enumerate(names):
        shape = ir.node("Shape", [values[name]])
        shape.outputs[0].name = f"shape_of_{number}"
        shape.outputs[0].dtype = ir.DataType.INT64
        copy.graph.append(shape)
        copy.graph.outputs.append(shape.outputs[0])
    outputs = run(open_session(copy), feeds)
    return {name: tuple(map(int, outputs[f"shape_of_{n}"])) for n, name in enumerate(names)}


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array behind an initializer or Constant node, or None for anything else."""
    if value is None or (value.is_graph_input() and not value.is_initializer()):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def attributes(node: ir.Node) -> dict[str, Any]:
    """Give a node's attributes as plain values."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """All named values of the main graph."""
    found = {str(value.name): value for value in model.graph.inputs}
    found |= {str(value.name): value for node in model.graph for value in node.outputs}
    return found
