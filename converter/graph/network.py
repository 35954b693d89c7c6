"""An ONNX network: load, save, run, and read its inputs and inner tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from converter.data.data import Arrays
from converter.data.inputs import Input as Input
from converter.errors import ConverterError, first_line
from converter.graph.batch_axes import batch_axis
from converter.graph.external import (
    check_locations,
    external_nbytes,
    load_external,
    release_mapped,
    weight_tensors,
    weights_folder,
)
from converter.runtime.ort import OnnxRuntime, run
from converter.runtime.runtime import Runtime, Session

MAX_BATCH = 64
# A protobuf message must stay below 2 GB. Larger weights stay in external files, which are mapped
# into memory and shared by all copies of a network.
MAX_FILE_BYTES = 2 * 10**9
EXTERNAL_SUFFIX = ".data"
SMALL_TENSOR_BYTES = 4096  # such a tensor may hold a shape and is always read


def load(path: Path, max_nbytes: int = MAX_FILE_BYTES) -> ir.Model:
    """Read and check an ONNX file.

    Args:
        path: The file.
        max_nbytes: External weights that together take this much or more stay memory-mapped.

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
        _free_negative_sizes(model)
        check_locations(model, path)
        onnx.checker.check_model(str(path))
        mapped = external_nbytes(model) >= max_nbytes
        load_external(model, SMALL_TENSOR_BYTES if mapped else 2**63)
        for tensor in weight_tensors(model):
            tensor.numpy()  # a view; raises if the data do not fill the shape
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


def _free_negative_sizes(model: ir.Model) -> None:
    """Make sizes below 0 free sizes, as paddle2onnx and others mean them."""
    for graph in model.graphs():
        for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
            if value.shape is not None and any(isinstance(n, int) and n < 0 for n in value.shape):
                value.shape = ir.Shape(
                    [None if isinstance(n, int) and n < 0 else n for n in value.shape]
                )


def save(model: ir.Model, path: Path, max_nbytes: int = MAX_FILE_BYTES) -> None:
    """Write ``model`` to ``path``.

    Args:
        model: Left as it is.
        path: The file.
        max_nbytes: The weights of a network of this size or more are written to ``path.data``.
    """
    if nbytes(model) < max_nbytes:
        ir.save(ir.external_data.load_to_model(model.clone()), path)
        return
    # Saving makes the tensors of its argument point to the new file; those of ``model`` must not.
    ir.save(model.clone(), path, external_data=f"{path.name}{EXTERNAL_SUFFIX}")
    release_mapped(model.graph.initializers.values())


def nbytes(model: ir.Model) -> int:
    """Return the bytes of the network as a file, external weights included."""
    in_memory = _nbytes_in_memory(model)
    if in_memory < MAX_FILE_BYTES:
        in_memory = ir.to_proto(model).ByteSize()
    return in_memory + external_nbytes(model)


def inputs(model: ir.Model) -> tuple[Input, ...]:
    """List the inputs that a caller must feed; initializers listed as inputs are left out.

    Raises:
        ConverterError: When an input has no tensor type or no shape.
    """
    listed = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None or value.dtype is None:
            raise ConverterError(
                f"Input {value.name!r} of the network has no tensor type or shape."
            )
        shape = tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape)
        listed.append(Input(str(value.name), shape, value.dtype.numpy(), batch_axis(value)))
    return tuple(listed)


def count_params(model: ir.Model) -> int:
    """Count the weights of the network, in floating point or quantized."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    values += [n.outputs[0] for n in model.graph.all_nodes() if n.op_type == "Constant"]
    kinds = ("QuantizeLinear", "DequantizeLinear")
    conversions = [node for node in model.graph.all_nodes() if node.op_type in kinds]
    scales = {value for node in conversions for value in node.inputs[1:]}
    quantized = {n.inputs[0] for n in conversions if n.op_type == "DequantizeLinear"}
    weights = [
        (value in quantized, ir.convenience.get_const_tensor(value))
        for value in values
        if value not in scales
    ]
    return sum(t.size for q, t in weights if t is not None and (q or t.dtype.is_floating_point()))


def name_batch_axis(model: ir.Model, name: str = "batch") -> ir.Model:
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
    """Open a network in ``runtime``, or in onnxruntime on ``threads`` threads if it is None.

    Raises:
        ConverterError: When the runtime cannot run the network.
    """
    runtime = runtime or OnnxRuntime(threads)
    if isinstance(model, Path):
        return runtime.open(model)
    release_mapped(model.graph.initializers.values())  # the runtime reads them itself
    if _nbytes_in_memory(model) < MAX_FILE_BYTES:
        return runtime.open(ir.to_proto(model).SerializeToString(), weights_folder(model))
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "network.onnx")
        return runtime.open(Path(folder) / "network.onnx")


def compute_values(
    model: ir.Model,
    names: Sequence[str],
    batches: Iterable[Arrays],
    threads: int = 1,
) -> Iterator[Arrays]:
    """Run ``model`` and yield inner tensors, batch by batch.

    Args:
        model: The network.
        names: Tensors to return.
        batches: Inputs of the network.
        threads: Threads of onnxruntime.

    Yields:
        The tensors by name.
    """
    copy = model.clone()
    values = values_by_name(copy)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    session = open_session(copy, threads)
    for feeds in batches:
        yield run(session, feeds)


def compute_shapes(
    model: ir.Model, names: Sequence[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, ...]]:
    """Run ``model`` on ``feeds`` and return the shapes of the tensors ``names``."""
    return next(compute_shapes_of_batches(model, names, [feeds])) if names else {}


def compute_shapes_of_batches(
    model: ir.Model, names: Sequence[str], batches: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Run ``model`` and yield the shapes of the tensors ``names``, batch by batch."""
    copy = model.clone()
    values = values_by_name(copy)
    copy.graph.outputs.clear()
    for number, name in enumerate(names):
        shape = ir.node("Shape", [values[name]])
        shape.outputs[0].name = f"shape_of_{number}"
        shape.outputs[0].dtype = ir.DataType.INT64
        copy.graph.append(shape)
        copy.graph.outputs.append(shape.outputs[0])
    session = open_session(copy)
    for feeds in batches:
        outputs = run(session, feeds)
        yield {n: tuple(map(int, outputs[f"shape_of_{i}"])) for i, n in enumerate(names)}


def values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Return the named values of the main graph, initializers included."""
    return ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array behind an initializer or Constant node, or None for anything else."""
    if value is None or (value.is_graph_input() and not value.is_initializer()):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def weight_value(name: str, array: np.ndarray) -> ir.Value:
    """Return a value for an initializer that holds ``array``."""
    return ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))


def in_onnx_domain(node: ir.Node) -> bool:
    """Whether a node is an operator of ONNX itself, not of another domain with the same name."""
    return node.domain in ("", "ai.onnx")


def attributes(node: ir.Node) -> dict[str, Any]:
    """Return a node's attributes as plain values."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def subgraph_nodes(node: ir.Node) -> list[ir.Node]:
    """List the nodes in a node's subgraphs, at any depth."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += attribute.as_graphs()
    return [inner for graph in graphs for inner in graph.all_nodes()]


def _nbytes_in_memory(model: ir.Model) -> int:
    """Return the bytes of the weights that are in memory."""
    return sum(t.nbytes for t in weight_tensors(model) if not isinstance(t, ir.ExternalTensor))
