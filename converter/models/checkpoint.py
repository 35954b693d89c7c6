"""Weights read from files; pickled code runs only if the user trusts it."""

from __future__ import annotations

import hashlib
import pickle
import sys
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import safe_globals

from converter.errors import ConverterError, first_line, lacks_memory
from converter.models.state_dict import State, list_states

TORCHSCRIPT = "constants.pkl"  # only archives of torch.jit.save hold it


def load_states(path: Path, trust_pickle: bool = False) -> dict[str, State]:
    """Read the state dicts of a file: safetensors, or any of torch's formats.

    Args:
        path: The file. It is read with ``weights_only=True`` unless its author is trusted.
        trust_pickle: Whether to unpickle whole modules, which runs code from the file.

    Returns:
        State dicts by the keys that lead to them; see ``list_states``.

    Raises:
        ConverterError: When the file is missing or unreadable, or holds no weights.
    """
    content = read_file(path, trust_pickle)
    states = list_states(content)
    if not states and not isinstance(content, Mapping | list | tuple):
        raise ConverterError(
            f"{path} holds a {type(content).__name__}, not a state dict of tensors."
        )
    if not states:
        raise ConverterError(f"{path} holds no tensors; give a state dict saved with torch.save.")
    return states


def read_file(path: Path, trust_pickle: bool) -> Any:
    """Read the content of a file of weights, on the CPU.

    Raises:
        ConverterError: When it is missing, a folder, empty, damaged, or holds pickled code.
    """
    if not path.exists():
        raise ConverterError(f"Checkpoint {path} does not exist.")
    if path.is_dir():
        raise ConverterError(f"Checkpoint {path} is a folder; name a file of weights.")
    if path.stat().st_size == 0:
        raise ConverterError(f"Checkpoint {path} is empty.")
    if path.suffix != ".safetensors" and not _looks_like_torch(path):
        raise ConverterError(f"Checkpoint {path} is not a torch checkpoint.")
    scripted = path.suffix != ".safetensors" and _is_torchscript(path)
    if scripted and not trust_pickle:
        raise ConverterError(
            f"Checkpoint {path} is a TorchScript program; pass --trust-pickle to take its weights "
            "if you trust its author."
        )
    if trust_pickle and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # where the classes of pickled modules may be
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if scripted:
            return torch.jit.load(path, map_location="cpu")
        with safe_globals([Namespace]):  # Lightning keeps options in them
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower():
            raise ConverterError(
                f"Checkpoint {path} holds pickled code, not only weights; save "
                "model.state_dict() instead, or pass --trust-pickle if you trust its author."
            ) from None
        raise ConverterError(f"Checkpoint {path} is not a torch checkpoint.") from None
    except SafetensorError as error:
        raise ConverterError(
            f"Checkpoint {path} is not a sound safetensors file: {error}."
        ) from None
    except Exception as error:  # torch raises many classes on damaged files
        if trust_pickle and isinstance(error, ImportError | AttributeError):
            raise ConverterError(
                f"Checkpoint {path} needs code that cannot be imported: {first_line(error)}; run "
                "in the folder of this code, or install it."
            ) from None
        cause = "damaged, or memory too little to read it" if lacks_memory(error) else "damaged"
        raise ConverterError(
            f"Checkpoint {path} is truncated or {cause}: {first_line(error)}"
        ) from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that torch.jit.save wrote."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == TORCHSCRIPT for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):  # damaged: torch says how
        return False


def _looks_like_torch(path: Path) -> bool:
    """Whether a file begins like a zip archive, a pickle or a tar archive."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":
        return True
    try:
        return tarfile.is_tarfile(path)
    except MemoryError:  # a damaged compressed header may ask for any amount
        return False
