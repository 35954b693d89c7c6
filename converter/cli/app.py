"""The application, the options that commands share, and how results are printed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

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


def optional(kind: type, **more: tuple[Any, str]) -> Any:
    """Make a dataclass of the same options with the default None: the value of the conversion.

    ``schedule`` is left out, since only a conversion has one.

    Args:
        kind: A dataclass of options.
        more: Type and help text of further options.
    """
    hints = get_type_hints(kind, include_extras=True)
    types = {f.name: hints[f.name] | None for f in fields(kind) if f.name != "schedule"}
    types |= {name: hint | None for name, (hint, _) in more.items()}
    optional_kind = make_dataclass(
        f"Maybe{kind.__name__}",
        [(name, hint, field(default=None)) for name, hint in types.items()],
        frozen=True,
        kw_only=True,
        namespace={"__module__": __name__},  # cyclopts does not flatten classes of the stdlib
    )
    lines = [f"        {name}: {sentence}" for name, (_, sentence) in more.items()]
    optional_kind.__doc__ = "\n".join([str(kind.__doc__).rstrip(), *lines, ""])
    return optional_kind


def given_values(*options: object) -> dict[str, Any]:
    """Return the options of ``optional`` dataclasses that were given, by name."""
    return {
        name: value for part in options for name, value in vars(part).items() if value is not None
    }


def check_model(model: str) -> None:
    """Check that a model file exists.

    Raises:
        ConverterError: When it does not.
    """
    if ":" not in model and not Path(model).exists():
        raise ConverterError(f"{model} does not exist.")


def function(name: str | None) -> Callable[..., Any] | None:
    """Import the user's function ``module:function``; None without one."""
    from converter.models.factory import find_callable

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


def warn(warnings: Sequence[str]) -> None:
    """Print warnings, in every mode: what they name may make all figures wrong."""
    for warning in warnings:
        text = f"Warning: {warning}"
        Console(stderr=True).print(text, style="yellow", markup=False, soft_wrap=True)


def finish(met: bool, reason: str | None, folder: Path, silent: bool) -> int:
    """Say how a conversion ended, and return the exit status."""
    if reason and not (met and silent):
        Console(stderr=True).print(reason, style="yellow", markup=False, soft_wrap=True)
    if not silent:
        Console().print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    return 0 if met else 1


def typed_command() -> str:
    """Return the command line of this process."""
    return shlex.join(["flatconv", *sys.argv[1:]])
