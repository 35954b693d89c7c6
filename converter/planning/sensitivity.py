"""How much the network's output minds an error of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from converter.kernels.conv import Chain, Conv
from converter.kernels.form import relative_error
from converter.kernels.metric import Metric
from converter.networks.onnx_rewrite import replace_weights
from converter.networks.survey import Layer
from converter.planning.judge import Judge

PROBE_ERROR, LEAST_ERROR = 0.2, 1e-6
ALL = 1.0  # the output error of a probe that the network does not survive (float16 overflows)
# Multiply-accumulates of all probes together (some 15 s); a probe runs one batch at least.
PROBE_MACS = 4e11


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
    judge: Judge,
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
        judge: Says what is lost.
        seed: Of the random direction of probes that have no other.
        progress: Called with the share done.

    """
    batch_size = len(next(iter(judge.batches[0].values())))
    each = sum(layer.macs for layer in layers) * batch_size * len(layers)
    most = int(np.clip(PROBE_MACS / max(each, 1), 1, len(judge.batches)))
    found, losses = {}, []
    for number, layer in enumerate(layers):
        assert layer.conv is not None
        metric = metrics.get(layer.name)
        probe = _cut(layer.conv, metric, np.random.default_rng((seed, number)))
        error = relative_error(layer.conv, Chain((probe,)), metric)
        loss = judge.loss(replace_weights(network, {layer.output: probe}), most)
        if not math.isfinite(loss.output_error):
            loss = replace(loss, output_error=ALL)
        found[layer.name] = loss.output_error**2 / max(error, LEAST_ERROR) ** 2
        losses.append(loss)
        progress((number + 1) / len(layers))
    total = sum(loss.output_error**2 for loss in losses) or 1.0
    return Sensitivity(found, sum(max(loss.drop or 0.0, 0.0) for loss in losses) / total)


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
    probe = replace(conv, kernel=np.concatenate(parts).astype(conv.kernel.dtype))
    shift = np.concatenate(shifts).astype(conv.kernel.dtype)
    if not shift.any():
        return probe
    return replace(probe, bias=shift if conv.bias is None else conv.bias + shift)
