"""Training of any network toward its original: the only benchmark code that uses internals of it.

Networks of other tools, and networks with a part left out, cannot be trained by ``flatconv
finetune``, which takes its own output folders.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import converter
from converter.graph import network as onnx_network
from converter.models.export import export
from converter.models.input_shapes import free_axes
from converter.models.source import Source, examples
from converter.models.source import open_source as open_with_options
from converter.training.task import Recipe, Trained, TrainingTask
from converter.training.train import train, train_with_fp32_fallback

__all__ = ["Recipe", "Source", "distill", "export_network", "open_source"]


def open_source(model: str, **values: Any) -> Source:
    """Open a torch model by its factory, with its data; options by their flat names."""
    return open_with_options(model, None, converter.Options.of(**values))


def distill(
    student: nn.Module, source: Source, recipe: Recipe, checkpoint: Path | None = None
) -> tuple[nn.Module, str]:
    """Train a network toward its original.

    Args:
        student: The network; left as it is.
        source: The original, and the training data.
        recipe: How it is trained, in bfloat16.
        checkpoint: Where an interrupted training continues, or None. With it, the network is
            trained in float32 if it learns nothing in bfloat16.

    Returns:
        The trained network, and the precision that it was trained in.
    """
    teacher, data = source.module, source.train
    assert teacher is not None and data is not None
    task = TrainingTask(student, teacher, data)

    def attempt(recipe: Recipe) -> Trained:
        if checkpoint is None:
            return train(task, recipe)
        path = checkpoint.with_suffix(f".{'bf16' if recipe.bfloat16 else 'fp32'}.safetensors")
        return train(task, recipe, checkpoint=path, resume=True)

    recipe = replace(recipe, bfloat16=True)
    trained = train_with_fp32_fallback(attempt, recipe) if checkpoint else attempt(recipe)
    return trained.model, "bfloat16" if trained.bfloat16 else "float32"


def export_network(model: nn.Module, source: Source, path: Path) -> None:
    """Write a network as an ONNX file with the free axes of its original."""
    onnx_network.save(export(model, examples(source, 0, 1), free_axes(source.inputs)), path)
