"""flatconv: makes trained convolutional networks faster, and proves it in onnxruntime."""

from converter.commands import compare
from converter.config import ConvertConfig
from converter.delivery.result import Result, load
from converter.errors import ConverterError
from converter.pipeline import convert, finetune
from converter.planning.plan import Plan

__all__ = [
    "ConvertConfig",
    "ConverterError",
    "Plan",
    "Result",
    "compare",
    "convert",
    "finetune",
    "load",
]
