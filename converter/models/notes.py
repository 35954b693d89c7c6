"""Sentences on a model and its data that the user should read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from converter.data.data import Data
from converter.graph.differences import difference, tolerance
from converter.graph.network import open_session
from converter.graph.outputs import random_values
from converter.runtime.ort import run

FEW_EXAMPLES = 10  # below this, a loss is judged on four examples or fewer


def model_notes(network: ir.Model, feeds: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Say whether a network draws random numbers: then two runs on ``feeds`` differ."""
    drawn = random_values(network) & {str(value.name) for value in network.graph.outputs}
    if not drawn:
        return
    session = open_session(network)
    first, second = run(session, feeds), run(session, feeds)
    distances = {name: difference(first[name], second[name]) for name in sorted(drawn)}
    name = max(distances, key=lambda key: distances[key])
    if distances[name] > tolerance(first[name]):
        yield (
            f"The network draws random numbers: two runs on the same inputs differ by "
            f"{distances[name]:.1e} at output {name}. Scores of networks differ by that, too; "
            "losses in the search are measured with the same random numbers."
        )


def own_batch_note(batch: int) -> str:
    """Say that a network takes batches of one size only."""
    return (
        f"The network does not take batches, or gives an example other outputs in one than alone; "
        f"it is converted for inputs of batch size {batch}, and takes no others."
    )


def data_notes(calib: Data | None, evaluation: Data | None) -> Iterator[str]:
    """Say what is doubtful about sample inputs and evaluation data."""
    for data in (calib, evaluation):
        yield from data.notes if data is not None else ()
    if calib is not None and calib.count < FEW_EXAMPLES:
        yield few_examples(calib)


def few_examples(calib: Data) -> str:
    """Say how little few sample inputs tell."""
    if calib.count == 1:
        return (
            f"{calib.source} holds one example: layers are fitted to it, and the loss on it says "
            "nothing about others. Give 64 or more with --calib."
        )
    return (
        f"{calib.source} holds {calib.count} examples; a few of them judge the loss in the search. "
        "Give 64 or more with --calib."
    )
