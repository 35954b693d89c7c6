"""The application, the options that commands share, and how results are printed."""

from __future__ import annotations

import json as json_format
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from converter import __version__
from converter.errors import ConverterError
from converter.options import InputShape, each_value, parse_input_shape

app = App(
    name="flatconv",
    help="Make a trained convolutional network faster: ONNX out, measured in onnxruntime.",
    version=__version__,
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
Flat = Parameter(name="*")
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
MaybeOutput = Annotated[Path | None, Parameter(name=["--output", "-o"])]
Shapes = Annotated[tuple[InputShape, ...], each_value(parse_input_shape)]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"])]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"])]


@dataclass(frozen=True, kw_only=True)
class Messages:
    """Options of the messages of a command.

    Attributes:
        verbose: Show where an unexpected error came from.
        quiet: Print nothing but errors.
    """

    verbose: Verbose = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class Printed:
    """Options of the output of a conversion.

    Attributes:
        json: Print the result as JSON.
        verbose: Also show every layer, and where an unexpected error came from.
        quiet: Print nothing but errors.
    """

    json: bool = False
    verbose: Verbose = False
    quiet: Quiet = False

    @property
    def silent(self) -> bool:
        """Whether no table and no progress is shown."""
        return self.json or self.quiet


def check_model(model: str) -> None:
    """Check that a model file exists.

    Raises:
        ConverterError: When it does not.
    """
    if ":" not in model and not Path(model).exists():
        raise ConverterError(f"{model} does not exist.")


def function(name: str | None) -> Callable[..., Any] | None:
    """Import the user's function ``module:function``; None without one."""
    from converter.models.export import find_callable

    return find_callable(name, "--evaluate") if name else None


def show(printed: Printed, text: Callable[[], str], *tables: Any) -> None:
    """Print JSON or tables."""
    if printed.json:
        sys.stdout.write(text().rstrip() + "\n")
    elif not printed.quiet:
        show_tables(*tables)


def show_tables(*tables: Any) -> None:
    """Print tables."""
    width = None if sys.stdout.isatty() else 120  # Rich folds to 80 columns in a file or a pipe
    Console(width=width).print(*tables, sep="\n")


def finish(met: bool, reason: str | None, folder: Path, silent: bool) -> int:
    """Say how a conversion ended, and return the exit status."""
    if reason and not (met and silent):
        Console(stderr=True).print(reason, style="yellow", markup=False, soft_wrap=True)
    if not silent:
        Console().print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    return 0 if met else 1


def dump(document: Any) -> str:
    """Return indented JSON."""
    return json_format.dumps(document, indent=2)


def typed_command() -> str:
    """Return the command line of this process."""
    return shlex.join(["flatconv", *sys.argv[1:]])
