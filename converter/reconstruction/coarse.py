"""Coarse moments of all layers for a search, kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from converter.cache import digest, load_arrays, store_arrays
from converter.data.data import Data
from converter.decomposition.metric import Metric
from converter.graph.external import modification_times
from converter.graph.network import MAX_BATCH, inputs
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.moments import MAX_IMAGES, Metrics, second_moments

PARTS = ("channels", "window", "mean")  # of a coarse metric


def coarse_metrics(
    network: ir.Model, layers: Sequence[Layer], data: Data | None, resources: Resources
) -> Metrics:
    """Return ``second_moments`` with ``coarse``, for a search; nothing without data.

    A single process takes them from the cache if the network and the sample inputs are the same.
    """
    if data is None:
        return {}
    key = ""
    if resources.cache is not None and resources.group.size == 1:
        key = _key(network, layers, data, resources)
        stored = load_arrays(resources.cache, key)
        if stored is not None:
            return _unpacked(layers, stored)
    with threadpool_limits(1, user_api="blas"):  # see products
        metrics = second_moments(network, layers, data, resources, coarse=True)
    if resources.cache is not None and key:
        store_arrays(resources.cache, key, _packed(layers, metrics))
    return metrics


def _key(network: ir.Model, layers: Sequence[Layer], data: Data, resources: Resources) -> str:
    count = max(MAX_IMAGES, inputs(network)[0].shape[0] or 1)
    images = data.sample(count, resources.seed)
    return digest(
        ir.to_proto(network).SerializeToString(),
        *modification_times(network),
        [digest(list(images.read(n).items())) for n in images.batch_indices(MAX_BATCH)],
        [layer.name for layer in layers],
        resources.seed,
        resources.memory_bytes,
        resources.threads,
    )


def _packed(layers: Sequence[Layer], metrics: Metrics) -> dict[str, np.ndarray]:
    """Return metrics as arrays by number of the layer and part, the groups of a layer stacked."""
    return {
        f"{number} {part}": np.stack([getattr(metric, part) for metric in metrics[layer.name]])
        for number, layer in enumerate(layers)
        if layer.name in metrics
        for part in PARTS
    }


def _unpacked(layers: Sequence[Layer], arrays: Mapping[str, np.ndarray]) -> Metrics:
    """Make metrics of the arrays of ``_packed``."""
    metrics: Metrics = {}
    for number, layer in enumerate(layers):
        if f"{number} channels" in arrays:
            channels, window, mean = (arrays[f"{number} {part}"] for part in PARTS)
            groups = zip(channels, window, mean)
            metrics[layer.name] = tuple(Metric(c, w, mean=m) for c, w, m in groups)
    return metrics
