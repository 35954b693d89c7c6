"""The sensitivity of the network's output to an error of each layer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import onnx_ir as ir

from converter.cache import cached_text, digest
from converter.data.data import Arrays, Data
from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.metric import Metric
from converter.evaluation.loss import Loss, LossEstimator, loss_between
from converter.evaluation.tasks.task import Task
from converter.graph.external import modification_times
from converter.graph.network import MAX_BATCH, open_session
from converter.graph.outputs import with_outputs
from converter.graph.rewrite import new_weights, with_weight_inputs
from converter.graph.segments import (
    SegmentedModel,
    after_boundary,
    computed_after,
    run_segment,
    segment,
)
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.sampling import widest_bytes
from converter.runtime.ort import run

PROBE_ERROR, MIN_ERROR = 0.2, 1e-6  # relative errors of a layer
NON_FINITE_LOSS = 1.0  # surrogate of a probe without finite outputs (float16 overflows)
# Multiply-accumulates of all probes together (about 15 s). If they allow fewer than MIN_EXAMPLES
# examples, up to MAX_MACS are spent to reach that number. At least one example is used.
PROBE_MACS, MIN_EXAMPLES, MAX_MACS = 4e11, 16, 4e12
SESSIONS = 16  # shared by all probes: opening one takes time in proportion to the layers


@dataclass(frozen=True)
class Sensitivity:
    """The results of the probes of all layers.

    Attributes:
        weights: Surrogate of the tasks' loss per squared relative error of a layer, by layer name.
        drop: Loss of the tasks per surrogate.
        squared_error: Squared relative error of the worst channel per surrogate.
    """

    weights: Mapping[str, float]
    drop: float
    squared_error: float


def sensitivities(
    network: ir.Model,
    layers: Sequence[Layer],
    metrics: Mapping[str, Sequence[Metric]],
    data: Data,
    resources: Resources,
    tasks: Sequence[Task],
) -> Sensitivity:
    """Measure the loss of the network when a single layer has an error.

    Each probe projects the kernel of one layer on a lower rank and leaves the others unchanged.

    Args:
        network: The original network.
        layers: The layers to probe.
        metrics: Metrics of each layer's inputs, by layer name; the Frobenius norm if left out.
        data: Inputs (N, ...) to probe on; as many are used as ``MAX_MACS`` allows.
        resources: Threads, and the seed of probes in a random direction.
        tasks: What the outputs mean; the loss is their surrogate.

    Raises:
        ConverterError: When the network gives NaN or infinite values for ``data``.
    """
    macs = max(sum(layer.macs for layer in layers) * len(layers), 1)  # of all probes, per example
    count = max(PROBE_MACS / macs, min(MIN_EXAMPLES, MAX_MACS / macs), 1)
    parts = _parts(layers)
    if parts:
        model = segment(network, [part[0].output for part in parts])
        fitting = resources.memory_bytes / 2 / widest_bytes(network, model, data)
        count = max(min(count, fitting), 1)
    examples = data.take(np.arange(min(int(count), data.count)))
    key = ""
    if resources.cache is not None:
        key = digest(
            ir.to_proto(network).SerializeToString(),
            *modification_times(network),
            [digest(list(examples.read(n).items())) for n in examples.batch_indices(MAX_BATCH)],
            [layer.name for layer in layers],
            [[m.channels, m.window, m.mean] for name in metrics for m in metrics[name]],
            tasks,
            resources.seed,
            resources.threads,
        )
    text = cached_text(
        resources.cache,
        key,
        lambda: json.dumps(asdict(_probe(network, layers, metrics, examples, resources, tasks))),
    )
    return Sensitivity(**json.loads(text))


def _probe(
    network: ir.Model,
    layers: Sequence[Layer],
    metrics: Mapping[str, Sequence[Metric]],
    examples: Data,
    resources: Resources,
    tasks: Sequence[Task],
) -> Sensitivity:
    """Probe the layers on examples; see ``sensitivities``."""
    progress = resources.stage("probing")
    estimator = LossEstimator.of(network, examples, resources.threads, tasks)
    weights: dict[str, float] = {}
    losses: list[Loss] = []
    parts = _parts(layers)
    model = segment(network, [part[0].output for part in parts])
    tensors: Sequence[Arrays] = estimator.batches  # in front of the part
    for first, part in enumerate(parts):
        tensors = run_segment(model, first, tensors, resources.threads)
        convs = {layer.output: _with_bias(layer.conv) for layer in part if layer.conv is not None}
        loss_of = _open_for_probes(model, first, convs, estimator, tensors)
        for number, layer in enumerate(part, len(losses)):
            conv, metric = convs[layer.output], metrics.get(layer.name)
            probe = _project(conv, metric, np.random.default_rng((resources.seed, number)))
            error = relative_error(conv, Chain((probe,)), metric)
            loss = loss_of(layer.output, probe)
            if not math.isfinite(loss.surrogate):
                loss = replace(loss, surrogate=NON_FINITE_LOSS)
            weights[layer.name] = loss.surrogate / max(error, MIN_ERROR) ** 2
            losses.append(loss)
            progress((number + 1) / len(layers))
    total = sum(loss.surrogate for loss in losses) or 1.0
    drop = sum(max(loss.estimate.lost, 0.0) for loss in losses)
    squared = sum(loss.output_error**2 for loss in losses if math.isfinite(loss.output_error))
    return Sensitivity(weights, drop / total, squared / total)


def _parts(layers: Sequence[Layer]) -> list[Sequence[Layer]]:
    """Divide the layers into those that share a session."""
    size = math.ceil(len(layers) / SESSIONS) or 1
    return [layers[first : first + size] for first in range(0, len(layers), size)]


def _open_for_probes(
    model: SegmentedModel,
    number: int,
    convs: Mapping[str, Conv],
    estimator: LossEstimator,
    tensors: Sequence[Arrays],
) -> Callable[[str, Conv], Loss]:
    """Open the part of a network from some layers on, with their kernels as inputs.

    Args:
        model: The network; a segment ends in front of the layers.
        number: Index of that segment.
        convs: The layers, by output.
        estimator: The original's outputs, and how they are compared.
        tensors: Tensors in front of the layers, batch by batch.

    Returns:
        (output, kernel) -> loss.
    """
    names = computed_after(model, next(iter(convs)), estimator.names)
    network = after_boundary(model, number, names, tensors[0])
    session = open_session(
        with_outputs(with_weight_inputs(network, convs), names), estimator.threads
    )
    taken = [item.name for item in session.get_inputs()]
    nodes = {str(node.outputs[0].name): node for node in model.model.graph}
    original_weights: dict[str, np.ndarray] = {}
    for output, conv in convs.items():
        original_weights |= new_weights(nodes[output], conv)

    def loss_of(output: str, probe: Conv) -> Loss:
        weights = original_weights | new_weights(nodes[output], probe)
        results = []
        for unchanged, arrays in zip(estimator.outputs, tensors):
            feeds = {**arrays, **weights}
            results.append(unchanged | run(session, {name: feeds[name] for name in taken}))
        return loss_between(estimator.tasks, estimator.outputs, results)

    return loss_of


def _with_bias(conv: Conv) -> Conv:
    """Add a zero bias to a convolution without one."""
    zeros = np.zeros(len(conv.kernel), conv.kernel.dtype)
    return conv if conv.bias is not None else replace(conv, bias=zeros)


def _project(conv: Conv, metrics: Sequence[Metric] | None, rng: np.random.Generator) -> Conv:
    """Project a kernel on the output directions that carry most of its responses.

    The largest error below ``PROBE_ERROR`` is chosen. If this keeps none or all directions, random
    weights of relative norm ``PROBE_ERROR`` are added instead. As when a layer is solved, the bias
    corrects the mean of the removed part.
    """
    kernel = conv.kernel.astype(np.float64)
    parts, shifts = [], []
    for group, part in enumerate(np.split(kernel, conv.groups)):
        rows = part.reshape(len(part), -1)
        weighted = rows if metrics is None else metrics[group].times(rows)
        power, directions = np.linalg.eigh(weighted @ rows.T)  # in ascending order
        lost = np.cumsum(np.maximum(power, 0)) / max(power.sum(), np.finfo(np.float64).tiny)
        count = int(np.searchsorted(lost, PROBE_ERROR**2, side="right"))
        kept = directions[:, count:]
        projected = kept @ (kept.T @ rows)
        if not 0 < count < len(part):
            noise = rng.standard_normal(rows.shape)
            projected = rows + noise * (PROBE_ERROR * np.linalg.norm(rows) / np.linalg.norm(noise))
        parts.append(projected.reshape(part.shape))
        mean = None if metrics is None else metrics[group].mean
        shifts.append(np.zeros(len(part)) if mean is None else (rows - projected) @ mean)
    assert conv.bias is not None
    shift = np.concatenate(shifts).astype(conv.kernel.dtype)
    kernel = np.concatenate(parts).astype(conv.kernel.dtype)
    return replace(conv, kernel=kernel, bias=conv.bias + shift)
