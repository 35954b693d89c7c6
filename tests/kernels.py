"""Tensors like trained kernels, and metrics like those of correlated patches."""

import numpy as np

from converter.decomposition.metric import Metric


def random(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


def smooth(shape, seed):
    """A tensor with a few strong directions, as trained kernels have."""
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((n, 12)) for n in shape]
    weights = 0.7 ** np.arange(12)
    letters = "abcde"[: len(shape)]
    spec = ",".join(["r", *(f"{letter}r" for letter in letters)])
    signal = np.einsum(f"{spec}->{letters}", weights, *factors)
    return signal + 0.1 * rng.standard_normal(shape)


def metric_for(shape, seed, kronecker=False):
    """What correlated patches make of the modes 1, 2, ... of a tensor of ``shape``."""
    I, n = shape[1], int(np.prod(shape[1:]))
    rng = np.random.default_rng(seed)
    S = rng.standard_normal((3 * n, n)) @ (rng.standard_normal((n, n)) * 0.9 ** np.arange(n))
    metric = Metric.of(S.T @ S / len(S), I)
    return Metric.kronecker(metric.channels, metric.window) if kronecker else metric


def error_under(metric, found, wanted):
    return np.sqrt(metric.square(found - wanted) / metric.square(wanted))
