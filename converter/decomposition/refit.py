"""The last step of a chain, solved by least squares for given moments of the layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.metric import Metric

RIDGE = 1e-4  # of the mean power of the inputs of a chain's last step


def refit(conv: Conv, chain: Chain, metrics: Sequence[Metric]) -> Chain:
    """Solve the last step of a chain again under the moments of the layer's inputs.

    With the steps before it fixed, the dense kernel is linear in the last step, W' = C B, so that
    the least E|(W - C B) x|^2 has the closed form C = W S B^T (B S B^T)^-1 with S = E[x x^T] (the
    response reconstruction of arXiv 1505.06798, for every form). Weights that the sample does not
    determine keep their values, so that the error never rises. A depthwise last step is solved
    filter by filter.

    Args:
        conv: The convolution that the chain replaces.
        chain: A chain of any form.
        metrics: One for each group.
    """
    *head, last = chain.steps
    features = last_features(chain)
    filters = features.shape[1]
    per_group = last.groups // conv.groups  # groups of the last step in one of the convolution's
    before = last.kernel.astype(np.float64).reshape(last.groups, -1, filters)
    target = conv.kernel.astype(np.float64).reshape(last.groups, -1, features.shape[2])
    residual = target - before @ features
    solved = []
    for group in range(last.groups):
        metric, B = metrics[group // per_group], features[group]
        BS = metric.times(B)
        gram = BS @ B.T
        ridge = max(RIDGE * np.trace(gram) / filters, np.finfo(np.float64).tiny)
        gram[np.diag_indices(filters)] += ridge
        change = np.linalg.solve(gram, BS @ residual[group].T).T
        solved.append(before[group] + change)
    kernel = np.concatenate(solved).reshape(last.kernel.shape).astype(last.kernel.dtype)
    return Chain((*head, replace(last, kernel=kernel)))


def last_features(chain: Chain) -> np.ndarray:
    """Return B (groups, filters, n) of the last step: the patterns that its weights multiply.

    ``filters`` are the weights of one of its filters; a group's dense kernel is C B, with C
    (O/groups, filters) the group's weights.
    """
    *head, last = chain.steps
    filters = last.kernel.shape[1] * math.prod(last.k)
    taps = np.eye(filters).reshape(filters, last.kernel.shape[1], *last.k)
    probe = replace(last, kernel=np.tile(taps, (last.groups, *[1] * (taps.ndim - 1))), bias=None)
    return Chain((*head, probe)).dense().kernel.reshape(last.groups, filters, -1)
