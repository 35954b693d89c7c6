"""Weights in files beside an ONNX file (the format's external data)."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from converter.errors import ConverterError


def weight_tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    """List the initializers' tensors, those of subgraphs included."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return [value.const_value for value in values if value.const_value is not None]


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """List the initializers' tensors that are external data."""
    return [tensor for tensor in weight_tensors(model) if isinstance(tensor, ir.ExternalTensor)]


def external_nbytes(model: ir.Model) -> int:
    """Return the bytes of the weights that are external data."""
    return sum(tensor.nbytes for tensor in external_tensors(model))


def weights_folder(model: ir.Model) -> Path | None:
    """Return the folder of the external data, or None if all weights are in memory."""
    return next((Path(tensor.base_dir).resolve() for tensor in external_tensors(model)), None)


def modification_times(model: ir.Model) -> list[tuple[str, int]]:
    """List the external data files and when each was last modified (nanoseconds)."""
    paths = sorted({str(Path(tensor.path).resolve()) for tensor in external_tensors(model)})
    return [(path, Path(path).stat().st_mtime_ns) for path in paths]


def externals_as_inputs(model: ir.Model) -> ir.Model:
    """Return the network with external weights as graph inputs of the same type."""
    external = external_tensors(model)
    if not external:
        return model
    copy = model.clone()
    for tensor in external:
        value = copy.graph.initializers.pop(str(tensor.name), None)
        if value is not None and value not in copy.graph.inputs:
            value.const_value = None
            copy.graph.inputs.append(value)
    return copy


def release_mapped(values: Iterable[ir.Value]) -> None:
    """Free the memory of memory-mapped weights; they are read again when they are needed."""
    for tensor in (value.const_value for value in values):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if isinstance(tensor.raw, mmap.mmap) and hasattr(tensor.raw, "madvise"):
            tensor.raw.madvise(mmap.MADV_DONTNEED)


def load_external(model: ir.Model, max_nbytes: int) -> None:
    """Read external data into memory, in place.

    Args:
        model: The network.
        max_nbytes: Initializers larger than this stay memory-mapped. The values of Constant nodes
            are always read: ONNX runtimes accept external data in initializers only.
    """
    for node, tensor in _external_constants(model):
        (loaded,) = ir.external_data.convert_tensors_from_external([tensor])
        node.attributes["value"] = ir.AttrTensor("value", loaded)
    for graph in model.graphs():
        for value in graph.initializers.values():
            external = value.const_value
            if isinstance(external, ir.ExternalTensor) and external.nbytes <= max_nbytes:
                (value.const_value,) = ir.external_data.convert_tensors_from_external([external])


def check_locations(model: ir.Model, path: Path) -> None:
    """Refuse external data outside of the folder of ``path``.

    Raises:
        ConverterError: When the network names such a file.
    """
    folder = path.parent.resolve()
    constants = [tensor for _, tensor in _external_constants(model)]
    for tensor in [*external_tensors(model), *constants]:
        if not (folder / tensor.location).resolve().is_relative_to(folder):
            raise ConverterError(
                f"{path} names weights outside of its folder ({tensor.location}); put them beside "
                "it and save it again."
            )


def _external_constants(model: ir.Model) -> list[tuple[ir.Node, ir.ExternalTensor]]:
    """List the Constant nodes whose value is external data."""
    constants = [
        (node, node.attributes["value"].value)
        for node in model.graph.all_nodes()
        if node.op_type == "Constant" and "value" in node.attributes
    ]
    return [(node, tensor) for node, tensor in constants if isinstance(tensor, ir.ExternalTensor)]
