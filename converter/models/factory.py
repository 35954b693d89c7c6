"""Functions and torch models that the user names: imported, built, unpickled."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from converter.errors import ConverterError, root_line
from converter.models.checkpoint import load_states, read_file
from converter.models.state_dict import is_average, load_into
from converter.models.wrappers import fold_hooks, unwrapped


def find_callable(spec: str, role: str) -> Any:
    """Import ``package.module:name`` or ``file.py:name``; the current folder is importable.

    Args:
        spec: The name.
        role: First word of error messages, such as ``Factory``.

    Raises:
        ConverterError: When there is no such callable, or its module cannot be imported.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise ConverterError(
            f"{role} {spec!r} must be written package.module:name or file.py:name."
        )
    if module_name.endswith(".py") and not Path(module_name).is_file():
        raise ConverterError(f"{role} {spec!r}: there is no file {module_name}.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = _import(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ConverterError(
            f"{role} {spec!r}: module {module_name!r} cannot be imported: {root_line(error)}"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        defined = ", ".join(_defined_in(module)) or "none"
        raise ConverterError(
            f"{role} {spec!r}: {module_name} has no callable named {name!r}; it defines {defined}."
        )
    return function


def _defined_in(module: ModuleType) -> list[str]:
    """List the public functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]


def _import(name: str) -> ModuleType:
    """Import a file, or a module; the user's ``converter.py`` is not taken for this package."""
    file = Path(f"{name}.py")
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if name.endswith(".py"):
        return _import_file(Path(name))
    if loaded is not None and file.is_file() and not file.samefile(loaded):
        return _import_file(file)
    return importlib.import_module(name)


def _import_file(file: Path) -> ModuleType:
    """Import a Python file once, whatever modules have its name; its folder is importable."""
    path = file.resolve()
    name = str(path)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # the name ends with .py
        module = importlib.util.module_from_spec(spec)
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # behind the current folder
        sys.modules[name] = module  # before it runs, as the import statement does
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def build(
    factory: str,
    arguments: Mapping[str, Any],
    checkpoint: Path | None = None,
    trust_pickle: bool = False,
    state_key: str = "",
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a model by its factory and load a checkpoint into it.

    Returns:
        The model, without wrappers and with plain weights, and sentences on the checkpoint.

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
    model, notes = unwrapped(model), tuple[str, ...]()
    if checkpoint is not None:
        notes = load_into(model, load_states(checkpoint, trust_pickle), checkpoint, state_key)
    return fold_hooks(model), notes


def unpickle(path: Path, trust_pickle: bool) -> nn.Module:
    """Read a pickled module, which runs code from the file.

    Of a dictionary with several modules, that of the averaged weights is taken.

    Raises:
        ConverterError: Without ``trust_pickle``, or when the file holds no module.
    """
    if path.exists() and not trust_pickle:
        raise ConverterError(
            f"{path} is not an ONNX file; name a factory (package.module:factory) with "
            "--checkpoint, or pass --trust-pickle to unpickle a whole module."
        )
    model = read_file(path, trust_pickle)
    if isinstance(model, Mapping):
        modules = {str(n): value for n, value in model.items() if isinstance(value, nn.Module)}
        model = modules[max(modules, key=is_average)] if modules else model
    if not isinstance(model, nn.Module):
        raise ConverterError(f"{path} holds a {type(model).__name__}, not a pickled nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConverterError(
            f"{path} is a TorchScript program, which torch cannot export; name the factory of the "
            f"model, with --checkpoint {path} --trust-pickle for its weights."
        )
    return fold_hooks(unwrapped(model))
