"""Correction between layers: each solved again on what the converted part before it produces."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from scipy.linalg import cho_factor, cho_solve

from converter.cache import digest, load_arrays, packed, store_arrays, unpacked
from converter.data.data import Data
from converter.decomposition.conv import Chain, Conv, assemble
from converter.decomposition.decompose import decompose
from converter.decomposition.form import Form, Rank
from converter.decomposition.metric import Metric
from converter.decomposition.problem import SolverSettings
from converter.decomposition.refit import RIDGE, last_features
from converter.graph.consumers import find_consumers
from converter.graph.network import LARGEST_BATCH, observe_shapes, written
from converter.graph.segments import SegmentedModel, advance, cut
from converter.graph.survey import Layer
from converter.processes import SINGLE_PROCESS, ProcessGroup
from converter.reconstruction.layer_sample import LayerSample, look
from converter.reconstruction.moments import (
    fits,
    metric_of,
    patch_size,
)

# Of the mean power of the inputs: how strongly the best kernel is held to the trained one. Where
# no rank limits it and patches are fewer than ENOUGH for each weight, one half of them chooses
# what serves the other best.
REFIT = "dense"  # the form of what is kept and makes up for the errors before it
HOLD, HOLDS, ENOUGH = 1e-3, (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0), 16
FEWEST_IMAGES = 16  # whatever the memory
# Rounds in which the targets of outputs that a ReLU cuts off follow the predictions.
RELU_ROUNDS, RELU_REFITS = 2, 3
FIRST_EFFORT = 0.5  # of the solver before those rounds


def correct(
    network: ir.Model,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[Form, Rank]],
    data: Data,
    *,
    seed: int = 0,
    device: str = "cpu",
    cache: Path | None = None,
    batch_size: int | None = None,
    memory: float = 2.0**31,
    threads: int = 1,
    place: ProcessGroup = SINGLE_PROCESS,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[dict[str, Chain], dict[str, float]]:
    """Decompose the chosen layers in graph order, each for what the converted part gives it.

    For inputs x of the converted network and outputs y of the original, the best kernel without
    a restriction is W* = E[y x^T] (E[x x^T] + l I)^-1, held to the trained one by l; its chain is
    solved under the metric E[x x^T]. The last convolution before an addition makes up for the
    error of the other branch. Where a ReLU follows, outputs that the original has below zero
    count only as far as they come out above (a one-sided form of arXiv 1505.06798, section 3.2);
    where max pooling follows, as far as they come out above the largest of their window.
    Least squares throughout; no labels, no gradient descent.

    Args:
        network: The original network.
        layers: Its convolutions, in graph order.
        chosen: Form and rank by layer name.
        data: Sample inputs.
        seed: Of images, positions and solvers.
        device: torch device of the solvers.
        cache: Folder of earlier results, or None. What is the same up to some layer is not
            solved again up to there.
        batch_size: The batch size that the network insists on, or None.
        memory: Bytes that activations and moments may take, roughly; with little, fewer images
            are used.
        threads: Of onnxruntime.
        place: Several processes share the sample inputs; all call this with the same arguments,
            and the first solves.
        progress: Called with the share done.

    Returns:
        Chains and relative errors of the responses, by layer name.
    """
    todo = [layer for layer in layers if layer.name in chosen]
    around = {layer.output: find_consumers(network, layer) for layer in todo}
    walk = cut(network, [layer.output for layer in todo])
    images, spans = _batches(network, walk, data, batch_size, memory / 2, seed)
    shares = list(place.shard(spans))
    inputs = [images.read(span) for span in shares]
    key = digest(
        walk.model.SerializeToString(),
        *written(network),
        place.gather([digest(list(feeds.items())) for feeds in inputs]),
        seed,
        device,
        memory,
        threads,
        batch_size,
    )
    chains: dict[str, Chain] = {}
    errors: dict[str, float] = {}
    original = converted = inputs
    passed = 0
    for number, layer in enumerate(todo):
        form, rank = chosen[layer.name]
        key = digest(key, layer.name, form.name, rank)
        entry = (
            place.broadcast(functools.partial(load_arrays, cache, key))
            if cache is not None
            else None
        )
        if entry is None:
            for n in range(passed, number + 1):
                before = todo[n - 1] if n else None
                replaced = {before.output: (before.name, chains[before.name])} if before else {}
                same = original is converted and not replaced
                original = advance(walk, n, original, threads)
                converted = original if same else advance(walk, n, converted, threads, replaced)
            passed = number + 1
            seen = place.gather(
                [
                    look(
                        layer,
                        around[layer.output],
                        before,
                        now,
                        len(span) / images.count,
                        memory / 2,
                        np.random.default_rng((seed, number, int(span[0]))),
                    )
                    for span, before, now in zip(shares, original, converted)
                ]
            )
            chain, error = place.broadcast(
                functools.partial(_solve, layer, form, rank, seen, memory / 2, seed, device)
            )
            if cache is not None and place.rank == 0:
                bias = np.asarray(chain.steps[-1].bias)
                store_arrays(
                    cache, key, packed(chain) | {"bias": bias, "rel_error": np.array(error)}
                )
        else:
            assert layer.conv is not None
            chain = unpacked(layer.conv, entry).with_bias(entry["bias"])
            error = float(entry["rel_error"])
        chains[layer.name], errors[layer.name] = chain, error
        progress((number + 1) / len(todo))
    return chains, errors


def _batches(
    network: ir.Model,
    walk: SegmentedModel,
    data: Data,
    batch_size: int | None,
    memory: float,
    seed: int,
) -> tuple[Data, list[np.ndarray]]:
    """Choose as many sample inputs as leave room for what is alive at the widest cut, four times.

    Returns:
        The inputs, and the indices of their batches.
    """
    feeds = data.read(np.arange(batch_size or 1) % data.count)
    shapes = observe_shapes(network, walk.values, feeds)
    widest = max(
        sum(4 * math.prod(shapes[name]) for name in segment.outputs if name in shapes)
        for segment in walk.segments
    )
    count = max(int(memory / (4 * max(widest, 1))), FEWEST_IMAGES) * (batch_size or 1)
    images = data.sample(count, seed).filled(batch_size or 1)
    size = batch_size or LARGEST_BATCH
    whole = images.count - images.count % (batch_size or 1)
    images = images.take(np.arange(whole))
    return images, list(images.spans(size))


def _solve(
    layer: Layer,
    form: Form,
    rank: Rank,
    looks: list[LayerSample],
    memory: float,
    seed: int,
    device: str,
) -> tuple[Chain, float]:
    """Solve one layer for what it gets and what it should give, seen batch by batch."""
    conv = layer.conv
    assert conv is not None
    seen = LayerSample.of(looks)
    looks.clear()  # together they take as much memory
    means = seen.patches.mean(1, dtype=np.float64)  # (groups, n)
    patches = seen.patches - means[:, None].astype(np.float32)
    full = fits(patch_size(conv), memory)
    target = seen.target
    weights = conv.kernel.astype(np.float64).reshape(conv.groups, -1, patch_size(conv))
    share = HOLD
    if full and form.name == REFIT and patches.shape[1] < ENOUGH * patch_size(conv):
        share = _choose_hold(patches, target - target.mean(0), weights)
    metrics = [metric_of(part, conv.I // conv.groups, full, share) for part in patches]
    holds = [_hold(metric, share) for metric in metrics if metric.full is not None]
    roots = [cho_factor(metric.full) for metric in metrics if full]

    def best(target: np.ndarray) -> Conv:
        rows = np.split((target - target.mean(0)).T, conv.groups)  # (O/groups, P)
        kernels = [
            cho_solve(root, (row @ part / len(target) + hold * weight).T).T
            for row, part, hold, weight, root in zip(rows, patches, holds, weights, roots)
        ]
        return replace(conv, kernel=np.concatenate(kernels).reshape(conv.kernel.shape), bias=None)

    wanted = best(target) if full else replace(conv, bias=None)
    one_sided = full and (seen.around.rectified or math.prod(seen.around.pool) > 1)
    settings = SolverSettings(seed=seed, device=device)
    first = replace(settings, effort=FIRST_EFFORT if one_sided else 1.0)
    chain = decompose(wanted, form, rank, first, metrics=metrics)
    response = _response(conv, chain, patches)
    for number in range(RELU_ROUNDS * RELU_REFITS if one_sided else 0):
        target = seen.one_sided(response + target.mean(0))
        if len(chain.steps) == 1 or number % RELU_REFITS == RELU_REFITS - 1:
            chain = decompose(best(target), form, rank, settings, metrics=metrics, start=chain)
            response = _response(conv, chain, patches)
        else:
            if number % RELU_REFITS == 0:
                last = _Last.of(conv, chain, patches, holds)
            chain, response = last.solved(target)
    if not full:
        scale = _scale(response, target - target.mean(0))
        chain, response = chain.scaled(scale), response * scale.astype(np.float32)
    response += target.mean(0)
    kernel = chain.dense().kernel.reshape(conv.groups, -1, patch_size(conv))
    shift = np.einsum("gon,gn->go", kernel, means).reshape(-1)
    bias = (target.mean(0, dtype=np.float64) - shift).astype(conv.kernel.dtype)
    shipped = assemble(conv, [(step.kernel, step.groups) for step in chain.steps])
    return shipped.with_bias(bias), seen.error(response)


@dataclass(frozen=True)
class _Last:
    """The last step of a chain, which is solved for one target after another.

    The same least squares as ``refit``, over what the steps before it give on the patches. Lists
    go by the groups of the last step.

    Attributes:
        chain: The chain.
        seen: (P, filters), what the last step's weights multiply.
        roots: Of its second moments, with what holds the dense kernel to the trained one.
        moments: The same (filters, filters), before the ridge.
        held: (filters, O/groups), what it is held to.
    """

    chain: Chain
    seen: list[np.ndarray]
    roots: list[tuple[np.ndarray, bool]]
    moments: list[np.ndarray]
    held: list[np.ndarray]

    @classmethod
    def of(cls, conv: Conv, chain: Chain, patches: np.ndarray, holds: Sequence[float]) -> _Last:
        """Run all steps but the last on patches (groups, P, n), held by so much in each group."""
        features = last_features(chain)  # (groups of the last step, filters, n)
        per_group = len(features) // conv.groups
        weights = conv.kernel.astype(np.float64).reshape(len(features), -1, features.shape[2])
        seen, roots, moments, held = [], [], [], []
        for group, (B, W) in enumerate(zip(features, weights)):
            hold = holds[group // per_group]
            F = patches[group // per_group] @ B.T.astype(np.float32)
            gram = (F.T @ F).astype(np.float64) / len(F) + hold * B @ B.T
            ridge = max(RIDGE * np.trace(gram) / len(gram), np.finfo(np.float64).tiny)
            seen.append(F)
            roots.append(cho_factor(gram + ridge * np.eye(len(gram))))
            moments.append(gram)
            held.append(hold * B @ W.T)
        return cls(chain, seen, roots, moments, held)

    def solved(self, target: np.ndarray) -> tuple[Chain, np.ndarray]:
        """Fit to (P, O): the chain, and what it gives."""
        *head, last = self.chain.steps
        before = last.kernel.astype(np.float64).reshape(last.groups, -1, len(self.moments[0]))
        rows = np.split(target - target.mean(0), last.groups, axis=1)  # (P, O/groups)
        kernels = []
        for C, F, root, gram, held, row in zip(
            before, self.seen, self.roots, self.moments, self.held, rows
        ):
            wanted = (F.T @ row).astype(np.float64) / len(F) + held
            kernels.append(C + cho_solve(root, wanted - gram @ C.T).T)
        response = [F @ C.T.astype(np.float32) for F, C in zip(self.seen, kernels)]
        kernel = np.concatenate(kernels).reshape(last.kernel.shape).astype(last.kernel.dtype)
        chain = Chain((*head, replace(last, kernel=kernel)))
        return chain, np.concatenate(response, axis=1)


def _choose_hold(patches: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    """Choose the one of ``HOLDS`` with which one half of the patches predicts the other best.

    Args:
        patches: (groups, P, n), image by image, so that the halves are of different images.
        target: (P, O).
        weights: (groups, O/groups, n), the trained kernel.
    """
    half = patches.shape[1] // 2
    errors = np.zeros(len(HOLDS))
    for part, W, rows in zip(patches, weights, np.split(target, len(patches), axis=1)):
        left = rows - part @ W.T.astype(np.float32)  # what the trained kernel does not give
        gram = (part[:half].T @ part[:half]).astype(np.float64)
        wanted = part[:half].T @ left[:half]
        power = np.trace(gram) / len(gram) or 1.0  # an input that never changes has none
        for number, share in enumerate(HOLDS):
            change = cho_solve(cho_factor(gram + share * power * np.eye(len(gram))), wanted)
            missed = left[half:] - part[half:] @ change.astype(np.float32)
            errors[number] += np.square(missed, dtype=np.float64).sum()
    return HOLDS[int(errors.argmin())]


def _hold(metric: Metric, share: float) -> float:
    """Say how strongly the best kernel is held to the trained one: l, in ``correct``."""
    assert metric.full is not None
    return float(np.trace(metric.full) / len(metric.full) * share / (1 + share))


def _response(conv: Conv, chain: Chain, patches: np.ndarray) -> np.ndarray:
    """What a chain gives on patches (groups, P, n), its bias left out: (P, O)."""
    kernel = chain.dense().kernel.reshape(conv.groups, -1, patches.shape[2]).astype(np.float32)
    return np.concatenate([part @ w.T for part, w in zip(patches, kernel)], axis=1)


def _scale(response: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares scale (O,) of each channel."""
    power = np.square(response).sum(0, dtype=np.float64)
    along = (response * target).sum(0, dtype=np.float64)
    found: np.ndarray = np.divide(along, power, out=np.ones_like(power), where=power > 0)
    return found
