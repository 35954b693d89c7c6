"""``python -m converter`` is ``flatconv``."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; where its libraries are not, ``measure`` alone."""
    if find_spec("cyclopts") is None:
        from converter.target import main as light

        sys.exit(light())
    from converter.cli import main as whole

    whole()


if __name__ == "__main__":
    main()
