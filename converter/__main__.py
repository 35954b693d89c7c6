"""``python -m converter`` is ``flatconv``."""

from converter.cli import main

if __name__ == "__main__":
    main()
