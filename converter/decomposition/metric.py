"""``Metric``: the norm of a kernel's error, from the second moments of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorly as tl
from tensorly.tenalg import multi_mode_dot

# Share of the mean power added to all directions, so that metrics are positive definite.
FLOOR = 1e-6


@dataclass(frozen=True)
class Metric:
    """Second moments S of the input patches of one group: |W|^2 = tr(W S W^T) for W (O, n).

    S is kept in full, or, where that would be too large, as a Kronecker product of a moment of
    the channels and one of the window (Martens and Grosse, arXiv 1503.05671, section 3).

    Attributes:
        channels: (I, I), moments of the channels, averaged over the window.
        window: (K, K), moments of the window's positions over all channels, of trace K.
        full: (I K, I K), channels before positions as in a kernel; None if not kept.
        mean: (I K,), the mean patch if the moments are central; else None.
    """

    channels: np.ndarray
    window: np.ndarray
    full: np.ndarray | None = None
    mean: np.ndarray | None = None

    @classmethod
    def of(cls, moments: np.ndarray, I: int, floor: float = FLOOR) -> Metric:
        """Make a metric of full second moments (n, n), n = I K, over ``I`` channels.

        ``floor`` is the share of the mean power that is added to the diagonal.
        """
        n = len(moments)
        S = (moments + moments.T) / 2
        S[np.diag_indices(n)] += floor * _mean_power(S)
        blocks = S.reshape(I, n // I, I, n // I)
        channels = np.einsum("ikjk->ij", blocks) / (n // I)
        window = np.einsum("ikil->kl", blocks) / np.trace(channels)
        return cls(channels, window, S)

    @classmethod
    def kronecker(cls, channels: np.ndarray, window: np.ndarray, floor: float = FLOOR) -> Metric:
        """Make a metric of moments of channels (I, I) and of the window (K, K), at any scale."""
        channels, window = channels.copy(), window.copy()
        for moments in (channels, window):
            moments[np.diag_indices(len(moments))] += floor * _mean_power(moments)
        return cls(channels, window * (len(window) / np.trace(window)))

    def times(self, rows: np.ndarray) -> np.ndarray:
        """Return B S for rows B (m, I K)."""
        if self.full is not None:
            product: np.ndarray = rows @ self.full
            return product
        blocks = rows.reshape(len(rows), len(self.channels), len(self.window)) @ self.window
        product = np.einsum("mik,ij->mjk", blocks, self.channels, optimize=True)
        return product.reshape(rows.shape)

    def square(self, kernel: np.ndarray) -> float:
        """Return |W|^2 of a kernel W (O, I, ...)."""
        rows = kernel.reshape(len(kernel), -1)
        return max(float((self.times(rows) * rows).sum()), 0.0)

    def roots(self, k: tuple[int, ...]) -> list[np.ndarray]:
        """Return lower Cholesky factors of the Kronecker form: channels, then each axis of ``k``.

        Args:
            k: Sizes that multiply to K: (K,) for the window as a whole, (Kh, Kw) for its axes.
        """
        moments = [self.channels]
        window = self.window.reshape((*k, *k))
        axes = "abc"[: len(k)]
        for axis in range(len(k)):
            other = axes.replace(axes[axis], "z")
            marginal = np.einsum(f"{axes}{other}->{axes[axis]}z", window)
            moments.append(marginal * (k[axis] / np.trace(marginal)))
        return [np.linalg.cholesky(moment) for moment in moments]

    def whitened(self, k: tuple[int, ...]) -> np.ndarray:
        """Return L^-1 S L^-T (n, n) of the full moments, L the Kronecker product of ``roots``.

        It is computed once, because a metric serves several decompositions.
        """
        if k not in self._whitened:
            assert self.full is not None
            channels, *window = (np.linalg.inv(root) for root in self.roots(k))
            window_inverse: np.ndarray = np.ones((1, 1))
            for inverse in window:
                window_inverse = np.kron(window_inverse, inverse)
            n, white = len(self.full), self.full
            for _ in range(2):  # the rows, then the columns
                rows = (channels @ white.reshape(len(channels), -1)).reshape(
                    -1, len(window_inverse), n
                )
                white = np.matmul(window_inverse, rows).reshape(n, n).T
            self._whitened[k] = np.ascontiguousarray(white)
        return self._whitened[k]

    @cached_property
    def _whitened(self) -> dict[tuple[int, ...], np.ndarray]:
        return {}

    def windows(self) -> np.ndarray:
        """Return the moments (I, K, K) of each channel's own window."""
        I, K = len(self.channels), len(self.window)
        if self.full is None:
            moments: np.ndarray = self.channels.diagonal()[:, None, None] * self.window
            return moments
        diagonal = np.arange(I)
        return self.full.reshape(I, K, I, K)[diagonal, :, diagonal]

    def dense(self) -> np.ndarray:
        """Return S (n, n), multiplied out if it is kept as a Kronecker product."""
        return np.kron(self.channels, self.window) if self.full is None else self.full


def whiten(tensor: np.ndarray, roots: Sequence[np.ndarray]) -> np.ndarray:
    """Multiply the modes 1, 2, ... of a tensor by the transposed roots."""
    with tl.backend_context("numpy"):
        modes = range(1, len(roots) + 1)
        return np.ascontiguousarray(multi_mode_dot(tensor, roots, modes=modes, transpose=True))


def _mean_power(moments: np.ndarray) -> float:
    """Return the mean of the diagonal; 1 / FLOOR without inputs, for the Frobenius norm."""
    mean = float(np.trace(moments)) / len(moments)
    return mean if mean > 0 and math.isfinite(mean) else 1.0 / FLOOR
