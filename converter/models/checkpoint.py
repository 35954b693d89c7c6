"""Weights read from files; pickled code runs only if the user trusts it."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from converter.errors import ConverterError, first_line, lacks_memory

NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
# Counters of BatchNorm: old checkpoints lack them, and inference does not read them.
OPTIONAL_SUFFIX = "num_batches_tracked"


def load_state(path: Path, trust_pickle: bool = False) -> dict[str, torch.Tensor]:
    """Read a state dict: safetensors, or any of torch's formats with ``weights_only=True``.

    Weights may be nested under one of ``NESTED_UNDER``. Prefixes that wrappers add to every key
    are removed.

    Args:
        path: The file.
        trust_pickle: Whether to unpickle whole modules, which runs code from the file.

    Raises:
        ConverterError: When the file is missing or unreadable, or holds no weights or NaN.
    """
    content = read_file(path, trust_pickle)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for key in NESTED_UNDER:
        inner = content.get(key) if isinstance(content, Mapping) else None
        if isinstance(inner, nn.Module):
            inner = inner.state_dict()
        if isinstance(inner, Mapping):
            content = inner
            break
    if not isinstance(content, Mapping):
        raise ConverterError(
            f"{path} holds a {type(content).__name__}, not a state dict of tensors."
        )
    state = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise ConverterError(f"{path} holds no tensors; give a state dict saved with torch.save.")
    state = _without_prefixes(state)
    odd = [n for n, v in state.items() if v.is_meta or v.layout != torch.strided]
    if odd:
        raise ConverterError(f"{path} holds tensors without plain values: {_first_few(odd)}.")
    broken = [
        n for n, v in state.items() if v.is_floating_point() and not v.float().isfinite().all()
    ]
    if broken:
        raise ConverterError(
            f"{path} holds NaN or infinite values in {_first_few(broken)}; use a sound checkpoint."
        )
    return state


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
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
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
        cause = "damaged, or memory too little to read it" if lacks_memory(error) else "damaged"
        raise ConverterError(
            f"Checkpoint {path} is truncated or {cause}: {first_line(error)}"
        ) from None


def load_into(model: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load ``state`` into ``model``; every key must fit.

    Raises:
        ConverterError: When keys are missing, unexpected or misshapen; it names the first few.
    """
    own = model.state_dict()
    for prefix in PREFIXES:  # torch.compile and DataParallel wrap the model itself
        if own and all(n.startswith(prefix) for n in own):
            state = {n if n in own else prefix + n: value for n, value in state.items()}
    missing = [n for n in own if n not in state and not n.endswith(OPTIONAL_SUFFIX)]
    unexpected = [n for n in state if n not in own and not n.endswith(OPTIONAL_SUFFIX)]
    misshapen = [
        f"{n} ({_shape(state[n])} in the file, {_shape(own[n])} in the model)"
        for n in own
        if n in state and own[n].shape != state[n].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    parts = [f"{_keys(len(names))} {kind}: {_first_few(names)}" for kind, names in kinds if names]
    if parts:
        raise ConverterError(f"Checkpoint {path} does not fit the model: {'; '.join(parts)}.")
    model.load_state_dict({n: v for n, v in state.items() if n in own}, strict=False)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)
    if prefix is None:
        return state
    return _without_prefixes({name.removeprefix(prefix): v for name, v in state.items()})


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


def _first_few(names: Sequence[str], count: int = 3) -> str:
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def _keys(count: int) -> str:
    return "1 key is" if count == 1 else f"{count} keys are"


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
