"""What could be done with each layer, what it takes, and what the network loses by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from converter.data.data import Data
from converter.evaluation.compare import Progress
from converter.graph.survey import Layer
from converter.models.source import Source
from converter.options import Options
from converter.reconstruction.moments import Metrics
from converter.search.candidates import list_options
from converter.search.search import SearchSpace
from converter.search.sensitivity import Sensitivity, sensitivities
from converter.timing.latency import LatencyTable

# Layers that are solved again make up for the errors of those before them. How much of what the
# probes told is left then (a power of it), and how much more the last layer counts than the first
# (the logarithm of it), differs between networks; where time allows, all of these are tried.
LEANINGS = ((0.75, 1.0), (1.0, 2.0), (1.0, 1.0))
AS_PROBED = (1.0, 0.0)


def list_search_spaces(
    source: Source,
    layers: Sequence[Layer],
    table: LatencyTable,
    metrics: Metrics,
    held: Data,
    options: Options,
    progress: Progress,
) -> tuple[list[SearchSpace], Sensitivity]:
    """List what could be done with each layer and what it loses; one menu for each leaning.

    There is but one where no layer makes up for the errors of others.

    Args:
        source: The network.
        layers: Those that may be changed.
        table: Their times.
        metrics: What each sees, by layer name.
        held: Inputs that say what is lost.
        options: The options.
        progress: Called with a stage and the share of it that is done.

    Returns:
        The menus, and what the probes told.

    Raises:
        ConverterError: When a worker is gone, or what the network gives is not finite.
    """
    listed = list_options(
        layers,
        table,
        metrics,
        seed=options.resources.seed,
        cache=options.resources.cache_folder(),
        cluster=options.resources.cluster,
        progress=lambda done: progress("options", done),
    )
    todo = [layer for layer in layers if len(listed.get(layer.name, ())) > 1]
    probes = sensitivities(
        source.network,
        todo,
        metrics,
        held,
        torch.get_num_threads(),
        seed=options.resources.seed,
        progress=lambda done: progress("probing", done),
    )
    names = [layer.name for layer in todo]
    leanings = LEANINGS if options.search.correct and metrics else (AS_PROBED,)
    weights = [_weights(probes, names, *leaning) for leaning in leanings]
    return [
        SearchSpace({name: listed[name] for name in names}, w).sensible() for w in weights
    ], probes


def _weights(
    probes: Sensitivity, names: Sequence[str], power: float, late: float
) -> dict[str, float]:
    """Lean what the probes told, in sum as it was; ``names`` are in graph order."""
    leaned = {
        name: probes.weights[name] ** power * math.exp(late * number / len(names))
        for number, name in enumerate(names)
    }
    scale = sum(probes.weights[name] for name in names) / (sum(leaned.values()) or 1.0)
    return {name: scale * weight for name, weight in leaned.items()}
