"""The one error class of the package, and how the errors of others are told in one line."""

from __future__ import annotations

import re

MOST = 10_000  # characters of a message that are looked at: some quote the whole of a file


class ConverterError(Exception):
    """One sentence that says what was wrong and what to do, with the layer or file named."""


def first_line(error: BaseException) -> str:
    """Give the first line of what an exception says; its class if it says nothing."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)[:MOST]).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]


def lacks_memory(error: BaseException) -> bool:
    """Tell whether memory ran out: torch and onnxruntime have no class for it."""
    text = str(error)[:MOST]
    told = re.search(r"bad.?alloc|allocate memory|(not enough|out of) memory", text, re.IGNORECASE)
    return isinstance(error, MemoryError) or told is not None


def root_line(error: BaseException) -> str:
    """Give class and first line of an exception, or of what it says it was caused by."""
    while error.__cause__ is not None:  # exporters wrap what went wrong in advice
        error = error.__cause__
    line = first_line(error)
    name = type(error).__name__
    return name if line == name else f"{name}: {line}"
