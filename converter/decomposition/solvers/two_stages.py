"""Two stages of 1-D filters in a row: the layers of the paper's networks, as one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from converter.decomposition.metric import Metric, mapped
from converter.decomposition.solvers.cp import cp
from converter.decomposition.solvers.svd import exact_rank
from converter.decomposition.taps import stage_sizes

ITERATIONS = 300
NOISE = 0.1  # of the usual entry, where there are no terms to start from


def two_stages(
    tensor: np.ndarray,
    R: int,
    seed: int,
    metric: Metric | None = None,
    device: str = "cpu",
    effort: float = 1.0,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Write a kernel as two stages, each a mix of channels and a 1-D filter per axis and channel.

    W[o, i, h, w] = sum_r C[o, r] L[r, i] (v1[r] * v2[o])(h) (h1[r] * h2[o])(w), with convolutions
    of the 1-D filters (arXiv 1412.5474, section 3.1). No closed form is known: started from CP
    terms cut to the first stage's size, then L-BFGS on all factors, in the coordinates that the
    metric's Kronecker form whitens; what it ends in is a local minimum.

    Args:
        tensor: (O, I, *k), float64, every entry of k above 1.
        R: Channels between the stages.
        seed: Of the start.
        metric: Of the channels and the window, or None.
        device: torch device to compute on.
        effort: Share of the usual work that it may take.

    Returns:
        Factors of the first stage, (R, I), (R, k1), ..., and of the second, (O, R), (O, k2), ...;
        what the second leaves out, an axis of size 1, is (O, 1).
    """
    sizes = [stage_sizes(size) for size in tensor.shape[2:]]
    # Terms of an exact decomposition sit in single taps, and many of them would be cut to nothing.
    terms = min(R, max(exact_rank(tensor.shape) - 1, 1))
    found = cp(tensor, terms, seed, metric, device=device, effort=effort)
    rng = np.random.default_rng(seed)
    size = [NOISE * float(np.sqrt(np.mean(factor**2))) for factor in found]
    out, lateral, *windows = (
        np.hstack([f, scale * rng.standard_normal((len(f), R - terms))])
        for f, scale in zip(found, size)
    )
    first, second = [lateral.T], [out]
    for window, (near, far) in zip(windows, sizes):
        begin = far // 2
        first.append(window[begin : begin + near].T)
        second.append(np.eye(far)[[begin] * len(tensor)])
    roots = [np.eye(n) for n in tensor.shape[1:]]
    if metric is not None:
        roots = metric.roots(tensor.shape[2:])
    maps = [torch.from_numpy(root).to(device) for root in roots]
    target = torch.from_numpy(mapped(tensor, roots)).to(device)
    power = float(target.square().sum()) or 1.0
    factors = [
        torch.from_numpy(np.ascontiguousarray(f)).to(device).requires_grad_()
        for f in (*first, *second)
    ]
    search = torch.optim.LBFGS(
        factors, max_iter=max(round(effort * ITERATIONS), 1), line_search_fn="strong_wolfe"
    )

    def error() -> torch.Tensor:
        search.zero_grad()
        found = _kernel(factors[: len(first)], factors[len(first) :])
        for mode, root in enumerate(maps, start=1):
            found = torch.movedim(torch.movedim(found, mode, -1) @ root, -1, mode)
        loss = (found - target).square().sum() / power
        loss.backward()
        return loss

    search.step(error)
    solved = [factor.detach().cpu().numpy() for factor in factors]
    return solved[: len(first)], solved[len(first) :]


def _kernel(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compose two stages into the kernel (O, I, *k) that they compute."""
    lateral, *near = first
    mix, *far = second
    kernel = lateral
    for axis, window in enumerate(near):
        shape = [len(window), *[1] * (axis + 1), window.shape[1]]
        kernel = kernel[..., None] * window.reshape(shape)
    kernel = torch.tensordot(mix, kernel, 1)  # (O, I, *k1)
    for axis, window in enumerate(far, start=2):
        moved = kernel.movedim(axis, -1)
        reach = window.shape[1] - 1
        column = (-1, *[1] * (moved.ndim - 1))
        terms = [
            torch.nn.functional.pad(moved, (tap, reach - tap)) * window[:, tap].reshape(column)
            for tap in range(reach + 1)
        ]
        kernel = torch.stack(terms).sum(0).movedim(-1, axis)
    return kernel
