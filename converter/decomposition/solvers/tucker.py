"""Tucker-2: the channel modes of a kernel compressed, its window left as it is."""

from __future__ import annotations

import numpy as np
from tensorly import unfold
from tensorly.tenalg import mode_dot, multi_mode_dot
from tensorly.tucker_tensor import TuckerTensor

from converter.decomposition.problem import KernelProblem
from converter.decomposition.solvers.svd import truncated_svd

MAX_SWEEPS, MIN_GAIN = 50, 1e-7


def tucker2(problem: KernelProblem, ranks: tuple[int, int]) -> TuckerTensor:
    """Decompose a kernel over its first two modes (Kim et al., arXiv 1511.06530).

    This is higher-order orthogonal iteration; a sweep solves two eigenvalue problems of channel
    size. Under a metric it runs in the coordinates that the Kronecker form whitens. Then outputs
    and core are solved together, in closed form, under the metric itself.

    Args:
        problem: Target (O, I, K).
        ranks: (R2, R1) of the O and the I mode.

    Returns:
        Core (R2, R1, K); factors (O, R2), (I, R1) and, for the window, the identity.
    """
    R2, R1 = ranks
    white, window = problem.whitened, np.eye(problem.target.shape[2])
    inner = _leading(unfold(white, 1), R1)  # (I, R1)
    if problem.start is not None:
        inner = np.linalg.qr(problem.roots[0].T @ problem.start.factors[1])[0]
    previous = 0.0
    for _ in range(MAX_SWEEPS):
        out = _leading(unfold(mode_dot(white, inner.T, 1), 0), R2)
        projected = mode_dot(white, out.T, 0)  # (R2, I, K)
        inner = _leading(unfold(projected, 1), R1)
        power = float(np.sum(mode_dot(projected, inner.T, 1) ** 2))
        if power - previous <= MIN_GAIN * power:
            break
        previous = power
    if problem.metric is None:
        core = multi_mode_dot(white, [out.T, inner.T], modes=[0, 1])
    else:
        inner = np.linalg.qr(np.linalg.solve(problem.roots[0].T, inner))[0]
        out, core = _solve_outputs(problem, inner, R2)
    return TuckerTensor((core, [out, inner, window]))


def _solve_outputs(
    problem: KernelProblem, inner: np.ndarray, R2: int
) -> tuple[np.ndarray, np.ndarray]:
    """Solve outputs (O, R2) and core (R2, R1, K) for fixed input factors ``inner`` (I, R1)."""
    assert problem.metric is not None
    (O, _, K), R1 = problem.target.shape, inner.shape[1]
    basis = np.kron(inner, np.eye(K))  # (I K, R1 K)
    weighted = problem.metric.dense() @ basis
    gram = basis.T @ weighted
    free = np.linalg.solve(gram, weighted.T @ problem.target.reshape(O, -1).T).T  # best (O, R1 K)
    out, core = truncated_svd(free, min(R2, R1 * K), gram)
    unused = R2 - out.shape[1]  # a core of R1 K entries cannot use more than R1 K outputs
    out, core = np.pad(out, ((0, 0), (0, unused))), np.pad(core, ((0, unused), (0, 0)))
    return out, core.reshape(R2, R1, K)


def _leading(matrix: np.ndarray, R: int) -> np.ndarray:
    """Return the R leading left singular vectors, from the eigenvectors of M M^T."""
    return np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :R]
