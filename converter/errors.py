"""The one error class of the package."""


class ConverterError(Exception):
    """One sentence that says what was wrong and what to do, with the layer or file named."""
