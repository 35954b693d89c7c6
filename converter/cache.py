"""Solved chains kept on disk by the content of what was solved."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from converter.decomposition.conv import Chain, Conv, assemble

VERSION = 3  # of the solvers: a higher number forgets what older ones found


def digest(*parts: object) -> str:
    """Digest arrays and plain values."""
    digest = hashlib.blake2b(digest_size=20)
    for part in _flat(parts):
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


def cached_chain(folder: Path, key: str, conv: Conv, compute: Callable[[], Chain]) -> Chain:
    """Give the chain kept under ``key``, or compute and keep it.

    Args:
        folder: Of the entries.
        key: Of all that the chain depends on.
        conv: What the chain stands in for; it gives the steps their geometry.
        compute: Solves it.
    """
    entry = load_arrays(folder, key)
    if entry is not None:
        return unpacked(conv, entry)
    chain = compute()
    store_arrays(folder, key, packed(chain))
    return chain


def packed(chain: Chain) -> dict[str, np.ndarray]:
    """Put the kernels of a chain into arrays by name."""
    arrays = {str(n): step.kernel for n, step in enumerate(chain.steps)}
    return arrays | {"groups": np.array([step.groups for step in chain.steps])}


def unpacked(conv: Conv, arrays: Mapping[str, np.ndarray]) -> Chain:
    """Make a chain of what ``packed`` gave; ``conv`` gives it geometry and bias."""
    groups = arrays["groups"].tolist()
    return assemble(conv, [(arrays[str(n)], group) for n, group in enumerate(groups)])


def load_arrays(folder: Path, key: str) -> dict[str, np.ndarray] | None:
    """Read the arrays kept under ``key``; None where there are none, or none that can be read."""
    try:
        with np.load(entry_path(folder, key, "npz"), allow_pickle=False) as entry:
            arrays = dict(entry)
        return arrays if str(arrays.pop("key")) == key else None
    except Exception:  # whatever is wrong with an entry, the remedy is the same
        return None


def store_arrays(folder: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays under ``key``; a folder that cannot be written keeps nothing."""
    path = entry_path(folder, key, "npz")
    with contextlib.suppress(OSError), atomic_write(path) as scratch, scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, key=np.array(key), **arrays)


def cached_text(folder: Path | None, key: str, compute: Callable[[], str]) -> str:
    """Give the text kept under ``key``, or compute and keep it.

    Args:
        folder: Of the entries, or None to keep nothing.
        key: Of all that the text depends on.
        compute: Makes it.
    """
    if folder is None:
        return compute()
    known = load_text(folder, key)
    if known is not None:
        return known
    text = compute()
    store_text(folder, key, text)
    return text


def store_text(folder: Path, key: str, text: str) -> None:
    """Write text under ``key``; a folder that cannot be written keeps nothing."""
    with contextlib.suppress(OSError), atomic_write(entry_path(folder, key, "txt")) as scratch:
        scratch.write_text(f"{digest(text)}\n{text}")


def load_text(folder: Path, key: str) -> str | None:
    """Read the text kept under ``key``; None where there is none, or a byte of it has changed."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        told, _, text = entry_path(folder, key, "txt").read_text().partition("\n")
        return text if told == digest(text) else None
    return None


def entry_path(folder: Path, key: str, kind: str) -> Path:
    """Name the file of an entry."""
    return folder / f"v{VERSION}" / key[:2] / f"{key}.{kind}"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a file to write beside ``path``, and rename it to that when it is written.

    Raises:
        OSError: When it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    os.close(handle)
    scratch = Path(name)
    try:
        scratch.chmod(0o644)  # as others are, not for its owner alone
        yield scratch
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _flat(parts: Iterable[object]) -> Iterable[object]:
    for part in parts:
        if isinstance(part, (list, tuple)):
            yield f"[{len(part)}"
            yield from _flat(part)
        else:
            yield part
