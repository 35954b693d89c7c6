"""How sensitive the network's output is to an error of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from converter.data.data import Data
from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.metric import Metric
from converter.evaluation.loss import Loss, LossEstimator
from converter.graph.network import open_session
from converter.graph.outputs import with_outputs
from converter.graph.rewrite import new_weights, with_weight_inputs
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.runtime.ort import run

PROBE_ERROR, MIN_ERROR = 0.2, 1e-6
ALL = 1.0  # the output error of a probe that gives no finite outputs (float16 overflows)
# Multiply-accumulates of all probes together (some 15 s). Where that is less than MIN_EXAMPLES for
# each probe, as many of these as MAX_MACS allow, and at least one: n probes take n**2 work.
PROBE_MACS, MIN_EXAMPLES, MAX_MACS = 4e11, 16, 4e12
SESSIONS = 16  # shared by all probes, since opening one takes time in proportion to the layers


@dataclass(frozen=True)
class Sensitivity:
    """The results of the probes of all layers.

    Attributes:
        weights: Loss, that is squared relative output error, per squared relative error of a
            layer, by layer name.
        drop: Accuracy lost per loss; 0 without classes.
    """

    weights: Mapping[str, float]
    drop: float


def sensitivities(
    network: ir.Model,
    layers: Sequence[Layer],
    metrics: Mapping[str, Sequence[Metric]],
    data: Data,
    resources: Resources,
) -> Sensitivity:
    """Probe each layer: the loss of the network when that layer alone errs.

    Each probe cuts the kernel of one layer to a lower rank and leaves the others as they are.

    Args:
        network: The original.
        layers: Those to probe.
        metrics: Of each layer's inputs; the Frobenius norm where left out.
        data: Inputs to probe on; as many are used as time allows.
        resources: Threads, and the seed of probes in a random direction.

    Raises:
        ConverterError: When the network gives NaN or infinite values for ``data``.
    """
    progress = resources.stage("probing")
    each = max(sum(layer.macs for layer in layers) * len(layers), 1)
    count = max(PROBE_MACS / each, min(MIN_EXAMPLES, MAX_MACS / each), 1)
    few = data.take(np.arange(min(int(count), data.count)))
    estimator = LossEstimator.of(network, few, resources.threads)
    weights, losses = {}, []
    size = math.ceil(len(layers) / SESSIONS)
    for first in range(0, len(layers), size or 1):
        part = layers[first : first + size]
        convs = {layer.output: _biased(layer.conv) for layer in part if layer.conv is not None}
        loss_of = _open(network, convs, estimator)
        for number, layer in enumerate(part, first):
            conv, metric = convs[layer.output], metrics.get(layer.name)
            probe = _cut(conv, metric, np.random.default_rng((resources.seed, number)))
            error = relative_error(conv, Chain((probe,)), metric)
            loss = loss_of(layer.output, probe)
            if not math.isfinite(loss.output_error):
                loss = replace(loss, output_error=ALL)
            weights[layer.name] = loss.output_error**2 / max(error, MIN_ERROR) ** 2
            losses.append(loss)
            progress((number + 1) / len(layers))
    total = sum(loss.output_error**2 for loss in losses) or 1.0
    return Sensitivity(weights, sum(max(loss.drop or 0.0, 0.0) for loss in losses) / total)


def _open(
    network: ir.Model, convs: Mapping[str, Conv], estimator: LossEstimator
) -> Callable[[str, Conv], Loss]:
    """Open a network whose kernels are inputs; return the loss for one kernel replaced."""
    session = open_session(
        with_outputs(with_weight_inputs(network, convs), estimator.names), estimator.threads
    )
    nodes = {str(node.outputs[0].name): node for node in network.graph}
    usual: dict[str, np.ndarray] = {}
    for output, conv in convs.items():
        usual |= new_weights(nodes[output], conv)

    def loss_of(output: str, probe: Conv) -> Loss:
        weights = usual | new_weights(nodes[output], probe)
        return estimator.loss_of(lambda feeds: run(session, {**feeds, **weights}))

    return loss_of


def _biased(conv: Conv) -> Conv:
    """Add a zero bias to a convolution without one."""
    none = np.zeros(len(conv.kernel), conv.kernel.dtype)
    return conv if conv.bias is not None else replace(conv, bias=none)


def _cut(conv: Conv, metrics: Sequence[Metric] | None, rng: np.random.Generator) -> Conv:
    """Project a kernel on the output directions that carry the most of its responses.

    As many directions are kept as leave an error of about ``PROBE_ERROR``. Where that is none or
    all of them, random weights of that error are added instead. The bias makes up for the mean of
    the removed part, as it does when a layer is solved.
    """
    kernel = conv.kernel.astype(np.float64)
    parts, shifts = [], []
    for group, part in enumerate(np.split(kernel, conv.groups)):
        rows = part.reshape(len(part), -1)
        seen = rows if metrics is None else metrics[group].times(rows)
        power, directions = np.linalg.eigh(seen @ rows.T)
        gone = np.cumsum(np.maximum(power, 0)) / max(power.sum(), np.finfo(np.float64).tiny)
        count = int(np.searchsorted(gone, PROBE_ERROR**2, side="right"))
        kept = directions[:, count:]
        cut = kept @ (kept.T @ rows)
        if not 0 < count < len(part):
            noise = rng.standard_normal(rows.shape)
            cut = rows + noise * (PROBE_ERROR * np.linalg.norm(rows) / np.linalg.norm(noise))
        parts.append(cut.reshape(part.shape))
        mean = None if metrics is None else metrics[group].mean
        shifts.append(np.zeros(len(part)) if mean is None else (rows - cut) @ mean)
    assert conv.bias is not None
    shift = np.concatenate(shifts).astype(conv.kernel.dtype)
    kernel = np.concatenate(parts).astype(conv.kernel.dtype)
    return replace(conv, kernel=kernel, bias=conv.bias + shift)
