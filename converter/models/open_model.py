"""A model as the user names it, opened as a torch model or as an ONNX network."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir
import torch
from torch import nn

from converter.data.data import Input
from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.models import export as torch_export
from converter.models.checkpoint import sha256
from converter.models.program import export_program
from converter.options import Options

Model: TypeAlias = "nn.Module | onnx.ModelProto | str | Path"


def is_factory(model: Model) -> bool:
    """Tell whether a model is named by a factory, ``package.module:factory``."""
    return isinstance(model, str | Path) and ":" in str(model) and not Path(model).exists()


def open_torch(model: Model, options: Options) -> tuple[nn.Module | None, dict[str, Any]]:
    """Return a torch model and how to build it again; None for ONNX and .pt2 inputs.

    Raises:
        ConverterError: When the model cannot be copied, built or read.
    """
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


def inputs_of(module: nn.Module) -> tuple[Input, ...]:
    """Return the inputs of a torch model, whose shapes are not known, in its type.

    Raises:
        ConverterError: When onnxruntime lacks the type.
    """
    dtype = torch_export.float_type(module)
    if dtype not in (torch.float32, torch.float16):
        name = str(dtype).removeprefix("torch.")
        raise ConverterError(
            f"The model is in {name}, for which onnxruntime has no convolution on the CPU; give "
            "it as float32 (model.float())."
        )
    kind = torch.zeros(0, dtype=dtype).numpy().dtype
    return tuple(Input(name, (), kind) for name in torch_export.input_names(module))


def open_onnx(model: Model, trust_pickle: bool) -> ir.Model:
    """Read an ONNX model or file, or a .pt2 program as ONNX.

    Raises:
        ConverterError: When it cannot be read, or has no inputs.
    """
    if isinstance(model, onnx.ModelProto):
        network = _from_proto(model)
    elif Path(model).suffix == ".pt2":  # type: ignore[arg-type]
        network = export_program(Path(str(model)), trust_pickle)
    else:
        network = onnx_network.load(Path(str(model)))
    if not onnx_network.inputs(network):
        name = "The onnx.ModelProto" if isinstance(model, onnx.ModelProto) else str(model)
        raise ConverterError(f"{name} has no inputs; there is nothing to feed it.")
    return network


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
