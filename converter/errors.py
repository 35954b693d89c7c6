"""The error class of the package, and one-line texts for the errors of other libraries."""

from __future__ import annotations

import re

MAX_LENGTH = 10_000  # characters of a message that are read: some quote a whole file


class ConverterError(Exception):
    """One sentence that says what was wrong and what to do, with the layer or file named."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class if the message is empty."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)[:MAX_LENGTH]).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch and onnxruntime have no exception class for it."""
    text = str(error)[:MAX_LENGTH]
    match = re.search(r"bad.?alloc|allocate memory|(not enough|out of) memory", text, re.IGNORECASE)
    return isinstance(error, MemoryError) or match is not None


def root_line(error: BaseException) -> str:
    """Return class and first line of an exception, or of the exception that caused it."""
    while error.__cause__ is not None:  # exporters wrap the cause in advice
        error = error.__cause__
    line = first_line(error)
    name = type(error).__name__
    return name if line == name else f"{name}: {line}"
