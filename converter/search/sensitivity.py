"""How much the network's output minds an error of each layer."""

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
from converter.runtime.ort import run

PROBE_ERROR, LEAST_ERROR = 0.2, 1e-6
ALL = 1.0  # the output error of a probe that the network does not survive (float16 overflows)
# Multiply-accumulates of all probes together (some 15 s); where that is less than FEWEST examples a
# probe, as many of these as MOST_MACS allow, one at least: probes of n layers take n**2 work.
PROBE_MACS, FEWEST, MOST_MACS = 4e11, 16, 4e12
SESSIONS = 16  # that all probes share; to open one takes time in proportion to the layers, too


@dataclass(frozen=True)
class Sensitivity:
    """What the probes of all layers told.

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
    threads: int,
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> Sensitivity:
    """Probe each layer: what the network loses when it alone errs, per squared relative error.

    Each probe gives a layer its kernel cut to a lower rank, the original otherwise.

    Args:
        network: The original.
        layers: Those to probe.
        metrics: What each sees; the Frobenius norm where left out.
        data: Inputs to probe on; as many are used as time allows.
        threads: Of onnxruntime.
        seed: Of the random direction of probes that have no other.
        progress: Called with the share done.

    Raises:
        ConverterError: When the network gives NaN or infinite values for ``data``.
    """
    each = max(sum(layer.macs for layer in layers) * len(layers), 1)
    count = max(PROBE_MACS / each, min(FEWEST, MOST_MACS / each), 1)
    judge = LossEstimator.of(network, data.take(np.arange(min(int(count), data.count))), threads)
    found, losses = {}, []
    size = math.ceil(len(layers) / SESSIONS)
    for first in range(0, len(layers), size or 1):
        part = layers[first : first + size]
        convs = {layer.output: _biased(layer.conv) for layer in part if layer.conv is not None}
        loss_of = _opened(network, convs, judge)
        for number, layer in enumerate(part, first):
            conv, metric = convs[layer.output], metrics.get(layer.name)
            probe = _cut(conv, metric, np.random.default_rng((seed, number)))
            error = relative_error(conv, Chain((probe,)), metric)
            loss = loss_of(layer.output, probe)
            if not math.isfinite(loss.output_error):
                loss = replace(loss, output_error=ALL)
            found[layer.name] = loss.output_error**2 / max(error, LEAST_ERROR) ** 2
            losses.append(loss)
            progress((number + 1) / len(layers))
    total = sum(loss.output_error**2 for loss in losses) or 1.0
    return Sensitivity(found, sum(max(loss.drop or 0.0, 0.0) for loss in losses) / total)


def _opened(
    network: ir.Model, convs: Mapping[str, Conv], judge: LossEstimator
) -> Callable[[str, Conv], Loss]:
    """Open a network whose convolutions ``convs`` can be others; give what says what it loses."""
    session = open_session(
        with_outputs(with_weight_inputs(network, convs), judge.names), judge.threads
    )
    nodes = {str(node.outputs[0].name): node for node in network.graph}
    usual: dict[str, np.ndarray] = {}
    for output, conv in convs.items():
        usual |= new_weights(nodes[output], conv)

    def loss_of(output: str, probe: Conv) -> Loss:
        weights = usual | new_weights(nodes[output], probe)
        return judge.lost(lambda feeds: run(session, {**feeds, **weights}))

    return loss_of


def _biased(conv: Conv) -> Conv:
    """Give a convolution a bias, if it has none."""
    none = np.zeros(len(conv.kernel), conv.kernel.dtype)
    return conv if conv.bias is not None else replace(conv, bias=none)


def _cut(conv: Conv, metrics: Sequence[Metric] | None, rng: np.random.Generator) -> Conv:
    """Project a kernel on the directions of its outputs that hold the most of its responses.

    As many are kept as leave about ``PROBE_ERROR``; where that is none or all, random weights of
    that error are added instead. The bias makes up for the mean of what is gone, as it does when
    a layer is solved.
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
