"""A layer solved for a sample of its inputs and of its target outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from converter.decomposition.conv import Chain, Conv, assemble
from converter.decomposition.form import Form, Rank
from converter.decomposition.metric import Metric
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.last_step import LastStep
from converter.reconstruction.layer_sample import LayerSample
from converter.reconstruction.moments import fits_in_memory, metric_from_patches, patch_size
from converter.reconstruction.products import factorize, product, solve
from converter.reconstruction.ridge import Patches, choose_ridge
from converter.reconstruction.solve import run_solver

REFIT = "dense"  # the form of a layer that keeps its shape and corrects the errors before it
KERNEL_RIDGE = 1e-3  # toward the trained kernel, relative to the mean power of the inputs
ENOUGH_PATCHES = 16  # for each weight; with fewer, the ridge of a dense refit is chosen
# How often the one-sided targets follow the response. The last time, all steps are solved; before,
# the last step alone. Twice as many rounds take longer and lose no less.
FITS = 2
# Effort of the solver before that; and with a start, from which it takes a few steps at an effort
# of 1: with fewer than START_EFFORT, the network loses more than without a start.
FIRST_EFFORT, START_EFFORT = 0.5, 2.0


@dataclass(frozen=True)
class KernelRegression:
    """Least squares from the patches of a layer to its outputs, with a ridge.

    Attributes:
        conv: The trained layer.
        means: (groups, n), the mean patches.
        patches: (groups, P, n), less their means.
        metrics: Second moments of the patches, with the ridge; one for each group, or none if not
            even those of the channels fit into memory.
        ridges: Weight l of the distance to the trained kernel, for each group; empty if the full
            moments do not fit into memory.
        roots: Cholesky factors of the metrics; empty if the full moments do not fit.
    """

    conv: Conv
    means: np.ndarray
    patches: np.ndarray
    metrics: list[Metric]
    ridges: list[float]
    roots: list[torch.Tensor]

    @classmethod
    def of(cls, conv: Conv, sample: LayerSample, memory_bytes: float) -> KernelRegression:
        """Prepare the least squares of a layer, with ``memory_bytes`` for the moments."""
        means = sample.patches.mean(1, dtype=np.float64)  # (groups, n)
        patches = sample.patches - means[:, None].astype(np.float32)
        full = fits_in_memory(patch_size(conv), memory_bytes)
        I = conv.I // conv.groups
        fitting = patches if fits_in_memory(I, memory_bytes) else []
        metrics = [metric_from_patches(part, I, full, KERNEL_RIDGE) for part in fitting]
        moments = [metric.full for metric in metrics if metric.full is not None]
        return cls(
            conv,
            means,
            patches,
            metrics,
            [float(np.trace(S) / len(S) * KERNEL_RIDGE / (1 + KERNEL_RIDGE)) for S in moments],
            [factorize(S) for S in moments],
        )

    def best_kernel(self, target: np.ndarray) -> Conv:
        """Return the layer with the kernel that is best for a target (P, O), without bias.

        W* = (E[y x^T] + l W) (E[x x^T] + l I)^-1 for the trained kernel W; W itself if the full
        moments do not fit into memory.
        """
        conv = replace(self.conv, bias=None)
        if not self.roots:
            return conv
        weights = conv.kernel.astype(np.float64).reshape(conv.groups, -1, patch_size(conv))
        rows = np.split((target - target.mean(0)).T, conv.groups)  # (O/groups, P)
        kernels = [
            solve(root, (product(row, part) / len(target) + ridge * weight).T).T
            for row, part, ridge, weight, root in zip(
                rows, self.patches, self.ridges, weights, self.roots
            )
        ]
        return replace(conv, kernel=np.concatenate(kernels).reshape(conv.kernel.shape))

    def response(self, chain: Chain) -> np.ndarray:
        """Return the output (P, O) of a chain on the patches, without bias."""
        kernel = chain.dense().kernel.reshape(self.conv.groups, -1, self.patches.shape[2])
        return np.concatenate([product(x, w.T) for x, w in zip(self.patches, kernel)], axis=1)


def _with_bias(conv: Conv, chain: Chain, target: np.ndarray, means: np.ndarray) -> Chain:
    """Give a chain the geometry of the layer, and the bias that meets the mean target.

    Args:
        conv: The trained layer.
        chain: The chain.
        target: (P, O).
        means: (groups, n), the mean patches.
    """
    kernel = chain.dense().kernel.reshape(conv.groups, -1, patch_size(conv))
    shift = np.einsum("gon,gn->go", kernel, means).reshape(-1)
    bias = (target.mean(0, dtype=np.float64) - shift).astype(conv.kernel.dtype)
    steps = assemble(conv, [(step.kernel, step.groups) for step in chain.steps])
    return steps.with_bias(bias)


def solve_for_sample(
    layer: Layer,
    form: Form,
    rank: Rank,
    sample: LayerSample,
    resources: Resources,
    start: Chain | None = None,
) -> tuple[Chain, float]:
    """Solve one layer for its sample.

    Args:
        layer: The trained layer.
        form: The form of its chain.
        rank: Rank over all groups.
        sample: Its inputs and target outputs.
        resources: Memory for the moments, seed, device and effort.
        start: A chain of the same form at any rank, from which the CP forms start.

    Returns:
        The chain with its bias, and the relative error of its response.
    """
    conv = layer.conv
    assert conv is not None
    smaller = min(patch_size(conv), sample.patches.shape[1])
    if form.name == REFIT and fits_in_memory(smaller, resources.memory_bytes):
        return _refit_dense(conv, sample)
    regression = KernelRegression.of(conv, sample, resources.memory_bytes)
    one_sided = bool(regression.roots) and sample.one_sided

    def solve_for(target: np.ndarray, start: Chain | None = None, effort: float = 1.0) -> Chain:
        kernel, metrics = regression.best_kernel(target), regression.metrics or None
        return run_solver(kernel, form, rank, resources, metrics, start, resources.effort * effort)

    target = sample.target
    first_effort = FIRST_EFFORT if one_sided else 1.0
    chain = solve_for(target, start, START_EFFORT if start else first_effort)
    response = regression.response(chain)
    if one_sided:
        chain, response, target = _solve_one_sided(regression, sample, chain, response, solve_for)
    if not regression.roots:
        scale = _channel_scale(response, target - target.mean(0))
        chain, response = chain.scaled(scale), response * scale.astype(np.float32)
    chain = _with_bias(conv, chain, target, regression.means)
    return chain, sample.error(response + target.mean(0))


def _refit_dense(conv: Conv, sample: LayerSample) -> tuple[Chain, float]:
    """Refit a layer that keeps its shape: least squares with a ridge toward the trained kernel.

    With few patches for each weight, the ridge is chosen by cross-validation.
    """
    means = sample.patches.mean(1, dtype=np.float64)  # (groups, n)
    patches = sample.patches - means[:, None].astype(np.float32)
    weights = conv.kernel.astype(np.float64).reshape(conv.groups, -1, patch_size(conv))
    few = patches.shape[1] < ENOUGH_PATCHES * patch_size(conv)

    def residuals(target: np.ndarray) -> list[np.ndarray]:
        rows = np.split(target - target.mean(0), conv.groups, axis=1)
        return [Y - product(X, W.T) for X, W, Y in zip(patches, weights, rows)]

    target, lacking = sample.target, residuals(sample.target)
    regressions = [
        Patches.of(X).with_ridge(choose_ridge(X, Y) if few else KERNEL_RIDGE)
        for X, Y in zip(patches, lacking)
    ]
    for last in (False, True) if sample.one_sided else (True,):
        changes = [regression.fit(Y) for regression, Y in zip(regressions, lacking)]
        kernels = [W + C.T for W, C in zip(weights, changes)]
        response = np.concatenate([product(X, W.T) for X, W in zip(patches, kernels)], axis=1)
        if not last:
            target = sample.one_sided_target(response + sample.target.mean(0))
            lacking = residuals(target)
    kernel = np.concatenate(kernels).reshape(conv.kernel.shape).astype(conv.kernel.dtype)
    chain = _with_bias(conv, assemble(conv, [(kernel, conv.groups)]), target, means)
    return chain, sample.error(response + target.mean(0))


def _solve_one_sided(
    regression: KernelRegression,
    sample: LayerSample,
    chain: Chain,
    response: np.ndarray,
    solve_for: Callable[[np.ndarray, Chain], Chain],
) -> tuple[Chain, np.ndarray, np.ndarray]:
    """Alternate between one-sided targets and their least squares (arXiv 1505.06798, 3.2).

    Returns:
        The chain, its response (P, O) without bias, and its target (P, O).
    """
    target = sample.one_sided_target(response + sample.target.mean(0))
    if len(chain.steps) > 1:
        last = LastStep.of(regression.conv, chain, regression.patches, regression.ridges)
        for _ in range(FITS - 1):
            chain, response = last.fit(target)
            target = sample.one_sided_target(response + target.mean(0))
    chain = solve_for(target, chain)
    return chain, regression.response(chain), target


def _channel_scale(response: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the least-squares scale (O,) of each channel."""
    power = np.square(response).sum(0, dtype=np.float64)
    along = (response * target).sum(0, dtype=np.float64)
    return np.asarray(np.divide(along, power, out=np.ones_like(power), where=power > 0))
