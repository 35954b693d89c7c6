"""``SearchSpace``: the candidates of each layer, and the best assignment under limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from converter.search.budgets import Column
from converter.search.candidates import Candidate
from converter.search.knapsack import Limit, choose

Assignment = dict[str, Candidate]  # the candidate of each layer, by layer name
MIN_GAIN = 0.03  # share of its layer's time that a candidate must save
# A refit layer makes up for the errors of the layers before it. How much of a probe's loss is then
# left (a power of it) and how much more the last layer counts than the first (the logarithm of
# it) differ between networks. Where time allows, the search tries all of these priors.
PRIORS = ((0.75, 1.0), (1.0, 2.0), (1.0, 1.0))
AS_PROBED = (1.0, 0.0)


@dataclass(frozen=True)
class SearchSpace:
    """The candidates of each layer, and what the network loses by their errors.

    Attributes:
        candidates: By layer name; the first is the layer as it is.
        weights: Loss (squared relative output error) per squared relative error of the layer, by
            layer name.
    """

    candidates: Mapping[str, Sequence[Candidate]]
    weights: Mapping[str, float]

    def pruned(self, columns: Sequence[str] = ("rel_error", "ms", "macs")) -> SearchSpace:
        """Leave out candidates that save no time, or that another beats in every column."""
        return SearchSpace(
            {name: _undominated(several, columns) for name, several in self.candidates.items()},
            self.weights,
        )

    def unchanged(self) -> Assignment:
        """Return the assignment that keeps every layer."""
        return {name: several[0] for name, several in self.candidates.items()}

    def least(self, column: Column) -> Assignment:
        """Return the assignment of the least sum in a column; for ``ms``, the fastest."""
        return {
            name: min(several, key=lambda candidate: self._value(name, candidate, column))
            for name, several in self.candidates.items()
        }

    def total(self, assignment: Assignment, column: Column) -> float:
        """Sum a column over the layers of an assignment."""
        return sum(self._value(name, candidate, column) for name, candidate in assignment.items())

    def minimize(self, goal: Column, limits: Mapping[Column, float]) -> Assignment | None:
        """Return the assignment of the least ``goal`` within limits; None where there is none.

        Args:
            goal: The column whose sum is minimized.
            limits: Largest sum by column; infinite limits are left out.
        """
        rules = [
            Limit([self._column(name, column) for name in self.candidates], most)
            for column, most in limits.items()
            if most < math.inf
        ]
        numbers = choose([self._column(name, goal) for name in self.candidates], rules)
        if numbers is None:
            return None
        return {
            name: several[number]
            for (name, several), number in zip(self.candidates.items(), numbers, strict=True)
        }

    def _column(self, layer: str, column: Column) -> np.ndarray:
        return np.array([self._value(layer, c, column) for c in self.candidates[layer]], np.float64)

    def _value(self, layer: str, candidate: Candidate, column: Column) -> float:
        if column == "loss":
            return self.weights[layer] * candidate.rel_error**2
        return float(getattr(candidate, column))


def spaces_by_prior(
    candidates: Mapping[str, Sequence[Candidate]],
    weights: Mapping[str, float],
    columns: Sequence[str],
    refit: bool,
) -> list[SearchSpace]:
    """Make one search space for each prior of how losses add up; one alone without refitting.

    Args:
        candidates: By layer name, in graph order.
        weights: Loss per squared relative error, by the probes.
        columns: In which a candidate may be better than others.
        refit: Whether layers are solved again for what the layers before them give.
    """
    return [
        SearchSpace(candidates, _leaned(weights, list(candidates), *prior)).pruned(columns)
        for prior in (PRIORS if refit else (AS_PROBED,))
    ]


def _leaned(
    weights: Mapping[str, float], names: Sequence[str], power: float, late: float
) -> dict[str, float]:
    """Apply a prior to probed weights, so that their sum stays; ``names`` are in graph order."""
    leaned = {
        name: weights[name] ** power * math.exp(late * number / len(names))
        for number, name in enumerate(names)
    }
    scale = sum(weights[name] for name in names) / (sum(leaned.values()) or 1.0)
    return {name: scale * weight for name, weight in leaned.items()}


def _undominated(several: Sequence[Candidate], columns: Sequence[str]) -> list[Candidate]:
    keep, *others = several
    kept = [keep]
    faster = [c for c in others if c.ms <= (1 - MIN_GAIN) * keep.ms]
    for candidate in sorted(faster, key=lambda c: tuple(getattr(c, name) for name in columns)):
        if not any(
            all(getattr(k, name) <= getattr(candidate, name) for name in columns) for k in kept
        ):
            kept.append(candidate)
    return kept
