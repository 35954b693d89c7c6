"""What a search is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from converter.decomposition.metric import Metric
from converter.evaluation.compare import Evaluate
from converter.evaluation.status import Status
from converter.models.problem import Problem
from converter.options import Options
from converter.processes import Resources
from converter.reconstruction.realize import Realization
from converter.search.budgets import Budget
from converter.search.plan import Plan
from converter.timing.latency import LatencyTable


@dataclass(frozen=True)
class SearchResult:
    """The end of a search, or of a choice by hand.

    Attributes:
        plan: Form and rank of each layer.
        realization: The network that was built of it.
        budgets: The limits that it was searched for; the default if none was given.
        table: Times of the layers, or None.
        predicted_speedup: By the table, or None.
        status: Whether the search kept the budgets.
        frontier: Networks for other budgets, by name.
        loss_usage: A network -> the share that it uses of what may be lost; None where nothing
            limits the loss.
    """

    plan: Plan
    realization: Realization
    budgets: tuple[Budget, ...] = ()
    table: LatencyTable | None = None
    predicted_speedup: float | None = None
    status: Status = field(default_factory=Status)
    frontier: Mapping[str, ir.Model] = field(default_factory=dict)
    loss_usage: Callable[[ir.Model], float] | None = None


@dataclass(frozen=True)
class Task:
    """A search: the network, the options, and how a network is built.

    Attributes:
        problem: The network and its sample inputs.
        options: Of the conversion.
        resources: Threads, cache and so on.
        evaluate: The user's own measure, or None.
        metrics: Names of layers -> coarse second moments of their inputs, by name.
        build: Realizes a plan, fitted to all sample inputs or only to those that do not judge.
        deployed: Network -> the version of it that has to keep the budgets (int8, if asked for).
    """

    problem: Problem
    options: Options
    resources: Resources
    evaluate: Evaluate | None
    metrics: Callable[[Sequence[str]], Mapping[str, Sequence[Metric]]]
    build: Callable[[Plan, bool], Realization]
    deployed: Callable[[ir.Model], ir.Model]
