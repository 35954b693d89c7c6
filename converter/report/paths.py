"""Files and folders to write: checked at once, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.errors import ConverterError

INT8_OUTPUTS = ("original.int8.onnx", "model.int8.onnx")
RECORD, OLD_RECORD = "conversion.json", "source.json"  # of version 0.1
OUTPUTS = (
    "original.onnx",
    "model.onnx",
    *INT8_OUTPUTS,
    "plan.json",
    "report.json",
    "report.html",
    RECORD,
    OLD_RECORD,
    "model.safetensors",
    "model.pt2",
    "original.onnx.data",
    "model.onnx.data",
)


def check_writable_file(path: Path | None) -> None:
    """Check that a file, if one is named, can be written.

    Raises:
        ConverterError: When it is a folder, or its folder does not exist.
    """
    if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
        raise ConverterError(f"{path} cannot be written; name a file in an existing folder.")


def check_output_folder(folder: Path) -> None:
    """Check that ``folder`` holds an earlier output.

    Raises:
        ConverterError: When it holds no record of a conversion.
    """
    if not any((folder / name).exists() for name in (RECORD, OLD_RECORD)):
        raise ConverterError(f"{folder} is not an output folder of flatconv.")


def writable_folder(folder: Path) -> Path:
    """Check that ``folder`` can be written, and holds nothing but an earlier output.

    Raises:
        ConverterError: When it cannot.
    """
    folder = folder.resolve()
    if folder.exists():
        if not folder.is_dir():
            raise ConverterError(f"{folder} is a file; name a folder for the output.")
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in OUTPUTS)
        if foreign:
            raise ConverterError(
                f"{folder} holds other files ({', '.join(foreign[:3])}); name an empty folder or "
                "an earlier output."
            )
    if folder.is_mount():  # it cannot be renamed
        raise ConverterError(
            f"{folder} is a mount point, which is not replaced; name a folder in it, such as "
            f"{folder / 'converted'}."
        )
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConverterError(f"{folder} cannot be written: {parent} is not a writable folder.")
    return folder


def to_json(document: Any) -> str:
    """Write indented JSON; numbers that are not finite, which JSON lacks, become null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a folder to write into, and put it in the place of ``target`` when it is written.

    Raises:
        OSError: When it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        built, old = Path(scratch) / "new", Path(scratch) / "old"
        built.mkdir()
        yield built
        try:
            if target.exists():
                target.rename(old)
            built.rename(target)
        except BaseException:  # an interrupt, too, must not lose the earlier output
            if old.exists() and not target.exists():
                old.rename(target)
            raise
