"""Notes on what was given and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converter.evaluation.untrained import look_untrained
from converter.graph.survey import Layer
from converter.models.open_model import Model, is_factory
from converter.models.source import Source
from converter.options import Options


def notes(
    model: Model, options: Options, source: Source, layers: Sequence[Layer]
) -> tuple[str, ...]:
    """Say what may be forgotten: labels, other inputs to score on, or a checkpoint.

    Args:
        model: The model as it was given.
        options: They name the data and the checkpoint.
        source: The network and the data.
        layers: The layers of the network.
    """
    sentences = []
    calib, scored = options.data.calib, options.data.eval
    if same_data(calib, scored):
        sentences.append(
            "--calib and --eval name the same data: the loss on inputs that layers were fit to is "
            "smaller than on others. Give other inputs with --eval."
        )
    evaluated = source.eval
    if evaluated is not None and evaluated.labels is None and evaluated.load_batch is None:
        sentences.append(
            f"{evaluated.source} holds no labels: --eval then scores against the original's own "
            "answers."
        )
    if look_untrained(layer.conv.kernel for layer in layers if layer.conv is not None):
        forgotten = is_factory(model) and options.model.checkpoint is None
        advice = "; give its --checkpoint" if forgotten else ""
        sentences.append(f"The weights of the network look random, as before training{advice}.")
    return tuple(sentences)


def same_data(first: object, second: object) -> bool:
    """Whether two names of data, or objects, are the same."""
    if isinstance(first, (str, Path)) and isinstance(second, (str, Path)):
        return str(first) == str(second) or Path(first).resolve() == Path(second).resolve()
    return first is not None and first is second
