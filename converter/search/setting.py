"""What a search knows before its first trial: times, candidates, sensitivities, the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.errors import ConverterError
from converter.evaluation.compare import evaluated
from converter.evaluation.loss import LossEstimator, loss_between
from converter.evaluation.tasks.regress import Regress
from converter.graph.network import nbytes, open_session
from converter.graph.survey import Layer
from converter.search.budgets import Budget, Column, MaxDrop, budgets_of, default_budget
from converter.search.candidates import list_candidates
from converter.search.manual import open_layers
from converter.search.measured import Original
from converter.search.result import SearchInput
from converter.search.search_space import Assignment, SearchSpace, spaces_by_prior
from converter.search.sensitivity import sensitivities
from converter.timing.latency import LatencyTable
from converter.timing.table import latency_table


@dataclass(frozen=True)
class Setting:
    """The inputs of a search, prepared before its first trial.

    Attributes:
        task: The search.
        free: Layers that may change.
        table: Times of the layers.
        estimator: Estimates the loss on the holdout inputs.
        spaces: The candidates, under one prior each.
        budgets: The limits to keep.
        original: The original network, which budgets are shares of.
        deployed_bytes: Size of the unchanged network as it would ship (int8, if requested).
    """

    task: SearchInput
    free: Sequence[Layer]
    table: LatencyTable
    estimator: LossEstimator
    spaces: Sequence[SearchSpace]
    budgets: tuple[Budget, ...]
    original: Original
    deployed_bytes: int

    def fixed(self, column: Column) -> float:
        """Return the part of the network's time, MACs or bytes that the search cannot change."""
        totals = {"ms": self.table.ms, "macs": self.original.macs, "bytes": self.deployed_bytes}
        space = self.spaces[0]
        return totals[column] - space.total(space.unchanged(), column)

    def predicted_speedup(self, assignment: Assignment) -> float:
        """Predict the speedup of an assignment by the table."""
        return self.original.ms / (self.fixed("ms") + self.spaces[0].total(assignment, "ms"))


def prepare(task: SearchInput) -> Setting:
    """Time the layers, list their candidates, and probe their sensitivities."""
    problem, resources, options = task.problem, task.resources, task.options
    table = latency_table(problem, options, resources)
    estimator = LossEstimator.of(problem.network, problem.holdout, resources.threads, task.tasks)
    as_numbers = all(isinstance(item, Regress) for item in task.tasks)
    budgets = budgets_of(options.budget) or (default_budget(as_numbers, options.budget),)
    _check_judgeable(budgets, task)
    least_doubt = _least_doubt(budgets, estimator, task)
    free = open_layers(problem.layers, options.layers)
    metrics = task.metrics([layer.name for layer in free])
    candidates = list_candidates(free, table, metrics, resources, options.search.int8)
    size, limits_bytes = nbytes(problem.network), any(b.column == "bytes" for b in budgets)
    deployed_size = size
    if limits_bytes and options.search.int8:
        deployed_size = nbytes(task.deployed(problem.network))
    todo = [layer for layer in free if len(candidates.get(layer.name, ())) > 1]
    probes = sensitivities(problem.network, todo, metrics, problem.holdout, resources, task.tasks)
    columns = ["rel_error", "ms", "macs"]
    columns += ["bytes"] if limits_bytes else []
    spaces = spaces_by_prior(
        {layer.name: candidates[layer.name] for layer in todo},
        probes.weights,
        columns,
        refit=options.search.correct and bool(metrics),
    )
    accuracy = estimator.accuracy
    if task.evaluate is not None and any(budget.option == "max_drop" for budget in budgets):
        accuracy = evaluated(task.evaluate, open_session(problem.network, options.timing.threads))
    macs = sum(layer.macs for layer in problem.layers)
    original = Original(
        table.original_ms, macs, size, accuracy, probes.drop, probes.squared_error, least_doubt
    )
    return Setting(task, free, table, estimator, spaces, budgets, original, deployed_size)


def _check_judgeable(budgets: Sequence[Budget], task: SearchInput) -> None:
    drops = any(budget.option == "max_drop" for budget in budgets)
    if drops and task.evaluate is None and task.problem.calib is None:
        raise ConverterError("--max-drop needs sample inputs; give --calib.")


def _least_doubt(budgets: Sequence[Budget], estimator: LossEstimator, task: SearchInput) -> float:
    """Return the upper bound of the loss of the unchanged network: what the inputs leave open.

    Raises:
        ConverterError: When the inputs show no loss: a detector finds nothing in them.
    """
    if task.evaluate is not None or not any(isinstance(b, MaxDrop) for b in budgets):
        return 0.0
    doubt = loss_between(task.tasks, estimator.outputs, estimator.outputs).estimate.high
    if np.isinf(doubt):
        raise ConverterError(
            "The held-out sample inputs are too few, or the network finds nothing in them, so "
            "--max-drop cannot be judged; give more with --calib."
        )
    return doubt
