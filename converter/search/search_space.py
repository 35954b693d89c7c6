"""``SearchSpace``: the candidates of each layer, and the best assignment under limits."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from converter.search.budgets import Column
from converter.search.candidates import Candidate
from converter.search.knapsack import Limit, choose

Assignment = dict[str, Candidate]  # the candidate of each layer, by layer name
MIN_GAIN = 0.03  # share of its layer's time that a candidate must save
# Refitting corrects a part of the errors of earlier layers, so the loss of a network is not the sum
# of the probes' losses. A prior is (power, tilt): weights are raised to ``power`` and multiplied by
# a factor that grows from 1 at the first layer to exp(tilt) at the last. The best prior differs
# between networks; the search tries all of these if time allows.
PRIORS = ((0.75, 1.0), (1.0, 2.0), (1.0, 1.0))
PRIOR_WITHOUT_REFIT = (1.0, 0.0)


@dataclass(frozen=True)
class SearchSpace:
    """The candidates of each layer, and the loss of the network from their errors.

    Attributes:
        candidates: Candidates by layer name; the first keeps the layer.
        weights: Loss of the network (squared relative output error) per squared relative error of
            the layer, by layer name.
    """

    candidates: Mapping[str, Sequence[Candidate]]
    weights: Mapping[str, float]

    def pruned(self, columns: Sequence[str] = ("rel_error", "ms", "macs")) -> SearchSpace:
        """Leave out candidates that save no time, or that another dominates in every column."""
        return SearchSpace(
            {name: _undominated(options, columns) for name, options in self.candidates.items()},
            self.weights,
        )

    def unchanged(self) -> Assignment:
        """Return the assignment that keeps every layer."""
        return {name: options[0] for name, options in self.candidates.items()}

    def least(self, column: Column) -> Assignment:
        """Return the assignment of the least sum in a column; for ``ms``, the fastest."""
        return {
            name: min(options, key=lambda candidate: self._value(name, candidate, column))
            for name, options in self.candidates.items()
        }

    def total(self, assignment: Assignment, column: Column) -> float:
        """Sum a column over the layers of an assignment."""
        return sum(self._value(name, candidate, column) for name, candidate in assignment.items())

    def minimize(self, goal: Column, limits: Mapping[Column, float]) -> Assignment | None:
        """Return the assignment of the least ``goal`` within limits; None if there is none.

        Args:
            goal: The column whose sum is minimized.
            limits: Largest sum by column.
        """
        constraints = [
            Limit([self._column(name, column) for name in self.candidates], maximum)
            for column, maximum in limits.items()
            if maximum < math.inf
        ]
        numbers = choose([self._column(name, goal) for name in self.candidates], constraints)
        if numbers is None:
            return None
        return {
            name: options[number]
            for (name, options), number in zip(self.candidates.items(), numbers, strict=True)
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
    """Make one search space for each prior of how losses add up; a single one without refitting.

    Args:
        candidates: Candidates by layer name, in graph order.
        weights: Loss per squared relative error of the layer, from the probes.
        columns: Columns by which candidates are compared.
        refit: Whether layers are solved again for the outputs of the converted layers before them.
    """
    return [
        SearchSpace(candidates, _reweight(weights, list(candidates), *prior)).pruned(columns)
        for prior in (PRIORS if refit else (PRIOR_WITHOUT_REFIT,))
    ]


def _reweight(
    weights: Mapping[str, float], names: Sequence[str], power: float, tilt: float
) -> dict[str, float]:
    """Apply a prior to the weights and keep their sum; ``names`` are in graph order."""
    reweighted = {
        name: weights[name] ** power * math.exp(tilt * number / len(names))
        for number, name in enumerate(names)
    }
    scale = sum(weights[name] for name in names) / (sum(reweighted.values()) or 1.0)
    return {name: scale * weight for name, weight in reweighted.items()}


def _undominated(candidates: Sequence[Candidate], columns: Sequence[str]) -> list[Candidate]:
    """Keep the first candidate, and the faster ones that no other dominates (Pareto front)."""

    def values(candidate: Candidate) -> tuple[float, ...]:
        return tuple(getattr(candidate, column) for column in columns)

    unchanged, *others = candidates
    front = [unchanged]
    for candidate in sorted(
        (c for c in others if c.ms <= (1 - MIN_GAIN) * unchanged.ms), key=values
    ):
        if not any(all(map(operator.le, values(k), values(candidate))) for k in front):
            front.append(candidate)
    return front
