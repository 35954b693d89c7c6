"""A torch model: built from a factory, exported to ONNX, mapped to it, rewritten as a copy."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import logging
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from converter.errors import ConverterError
from converter.kernels.conv import Chain, assemble
from converter.kernels.form import Form, Rank, skeleton
from converter.networks.checkpoint import load_into, load_state, read_file
from converter.networks.onnx_network import free_batch
from converter.networks.survey import Layer
from converter.networks.torch_modules import CONVERTED, read_module, replace_module


def find_callable(spec: str, what: str) -> Any:
    """Import ``package.module:name``; the current folder is importable.

    Raises:
        ConverterError: When there is no such thing, or importing it fails.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ConverterError(f"{what} {spec!r} must be written package.module:name.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ConverterError(
            f"{what} {spec!r}: module {module_name!r} cannot be imported: {_short(error)}"
        ) from None
    found = getattr(module, name, None)
    if not callable(found):
        raise ConverterError(f"{what} {spec!r}: {module_name} has no callable named {name!r}.")
    return found


def build(
    factory: str, arguments: Mapping[str, Any], checkpoint: Path | None, trust_pickle: bool
) -> nn.Module:
    """Build a model from ``package.module:factory`` and fill it from a checkpoint.

    Raises:
        ConverterError: When the factory fails or gives no module, or the checkpoint does not fit.
    """
    function = find_callable(factory, "Factory")
    try:
        model = function(**arguments)
    except (Exception, SystemExit) as error:  # the user's factory may raise anything
        raise ConverterError(f"Factory {factory!r} failed: {_short(error)}") from None
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
    """Copy a model.

    Raises:
        ConverterError: When torch cannot copy it.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # modules may raise anything
        raise ConverterError(f"The model cannot be copied: {_short(error)}") from None


def input_names(model: nn.Module) -> tuple[str, ...]:
    """List the parameters of ``forward`` that must be given."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
    return tuple(names) or ("input",)


def export(
    model: nn.Module,
    feeds: Mapping[str, np.ndarray],
    free_axes: Mapping[str, Iterable[int]] | None = None,
) -> ir.Model:
    """Export ``model`` in evaluation mode.

    Args:
        model: Left as it is.
        feeds: Example inputs by name, each (N, ...).
        free_axes: Axes of each input that are left free where the model allows it; the batch
            axis if left out.

    Raises:
        ConverterError: When the model cannot run on ``feeds`` or torch cannot export it.
    """
    twin = copied(model).cpu().eval()
    # torch.export takes a batch of one for a constant.
    tensors = tuple(
        torch.from_numpy(np.concatenate([a, a]) if len(a) == 1 else a) for a in feeds.values()
    )
    try:
        with torch.no_grad():
            twin(*tensors)
    except Exception as error:  # the user's model may raise anything
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        raise ConverterError(
            f"The model does not run on inputs of shape {shapes}: {_short(error)}"
        ) from None
    try:
        with _quiet():
            program = torch.onnx.export(
                twin,
                tensors,
                input_names=list(feeds),
                dynamic_shapes=[
                    {axis: torch.export.Dim.AUTO for axis in (free_axes or {}).get(name, (0,))}
                    for name in feeds
                ],
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.export raises many classes
        raise ConverterError(f"torch cannot export the model to ONNX: {_short(error)}") from None
    assert program is not None
    return free_batch(program.model)


def export_program(path: Path, trust_pickle: bool) -> ir.Model:
    """Read a .pt2 program of ``torch.export.save`` and export it.

    Args:
        path: The file.
        trust_pickle: Whether its author is trusted: ``torch.export.load`` unpickles what it holds.

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
        raise ConverterError(f"{path} is not a sound .pt2 program: {_short(error)}") from None
    try:
        with _quiet():
            program = torch.onnx.export(loaded, dynamo=True, verbose=False)
    except Exception as error:  # torch.export raises many classes
        raise ConverterError(f"torch cannot export {path} to ONNX: {_short(error)}") from None
    assert program is not None
    return free_batch(program.model)


def match(
    model: nn.Module, layers: Sequence[Layer], feeds: Mapping[str, np.ndarray]
) -> tuple[Layer, ...]:
    """Keep the layers that are not a plain module of ``model``, with the reason.

    Args:
        model: In evaluation mode.
        layers: Of its exported graph.
        feeds: Inputs to run it on once, to see which modules are called.
    """
    calls = _count_calls(model, feeds)
    layers = [_named(model, layer, calls) for layer in layers]
    names = Counter(layer.name for layer in layers)
    return tuple(
        layer.kept(reason) if (reason := _mismatch(model, layer, calls, names)) else layer
        for layer in layers
    )


def apply(model: nn.Module, layers: Sequence[Layer], chains: Mapping[str, Chain]) -> nn.Module:
    """Return a copy of ``model`` with convolution modules replaced by chains.

    The exporter folds BatchNorm into the convolutions, the copy keeps it: the folded kernel is
    the module's times a scale per output channel, which is taken out of the chain again.
    """
    result = copied(model)
    for layer in layers:
        if layer.name in chains:
            assert layer.conv is not None
            module = result.get_submodule(layer.name)
            own = read_module(module)
            scale = _channel_scale(own.kernel, layer.conv.kernel)
            inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
            steps = chains[layer.name].scaled(inverse).steps
            chain = assemble(own, [(step.kernel, step.groups) for step in steps])
            replace_module(result, layer.name, chain, module)
    return result


def rebuild(model: nn.Module, shapes: Mapping[str, tuple[Form, Rank]]) -> nn.Module:
    """Return a copy of ``model`` with modules replaced by chains of zeros of these shapes."""
    result = copied(model)
    for name, (form, rank) in shapes.items():
        module = result.get_submodule(name)
        replace_module(result, name, skeleton(read_module(module), form, rank), module)
    return result


def flat_outputs(output: object) -> list[torch.Tensor]:
    """Flatten what a model returns, in the order of the exported outputs."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        return flat_outputs(list(output.values()))
    if isinstance(output, Iterable):
        return [tensor for part in output for tensor in flat_outputs(part)]
    return []


def save_program(module: nn.Module, shapes: Mapping[str, Sequence[int]], path: Path) -> None:
    """Write ``module`` as a .pt2 program that runs without its Python class.

    Args:
        module: In evaluation mode.
        shapes: By input name; the batch axis is left free where the model allows it.
        path: Where to.
    """
    parameters = [p for p in module.parameters()]
    dtype = parameters[0].dtype if parameters else torch.float32
    tensors = tuple(torch.zeros(2, *shape[1:], dtype=dtype) for shape in shapes.values())
    free = tuple({0: torch.export.Dim.AUTO} for _ in tensors)
    with _quiet():
        torch.export.save(torch.export.export(module, tensors, dynamic_shapes=free), path)


def load_program(path: Path) -> nn.Module:
    """Read what ``save_program`` wrote."""
    with _quiet():
        return torch.export.load(path).module()


def _count_calls(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Run ``model`` and count the arguments that each convolution module is called with."""
    calls: dict[str, int] = {}
    twin = copied(model).eval()
    for name, module in twin.named_modules():
        if type(module) in CONVERTED:

            def count(_: object, args: tuple, kwargs: dict, __: object, name: str = name) -> None:
                calls[name] = calls.get(name, 0) + len(args) + len(kwargs)

            module.register_forward_hook(count, with_kwargs=True)
    with torch.no_grad():
        twin(*(torch.from_numpy(array) for array in feeds.values()))
    return calls


def _named(model: nn.Module, layer: Layer, calls: Mapping[str, int]) -> Layer:
    """Name a linear layer after its module: the exporter turns some weights and renames them."""
    if layer.conv is None or layer.conv.k or layer.weight.removesuffix(".weight") in calls:
        return layer
    owners = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and calls.get(name) == 1
        and np.array_equal(read_module(module).kernel, layer.conv.kernel)
    ]
    if len(owners) != 1:
        return layer
    return replace(layer, name=owners[0], weight=f"{owners[0]}.weight")


def _mismatch(
    model: nn.Module, layer: Layer, calls: Mapping[str, int], names: Mapping[str, int]
) -> str | None:
    """Say why a layer of the exported graph is not a convolution module, or None."""
    if layer.conv is None:
        return layer.reason
    try:
        module = model.get_submodule(layer.weight.removesuffix(".weight"))
    except AttributeError:
        return (
            "it is not a convolution module of the model (called as a function, or reparametrised)"
        )
    if type(module) not in CONVERTED:
        return f"its module is a {type(module).__name__}, not a plain convolution"
    if calls.get(layer.weight.removesuffix(".weight")) != 1:
        return "its module is not called exactly once, with one input"
    if names[layer.name] > 1:
        return "its module's weight is used more than once"
    own = read_module(module).kernel
    if own.shape != layer.conv.kernel.shape:
        return "its module's kernel has another shape than the exported one"
    folded = layer.conv.kernel.astype(np.float64)
    scale = _channel_scale(own, folded).reshape(-1, *[1] * (own.ndim - 1))
    if np.linalg.norm(own * scale - folded) > 1e-4 * np.linalg.norm(folded):
        return "its module's kernel is not the exported one up to a scale per output channel"
    return None


def _channel_scale(own: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """Least-squares scale s (O,) with s own = folded."""
    a, b = (kernel.astype(np.float64).reshape(len(kernel), -1) for kernel in (own, folded))
    power = (a * a).sum(1)
    return np.divide((a * b).sum(1), power, out=np.zeros_like(power), where=power > 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about itself off the terminal."""
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


def _short(error: BaseException) -> str:
    while error.__cause__ is not None:  # the exporter wraps what went wrong in advice
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    line = (text.splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
