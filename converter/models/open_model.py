"""A model as the user names it, opened as a torch model or as an ONNX network."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir
import torch
from torch import nn

from converter.data.inputs import Input
from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.graph.batch_axes import examples_first
from converter.models.checkpoint import sha256
from converter.models.export import float_type, input_names
from converter.models.factory import build, unpickle
from converter.models.program import export_program
from converter.models.wrappers import copied, fold_hooks, unwrapped
from converter.options import Options

Model: TypeAlias = "nn.Module | onnx.ModelProto | str | Path"


def is_factory(model: Model) -> bool:
    """Tell whether a model is named by a factory, ``package.module:factory``."""
    return isinstance(model, str | Path) and ":" in str(model) and not Path(model).exists()


@dataclass(frozen=True)
class OpenedModule:
    """A torch model.

    Attributes:
        module: The model, in evaluation mode; None for ONNX and .pt2 inputs.
        origin: How to build it again, as JSON values.
        notes: Sentences on its checkpoint.
    """

    module: nn.Module | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_torch(model: Model, options: Options) -> OpenedModule:
    """Copy, build or read a torch model, without wrappers and with plain weights.

    Raises:
        ConverterError: When the model cannot be copied, built or read.
    """
    if isinstance(model, nn.Module):
        module = copied(unwrapped(model)).cpu().eval()
        return OpenedModule(fold_hooks(module))
    if isinstance(model, onnx.ModelProto):
        return OpenedModule()
    path, values = Path(model), options.model
    if is_factory(model):
        arguments = dict(values.factory_args)
        origin: dict[str, Any] = {"factory": str(model), "factory_args": arguments}
        if values.checkpoint is not None and values.checkpoint.is_file():
            origin["checkpoint"] = str(values.checkpoint.resolve())
            origin["checkpoint_sha256"] = sha256(values.checkpoint)
        built, notes = build(
            str(model), arguments, values.checkpoint, values.trust_pickle, values.state_key
        )
        return OpenedModule(built, origin, notes)
    if path.suffix in (".pt", ".pth", ".th", ".tar"):
        return OpenedModule(unpickle(path, values.trust_pickle))
    return OpenedModule()


def inputs_of(module: nn.Module) -> tuple[Input, ...]:
    """Return the inputs of a torch model, whose shapes are not known, in its type.

    Raises:
        ConverterError: When onnxruntime lacks the type.
    """
    dtype = float_type(module)
    if dtype not in (torch.float32, torch.float16):
        name = str(dtype).removeprefix("torch.")
        raise ConverterError(
            f"The model is in {name}, for which onnxruntime has no convolution on the CPU; give "
            "it as float32 (model.float())."
        )
    kind = torch.zeros(0, dtype=dtype).numpy().dtype
    return tuple(Input(name, (), kind) for name in input_names(module))


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
    return examples_first(network)


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
