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
    """What a command prints beside its result.

    Attributes:
        verbose: Show where an unexpected error came from.
        quiet: Print nothing but errors.
    """

    verbose: Verbose = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What a conversion prints.

    Attributes:
        json: Print the report (with --dry-run the plan) as JSON.
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
    """Refuse at once a model file that is not there."""
    if ":" not in model and not Path(model).exists():
        raise ConverterError(f"{model} does not exist.")


def function(name: str | None) -> Callable[..., Any] | None:
    """Import the user's measure, if one is given."""
    from converter.models.export import find_callable

    return find_callable(name, "--evaluate") if name else None


def show(printed: Printed, text: Callable[[], str], *tables: Any) -> None:
    """Print JSON or tables."""
    if printed.json:
        sys.stdout.write(text().rstrip() + "\n")
    elif not printed.quiet:
        show_tables(*tables)


def show_tables(*tables: Any) -> None:
    """Print tables; into a file or a pipe, Rich would fold them to 80 columns."""
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(*tables, sep="\n")


def finish(met: bool, reason: str | None, folder: Path, silent: bool) -> int:
    """Say how a conversion ended, and return the exit status."""
    if reason and not (met and silent):
        Console(stderr=True).print(reason, style="yellow", markup=False, soft_wrap=True)
    if not silent:
        Console().print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    return 0 if met else 1


def dump(document: Any) -> str:
    """Write JSON for people."""
    return json_format.dumps(document, indent=2)


def typed_command() -> str:
    """Return the command as it was typed."""
    return shlex.join(["flatconv", *sys.argv[1:]])
