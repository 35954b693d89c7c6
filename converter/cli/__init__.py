"""The command line: options as flags, and nothing that the library cannot do."""

from __future__ import annotations

import os
import sys
import traceback

from cyclopts import CycloptsError
from rich.console import Console

from converter.cli import conversion, networks
from converter.cli.app import app
from converter.errors import ConverterError, lacks_memory, root_line

__all__ = ["app", "conversion", "main", "networks"]


def main() -> None:
    """Run the command line; errors are one sentence and status 2 (with -v, bugs show a trace).

    Raises:
        KeyboardInterrupt: When it is interrupted, after a message.
    """
    errors = Console(stderr=True)
    arguments = sys.argv[1:]
    try:
        status = app(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
    except BrokenPipeError:  # as in: flatconv inspect net.onnx | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)  # as rich does where it prints
    except (ConverterError, CycloptsError, OSError) as error:
        errors.print(f"flatconv: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        text = "flatconv: interrupted; files are written whole or not at all."
        errors.print(text, style="red", soft_wrap=True)
        raise
    except Exception as error:  # a bug in flatconv
        if lacks_memory(error):
            text = (
                "flatconv: there is too little memory; free some, convert with less --memory, or "
                "train with a smaller --train-batch or more --accumulate."
            )
            errors.print(text, style="red", soft_wrap=True)
            sys.exit(2)
        if {"-v", "--verbose"} & set(arguments):
            traceback.print_exc()
        text = f"flatconv: unexpected {root_line(error)}; please report it with what -v shows."
        errors.print(text, style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
