"""``python -m converter`` is ``flatconv``."""

import os
import sys
from importlib.util import find_spec

INTERRUPTED = 130


def main() -> None:
    """Run the command line; where its libraries are not, ``measure`` alone."""
    if find_spec("cyclopts") is None:
        from converter.timing.target import main as light

        sys.exit(light())
    try:
        from converter.cli import main as whole

        whole()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # Python would take seconds to forget all modules


if __name__ == "__main__":
    main()
