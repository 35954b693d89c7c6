"""An ONNX graph: load, read its convolutions, run, observe, save."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from converter.data.data import Arrays
from converter.errors import ConverterError, first_line
from converter.runtime.ort import OnnxRuntime, run
from converter.runtime.runtime import Runtime, Session

LARGEST_BATCH = 64
# A protobuf message must stay below 2 GB. Weights that take more stay in files of their own, from
# where they are mapped into memory and shared by all copies of a network.
LARGEST_FILE = 2 * 10**9
WEIGHTS_SUFFIX = ".data"
SMALL_TENSOR = 4096  # bytes up to which a tensor may say a shape, and is read in any case


@dataclass(frozen=True)
class Input:
    """An input of a network: ``shape`` has None where a size is free; ``dtype`` is numpy's."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype


def load(path: Path, largest: int = LARGEST_FILE) -> ir.Model:
    """Read and check an ONNX file.

    Args:
        path: The file.
        largest: Bytes of weights in files of their own from which on they stay there, mapped.

    Raises:
        ConverterError: When ``path`` is not a readable, valid ONNX file, or names weights outside
            of its folder.
    """
    if not path.exists():
        raise ConverterError(f"{path} does not exist.")
    if path.is_dir():
        raise ConverterError(f"{path} is a folder; name an .onnx file.")
    try:
        model = ir.load(path.absolute())
        _check_locations(model, path)
        onnx.checker.check_model(str(path))
        _load_constants(model)
        _load_weights(model, 2**63 if external_bytes(model) < largest else SMALL_TENSOR)
        for tensor in _tensors(model):
            tensor.numpy()  # a view, that has as many numbers as the shape says
    except ConverterError:
        raise
    except (
        DecodeError,
        onnx.checker.ValidationError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
    ) as error:
        raise ConverterError(
            f"{path} is not a valid ONNX file (empty, truncated or of another kind): "
            f"{first_line(error)}"
        ) from None
    except OSError as error:
        raise ConverterError(f"{path} cannot be read: {first_line(error)}") from None
    if not model.graph.outputs:
        raise ConverterError(f"{path} is not a valid ONNX file: its graph has no outputs.")
    return model


def save(model: ir.Model, path: Path, largest: int = LARGEST_FILE) -> None:
    """Write ``model`` to ``path``, weights inside; beside it in ``path.data`` if it is too large.

    Args:
        model: Left as it is.
        path: The file.
        largest: Bytes from which on a network is too large.
    """
    if size(model) < largest:
        ir.save(ir.external_data.load_to_model(model.clone()), path)
        return
    # clones share tensors: writing sets those of the clone alone to the new file
    ir.save(model.clone(), path, external_data=f"{path.name}{WEIGHTS_SUFFIX}")
    release(model.graph.initializers.values())


def size(model: ir.Model) -> int:
    """Bytes of the network as a file, weights included."""
    held = _held_bytes(model)
    if held < LARGEST_FILE:
        held = ir.to_proto(model).ByteSize()
    return held + external_bytes(model)


def external_bytes(model: ir.Model) -> int:
    """Bytes of the weights that are in files of their own."""
    return sum(tensor.nbytes for tensor in _external(model))


def weights_folder(model: ir.Model) -> Path | None:
    """Give the folder of the files that hold weights, or None where all are in memory."""
    return next((Path(tensor.base_dir).resolve() for tensor in _external(model)), None)


def written(model: ir.Model) -> list[tuple[str, int]]:
    """Say which files hold weights, and when they were written last (nanoseconds)."""
    paths = sorted({str(Path(tensor.path).resolve()) for tensor in _external(model)})
    return [(path, Path(path).stat().st_mtime_ns) for path in paths]


def without_files(model: ir.Model) -> ir.Model:
    """Return the network with weights in files of their own as inputs of the same type."""
    elsewhere = _external(model)
    if not elsewhere:
        return model
    copy = model.clone()
    for tensor in elsewhere:
        value = copy.graph.initializers.pop(str(tensor.name), None)
        if value is not None and value not in copy.graph.inputs:
            value.const_value = None
            copy.graph.inputs.append(value)
    return copy


def release(values: Iterable[ir.Value]) -> None:
    """Give back the memory of mapped weights; they are read again when they are needed."""
    for tensor in (value.const_value for value in values):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if isinstance(tensor.raw, mmap.mmap) and hasattr(tensor.raw, "madvise"):
            tensor.raw.madvise(mmap.MADV_DONTNEED)


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
        if any(size is not None and size < 0 for size in shape):
            raise ConverterError(f"Input {value.name!r} of the network has a size below 0.")
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
    model: ir.Model | Path, threads: int = 1, runtime: Runtime | None = None
) -> Session:
    """Open a network in a runtime: the given one, or onnxruntime on ``threads`` threads.

    Raises:
        ConverterError: When the runtime cannot run the network.
    """
    runtime = runtime or OnnxRuntime(threads)
    if isinstance(model, Path):
        return runtime.open(model)
    release(model.graph.initializers.values())  # the runtime reads them itself
    if _held_bytes(model) < LARGEST_FILE:
        return runtime.open(ir.to_proto(model).SerializeToString(), weights_folder(model))
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "network.onnx")
        return runtime.open(Path(folder) / "network.onnx")


def observe_batches(
    model: ir.Model,
    names: Sequence[str],
    batches: Iterable[Arrays],
    threads: int = 1,
) -> Iterator[Arrays]:
    """Run ``model`` and give inner tensors, batch by batch.

    Args:
        model: The network.
        names: Tensors wanted.
        batches: Its inputs.
        threads: Of onnxruntime.

    Yields:
        The tensors by name.
    """
    copy = model.clone()
    values = _values(copy)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    session = open_session(copy, threads)
    for feeds in batches:
        yield run(session, feeds)


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


def standard(node: ir.Node) -> bool:
    """Tell an operator of ONNX from one of the same name by somebody else."""
    return node.domain in ("", "ai.onnx")


def attributes(node: ir.Node) -> dict[str, Any]:
    """Give a node's attributes as plain values."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    """List the weights."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return [value.const_value for value in values if value.const_value is not None]


def _external(model: ir.Model) -> list[ir.ExternalTensor]:
    """List the weights that are in files of their own."""
    return [tensor for tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)]


def _held_bytes(model: ir.Model) -> int:
    """Bytes of the weights that are in memory."""
    return sum(t.nbytes for t in _tensors(model) if not isinstance(t, ir.ExternalTensor))


def _load_constants(model: ir.Model) -> None:
    """Read what Constant nodes hold in files of their own; ONNX knows no other place for it."""
    for node, tensor in _external_constants(model):
        (loaded,) = ir.external_data.convert_tensors_from_external([tensor])
        node.attributes["value"] = ir.AttrTensor("value", loaded)


def _external_constants(model: ir.Model) -> list[tuple[ir.Node, ir.ExternalTensor]]:
    """List the Constant nodes whose numbers are in files of their own."""
    found = [
        (node, node.attributes["value"].value)
        for node in model.graph.all_nodes()
        if node.op_type == "Constant" and "value" in node.attributes
    ]
    return [(node, tensor) for node, tensor in found if isinstance(tensor, ir.ExternalTensor)]


def _load_weights(model: ir.Model, largest: int) -> None:
    """Read weights of at most ``largest`` bytes each from files of their own."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= largest:
                (value.const_value,) = ir.external_data.convert_tensors_from_external([tensor])


def _check_locations(model: ir.Model, path: Path) -> None:
    """Refuse weights in files outside of the network's folder."""
    home = path.parent.resolve()
    for tensor in [*_external(model), *(tensor for _, tensor in _external_constants(model))]:
        if not (home / tensor.location).resolve().is_relative_to(home):
            raise ConverterError(
                f"{path} names weights outside of its folder ({tensor.location}); put them beside "
                "it and save it again."
            )


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """All named values of the main graph."""
    found = {str(value.name): value for value in model.graph.inputs}
    found |= model.graph.initializers
    found |= {str(value.name): value for node in model.graph for value in node.outputs}
    return found
