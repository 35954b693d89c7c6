"""flatconv: makes trained convolutional networks faster, measured in onnxruntime."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.api import compare, convert, finetune, load, run_worker
    from converter.decomposition.api import Decomposition, decompose
    from converter.decomposition.forms import FORMS, register
    from converter.errors import ConverterError
    from converter.options import LayerForm, Options
    from converter.report.result import Result
    from converter.search.plan import Plan
    from converter.timing.latency import LatencyTable

try:
    __version__ = version("flatconv")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_MODULES = {
    "FORMS": "decomposition.forms",
    "ConverterError": "errors",
    "Decomposition": "decomposition.api",
    "LatencyTable": "timing.latency",
    "LayerForm": "options",
    "Options": "options",
    "Plan": "search.plan",
    "Result": "report.result",
    "compare": "api",
    "convert": "api",
    "decompose": "decomposition.api",
    "finetune": "api",
    "load": "api",
    "register": "decomposition.forms",
    "run_worker": "api",
}
__all__ = [
    "FORMS",
    "ConverterError",
    "Decomposition",
    "LatencyTable",
    "LayerForm",
    "Options",
    "Plan",
    "Result",
    "compare",
    "convert",
    "decompose",
    "finetune",
    "load",
    "register",
    "run_worker",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, since torch takes seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    return getattr(import_module(f"converter.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
