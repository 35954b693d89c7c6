"""flatconv: makes trained convolutional networks faster, and proves it in onnxruntime."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.commands import compare
    from converter.config import ConvertConfig
    from converter.delivery.result import Result, load
    from converter.errors import ConverterError
    from converter.pipeline import assist, convert, finetune
    from converter.planning.latency import LatencyTable
    from converter.planning.plan import Plan

HOMES = {
    "ConvertConfig": "config",
    "ConverterError": "errors",
    "LatencyTable": "planning.latency",
    "Plan": "planning.plan",
    "Result": "delivery.result",
    "assist": "pipeline",
    "compare": "commands",
    "convert": "pipeline",
    "finetune": "pipeline",
    "load": "delivery.result",
}
__all__ = [
    "ConvertConfig",
    "ConverterError",
    "LatencyTable",
    "Plan",
    "Result",
    "assist",
    "compare",
    "convert",
    "finetune",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: ``measure`` runs where torch is not."""
    if name not in HOMES:
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    return getattr(import_module(f"converter.{HOMES[name]}"), name)
