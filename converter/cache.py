"""Results on disk, addressed by a digest of everything they depend on.

Each entry is a file of its own. diskcache 5.6 was tried instead and not taken: it unpickles a value
if its database says so, which runs code; one damaged page of the database loses all entries, and
SQLite is not safe on network folders, which the workers of a cluster share.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from converter.decomposition.conv import Chain, Conv, assemble

VERSION = 6  # of the solvers: entries of other versions are not read
MAX_BYTES = 2 * 10**9
SECONDS = "seconds by stage of the last conversion"


def digest(*parts: object) -> str:
    """Return a digest of arrays and plain values, in nested lists and tuples."""
    result = hashlib.blake2b(digest_size=20)
    for part in _flatten(parts):
        if isinstance(part, np.ndarray):
            result.update(f"{part.dtype}{part.shape}".encode())
            result.update(np.ascontiguousarray(part).data)
        else:
            result.update(f"{part!r};".encode())
    return result.hexdigest()


def cached_chain(folder: Path, key: str, conv: Conv, compute: Callable[[], Chain]) -> Chain:
    """Return the chain stored under ``key``, or compute and store it.

    Args:
        folder: Folder of the cache.
        key: Digest of everything the chain depends on.
        conv: The convolution that the chain replaces; it gives the steps their geometry.
        compute: Returns the chain.
    """
    entry = load_arrays(folder, key)
    if entry is not None:
        return unpacked(conv, entry)
    chain = compute()
    store_arrays(folder, key, packed(chain))
    return chain


def packed(chain: Chain) -> dict[str, np.ndarray]:
    """Return the kernels and groups of a chain as arrays by name."""
    arrays = {str(n): step.kernel for n, step in enumerate(chain.steps)}
    return arrays | {"groups": np.array([step.groups for step in chain.steps])}


def unpacked(conv: Conv, arrays: Mapping[str, np.ndarray]) -> Chain:
    """Make a chain of the arrays of ``packed``, with the geometry and bias of ``conv``."""
    groups = arrays["groups"].tolist()
    return assemble(conv, [(arrays[str(n)], group) for n, group in enumerate(groups)])


def load_arrays(folder: Path, key: str) -> dict[str, np.ndarray] | None:
    """Read the arrays stored under ``key``; None if there are none or the entry is damaged."""
    path = entry_path(folder, key, "npz")
    try:
        with np.load(path, allow_pickle=False) as entry:
            arrays = dict(entry)
        os.utime(path)  # ``evict`` deletes the least recently used entries first
        return arrays if str(arrays.pop("key")) == key else None
    except Exception:  # numpy and zipfile raise many classes on damaged files
        return None


def store_arrays(folder: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Store arrays under ``key``; nothing is stored if the folder cannot be written."""
    path = entry_path(folder, key, "npz")
    with contextlib.suppress(OSError), atomic_write(path) as scratch, scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, key=np.array(key), **arrays)


def cached_text(folder: Path | None, key: str, compute: Callable[[], str]) -> str:
    """Return the text stored under ``key``, or compute and store it.

    Args:
        folder: Folder of the cache, or None for no cache.
        key: Digest of everything the text depends on.
        compute: Returns the text.
    """
    if folder is None:
        return compute()
    text = load_text(folder, key)
    if text is None:
        text = compute()
        store_text(folder, key, text)
    return text


def store_text(folder: Path, key: str, text: str) -> None:
    """Store text under ``key``; nothing is stored if the folder cannot be written."""
    with contextlib.suppress(OSError), atomic_write(entry_path(folder, key, "txt")) as scratch:
        scratch.write_text(f"{digest(text)}\n{text}")


def load_text(folder: Path, key: str) -> str | None:
    """Read the text stored under ``key``; None if there is none or the entry is damaged."""
    path = entry_path(folder, key, "txt")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        checksum, _, text = path.read_text().partition("\n")
        os.utime(path)
        return text if checksum == digest(text) else None
    return None


def store_seconds(folder: Path, seconds: Mapping[str, float]) -> None:
    """Store the seconds by stage of a conversion; they replace those of the one before."""
    store_text(folder, digest(SECONDS), json.dumps(dict(seconds)))


def load_seconds(folder: Path | None) -> dict[str, float] | None:
    """Read the seconds by stage of the last conversion; None if there was none."""
    text = None if folder is None else load_text(folder, digest(SECONDS))
    return None if text is None else {name: float(s) for name, s in json.loads(text).items()}


def entry_path(folder: Path, key: str, kind: str) -> Path:
    """Return the file of an entry."""
    return folder / f"v{VERSION}" / key[:2] / f"{key}.{kind}"


def evict(folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Delete the least recently used entries until the rest is within ``max_bytes``.

    Entries of other versions are deleted, too; other files in the folder stay.
    """
    entries = []
    for path in folder.glob("v[0-9]*/??/*"):
        if path.suffix in (".npz", ".txt"):
            with contextlib.suppress(OSError):  # another process may delete it, too
                current, status = path.parts[-3] == f"v{VERSION}", path.stat()
                entries.append((current, status.st_mtime, status.st_size, path))
    total = sum(size for _, _, size, _ in entries)
    for current, _, size, path in sorted(entries):  # other versions, then the oldest
        if current and total <= max_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a file to write beside ``path``, which replaces ``path`` when it is complete.

    Raises:
        OSError: When the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    os.close(handle)
    scratch = Path(name)
    try:
        scratch.chmod(0o644)  # mkstemp lets only its owner read it
        yield scratch
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _flatten(parts: Iterable[object]) -> Iterable[object]:
    """Iterate over nested parts, with a mark of the length before each list or tuple."""
    for part in parts:
        if isinstance(part, (list, tuple)):
            yield f"[{len(part)}"
            yield from _flatten(part)
        else:
            yield part
