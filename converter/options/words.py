"""Names of options in error messages: as on the command line, or as Python parameters."""

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
OTHER_PARAMETERS = ("evaluate", "epochs", "finetune")  # of functions, not of ``Options``


def to_python_names(sentence: str) -> str:
    """Replace command-line options in a sentence by Python names (``--max-drop``: ``max_drop``)."""

    def parameter(match: re.Match[str]) -> str:
        name = match[2].replace("-", "_")
        if name not in SUBJECTS and name not in OTHER_PARAMETERS:
            return match[0]
        return f"{name}=False" if match[1] else name

    return OPTION.sub(parameter, sentence)


def with_python_names(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that its errors name options as Python parameters."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ConverterError as error:
            raise ConverterError(to_python_names(str(error))) from None

    return wrapper
