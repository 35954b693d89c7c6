"""Options in sentences: as on the command line, or as Python parameters."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from converter.errors import ConverterError
from converter.options.options import SUBJECTS

P = ParamSpec("P")
T = TypeVar("T")
OPTION = re.compile(r"--(no-)?([a-z][a-z0-9-]*)")
OTHERS = ("evaluate", "epochs", "finetune")  # parameters that are no options


def python_words(sentence: str) -> str:
    """Write the options of a sentence as Python parameters: ``--max-drop`` as ``max_drop``."""

    def parameter(match: re.Match[str]) -> str:
        name = match[2].replace("-", "_")
        if name not in SUBJECTS and name not in OTHERS:
            return match[0]
        return f"{name}=False" if match[1] else name

    return OPTION.sub(parameter, sentence)


def speaks_python(function: Callable[P, T]) -> Callable[P, T]:
    """Write options in the errors of a function as Python parameters."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ConverterError as error:
            raise ConverterError(python_words(str(error))) from None

    return wrapper
