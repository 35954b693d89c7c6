"""flatconv: makes trained convolutional networks faster, and proves it in onnxruntime."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.commands import compare
    from converter.errors import ConverterError
    from converter.options import Options
    from converter.pipeline import convert, finetune, run_worker
    from converter.report.result import Result, load
    from converter.search.plan import Plan
    from converter.timing.latency import LatencyTable

HOMES = {
    "Options": "options",
    "ConverterError": "errors",
    "LatencyTable": "timing.latency",
    "Plan": "search.plan",
    "Result": "report.result",
    "run_worker": "pipeline",
    "compare": "commands",
    "convert": "pipeline",
    "finetune": "pipeline",
    "load": "report.result",
}
__all__ = [
    "ConverterError",
    "LatencyTable",
    "Options",
    "Plan",
    "Result",
    "compare",
    "convert",
    "finetune",
    "load",
    "run_worker",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: ``measure`` runs where torch is not."""
    if name not in HOMES:
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    return getattr(import_module(f"converter.{HOMES[name]}"), name)
