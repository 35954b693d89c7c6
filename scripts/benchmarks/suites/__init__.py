"""One module per suite; each declares its cases and targets as ``SUITE``."""
