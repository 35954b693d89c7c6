"""Torch models: built from a factory or a file, exported to ONNX, saved without their class."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from converter.errors import ConverterError, root_line
from converter.graph.network import name_batch_axis
from converter.models.checkpoint import load_into, load_state, read_file


def find_callable(spec: str, role: str) -> Any:
    """Import ``package.module:name``; the current folder is importable.

    Args:
        spec: The name.
        role: First word of error messages, such as ``Factory``.

    Raises:
        ConverterError: When there is no such callable, or its module cannot be imported.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ConverterError(f"{role} {spec!r} must be written package.module:name.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ConverterError(
            f"{role} {spec!r}: module {module_name!r} cannot be imported: {root_line(error)}"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ConverterError(f"{role} {spec!r}: {module_name} has no callable named {name!r}.")
    return function


def build(
    factory: str, arguments: Mapping[str, Any], checkpoint: Path | None, trust_pickle: bool
) -> nn.Module:
    """Build a model from ``package.module:factory`` and load a checkpoint into it.

    Raises:
        ConverterError: When the factory fails or does not return a module, or the checkpoint does
            not fit.
    """
    function = find_callable(factory, "Factory")
    try:
        model = function(**arguments)
    except (Exception, SystemExit) as error:  # the user's factory may raise anything
        raise ConverterError(f"Factory {factory!r} failed: {root_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise ConverterError(
            f"Factory {factory!r} gave a {type(model).__name__}, not an nn.Module."
        )
    if checkpoint is not None:
        load_into(model, load_state(checkpoint, trust_pickle), checkpoint)
    return model.eval()


def unpickle(path: Path, trust_pickle: bool) -> nn.Module:
    """Read a pickled module, which runs code from the file.

    Raises:
        ConverterError: Without ``trust_pickle``, or when the file holds no module.
    """
    if path.exists() and not trust_pickle:
        raise ConverterError(
            f"{path} is not an ONNX file; name a factory (package.module:factory) with "
            "--checkpoint, or pass --trust-pickle to unpickle a whole module."
        )
    model = read_file(path, trust_pickle)
    if not isinstance(model, nn.Module):
        raise ConverterError(f"{path} holds a {type(model).__name__}, not a pickled nn.Module.")
    return model.eval()


def copied(model: nn.Module) -> nn.Module:
    """Copy a model deeply.

    Raises:
        ConverterError: When torch cannot copy it.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # modules may raise anything
        raise ConverterError(f"The model cannot be copied: {root_line(error)}") from None


def input_names(model: nn.Module) -> tuple[str, ...]:
    """List the positional parameters of ``forward`` without a default; at least one name."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
    return tuple(names) or ("input",)


def float_type(model: nn.Module) -> torch.dtype:
    """Return the type of a model's first floating-point parameter; float32 if it has none."""
    kinds = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(kinds, torch.float32)


def forward(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> object:
    """Run a model on inputs in the order of its parameters, without gradients.

    Raises:
        ConverterError: When the model fails on them.
    """
    try:
        with torch.no_grad():
            return model(*(torch.from_numpy(array) for array in feeds.values()))
    except Exception as error:  # the user's model may raise anything
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        raise ConverterError(
            f"The model does not run on inputs of shape {shapes}: {root_line(error)}"
        ) from None


def export(
    model: nn.Module,
    feeds: Mapping[str, np.ndarray],
    free_axes: Mapping[str, Iterable[int]] | None = None,
) -> ir.Model:
    """Export ``model`` in evaluation mode.

    Args:
        model: Left as it is.
        feeds: Example inputs by name, each (N, ...).
        free_axes: Axes of each input that stay free if the model allows it; the batch axis if left
            out.

    Raises:
        ConverterError: When the model cannot run on ``feeds`` or torch cannot export it.
    """
    exported = copied(model).cpu().eval()
    # torch.export would treat a batch of one as a constant.
    batch = {n: np.concatenate([a, a]) if len(a) == 1 else a for n, a in feeds.items()}
    forward(exported, batch)
    try:
        with _quiet():
            program = torch.onnx.export(
                exported,
                tuple(torch.from_numpy(array) for array in batch.values()),
                input_names=list(feeds),
                dynamic_shapes=[
                    {axis: torch.export.Dim.AUTO for axis in (free_axes or {}).get(name, (0,))}
                    for name in feeds
                ],
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.export raises many classes
        raise ConverterError(f"torch cannot export the model to ONNX: {root_line(error)}") from None
    assert program is not None
    # The metadata holds stack traces, with the paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    return name_batch_axis(program.model)


def flat_outputs(output: object) -> list[torch.Tensor]:
    """Flatten the outputs of a model, in the order of the exported outputs."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        return flat_outputs(list(output.values()))
    if isinstance(output, Iterable):
        return [tensor for part in output for tensor in flat_outputs(part)]
    return []


def export_program(path: Path, trust_pickle: bool) -> ir.Model:
    """Read a .pt2 program of ``torch.export.save`` and export it.

    Args:
        path: The file.
        trust_pickle: Whether the user trusts its author: ``torch.export.load`` unpickles content.

    Raises:
        ConverterError: Without ``trust_pickle``, when the file is missing or damaged, or when
            torch cannot export the program.
    """
    if not path.is_file():
        raise ConverterError(f"{path} does not exist, or is no file.")
    if not trust_pickle:
        raise ConverterError(
            f"Reading {path} can run code from it; pass --trust-pickle if you trust its author."
        )
    try:
        with _quiet():
            loaded = torch.export.load(path)
    except Exception as error:  # torch raises many classes on damaged files
        raise ConverterError(f"{path} is not a sound .pt2 program: {root_line(error)}") from None
    try:
        with _quiet():
            program = torch.onnx.export(loaded, dynamo=True, verbose=False)
    except Exception as error:  # torch.export raises many classes
        raise ConverterError(f"torch cannot export {path} to ONNX: {root_line(error)}") from None
    assert program is not None
    # The metadata holds stack traces, with the paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    return name_batch_axis(program.model)


def save_program(module: nn.Module, shapes: Mapping[str, Sequence[int]], path: Path) -> None:
    """Write ``module`` as a .pt2 program that runs without its Python class.

    Args:
        module: In evaluation mode.
        shapes: By input name; the batch axis stays free if the model allows it.
        path: The file to write.

    Raises:
        ConverterError: When torch cannot trace or save it.
    """
    dtype = float_type(module)
    tensors = tuple(torch.zeros(2, *shape[1:], dtype=dtype) for shape in shapes.values())
    free = tuple({0: torch.export.Dim.AUTO} for _ in tensors)
    try:
        with _quiet():
            torch.export.save(torch.export.export(module, tensors, dynamic_shapes=free), path)
    except Exception as error:  # torch.export raises many classes
        raise ConverterError(
            f"torch cannot save the converted model as {path.name}: {root_line(error)}"
        ) from None


def load_program(path: Path) -> nn.Module:
    """Read a program that ``save_program`` wrote."""
    with _quiet():
        return torch.export.load(path).module()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the output of the exporter on the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
