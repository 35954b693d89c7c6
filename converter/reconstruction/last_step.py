"""Least squares for the last step of a chain, the steps before it fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.refit import RIDGE, last_features
from converter.reconstruction.products import factorize, product, solve


@dataclass(frozen=True)
class LastStep:
    """The last step of a chain, prepared to be solved for several targets.

    This is ``converter.decomposition.refit.refit`` on sample patches instead of moments. Lists
    have one item for each group of the last step.

    Attributes:
        chain: The chain.
        features: (P, R), the inputs of the last step's weights.
        moments: (R, R), second moments of the features and the ridge toward the trained kernel.
        roots: Cholesky factors of the moments with the ridge of ``refit``.
        pulls: (R, O/groups), the gradient of the ridge toward the trained kernel.
    """

    chain: Chain
    features: list[np.ndarray]
    moments: list[np.ndarray]
    roots: list[torch.Tensor]
    pulls: list[np.ndarray]

    @classmethod
    def of(cls, conv: Conv, chain: Chain, patches: np.ndarray, ridges: Sequence[float]) -> LastStep:
        """Run all steps but the last on sample patches.

        Args:
            conv: The trained layer.
            chain: A chain that replaces it.
            patches: (groups, P, n).
            ridges: For each group, weight of the distance to the trained kernel.
        """
        filters = last_features(chain)  # (groups of the last step, R, n)
        per_group = len(filters) // conv.groups
        weights = conv.kernel.astype(np.float64).reshape(len(filters), -1, filters.shape[2])
        features, moments, roots, pulls = [], [], [], []
        for group, (B, W) in enumerate(zip(filters, weights)):
            ridge = ridges[group // per_group]
            F = product(patches[group // per_group], B.T)
            gram = product(F.T, F).astype(np.float64) / len(F) + ridge * B @ B.T
            small = max(RIDGE * np.trace(gram) / len(gram), np.finfo(np.float64).tiny)
            features.append(F)
            moments.append(gram)
            roots.append(factorize(gram + small * np.eye(len(gram))))
            pulls.append(ridge * B @ W.T)
        return cls(chain, features, moments, roots, pulls)

    def fit(self, target: np.ndarray) -> tuple[Chain, np.ndarray]:
        """Fit to a target (P, O); return the chain and its response (P, O), without bias."""
        *head, last = self.chain.steps
        before = last.kernel.astype(np.float64).reshape(last.groups, -1, len(self.moments[0]))
        rows = np.split(target - target.mean(0), last.groups, axis=1)  # (P, O/groups)
        kernels = []
        for C, F, root, gram, pull, row in zip(
            before, self.features, self.roots, self.moments, self.pulls, rows
        ):
            cross = product(F.T, row).astype(np.float64) / len(F) + pull
            kernels.append(C + solve(root, cross - gram @ C.T).T)
        response = [product(F, C.T) for F, C in zip(self.features, kernels)]
        kernel = np.concatenate(kernels).reshape(last.kernel.shape).astype(last.kernel.dtype)
        chain = Chain((*head, replace(last, kernel=kernel)))
        return chain, np.concatenate(response, axis=1)
