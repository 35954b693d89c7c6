"""Tucker-2: the channel modes of a kernel compressed, its spatial modes left as they are."""

from __future__ import annotations

import numpy as np

from converter.decomposition.metric import Metric
from converter.decomposition.solvers.svd import truncated_svd

SWEEPS, LEAST_GAIN = 50, 1e-7


def tucker2(
    tensor: np.ndarray, ranks: tuple[int, int], metric: Metric | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decompose a kernel over its first two modes (Kim et al., arXiv 1511.06530).

    Higher-order orthogonal iteration, where a sweep is two eigenvalue problems of channel size;
    under a metric in the coordinates that its Kronecker form whitens, and then outputs and core
    are solved together, in closed form, under the metric itself.

    Args:
        tensor: (O, I, K), float64.
        ranks: (R2, R1) of the O and the I mode.
        metric: Of the modes I and K, or None.

    Returns:
        out (O, R2), core (R2, R1, K), in (I, R1).
    """
    O, I, K = tensor.shape
    R2, R1 = ranks
    white = tensor
    if metric is not None:
        channels, window = metric.roots((K,))
        white = np.einsum("oik,ij->ojk", tensor @ window, channels)
    inner = _leading(white.swapaxes(0, 1).reshape(I, -1), R1)  # (I, R1)
    kept = 0.0
    for _ in range(SWEEPS):
        seen = np.einsum("oik,ir->ork", white, inner)  # (O, R1, K)
        out = _leading(seen.reshape(O, -1), R2)
        seen = np.einsum("oik,or->irk", white, out)  # (I, R2, K)
        inner = _leading(seen.reshape(I, -1), R1)
        power = float(np.sum(np.einsum("irk,ij->jrk", seen, inner) ** 2))
        if power - kept <= LEAST_GAIN * power:
            break
        kept = power
    if metric is None:
        core = np.einsum("oik,or,ij->rjk", white, out, inner, optimize=True)
        return out, core, inner
    inner = np.linalg.qr(np.linalg.solve(channels.T, inner))[0]
    basis = np.einsum("ir,kl->ikrl", inner, np.eye(K)).reshape(I * K, R1 * K)
    seen = metric.dense() @ basis
    gram = basis.T @ seen
    free = np.linalg.solve(gram, seen.T @ tensor.reshape(O, -1).T).T  # best (O, R1 K)
    out, core = truncated_svd(free, min(R2, R1 * K), right=gram)
    idle = R2 - out.shape[1]  # outputs that so small a core cannot tell apart
    out, core = np.pad(out, ((0, 0), (0, idle))), np.pad(core, ((0, idle), (0, 0)))
    return out, core.reshape(R2, R1, K), inner


def _leading(matrix: np.ndarray, R: int) -> np.ndarray:
    """Give the R leading left singular vectors."""
    return np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :R]
