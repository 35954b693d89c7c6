"""``python -m converter`` is ``flatconv``."""

import os

from converter.cli import main as run

INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    try:
        run()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # Python would take seconds to unload all modules


if __name__ == "__main__":
    main()
