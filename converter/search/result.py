"""``SearchInput`` and ``SearchResult``: the input and the output of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

from converter.decomposition.metric import Metric
from converter.evaluation.compare import Evaluate
from converter.evaluation.loss import Loss
from converter.evaluation.status import Status
from converter.evaluation.tasks.task import Task
from converter.models.problem import Problem
from converter.options import Options
from converter.processes import Resources
from converter.reconstruction.realize import Realization
from converter.search.budgets import Budget
from converter.search.plan import Plan
from converter.timing.latency import LatencyTable


@dataclass(frozen=True)
class LossLimit:
    """The limit of a search for the loss, to which other networks can be held.

    Attributes:
        loss: Network -> its loss on the held-out inputs.
        usage: Network -> share of the allowed loss that it uses.
        is_missed: Network -> whether it is known to exceed the limit.
    """

    loss: Callable[[ir.Model], Loss]
    usage: Callable[[ir.Model], float]
    is_missed: Callable[[ir.Model], bool]


@dataclass(frozen=True)
class SearchResult:
    """The result of a search, or of a choice by hand.

    Attributes:
        plan: Form and rank of each layer.
        realization: The network that was built from the plan.
        budgets: The budgets of the search; the default budget if none was given.
        table: Times of the layers, or None.
        predicted_speedup: Speedup predicted by the table, or None.
        status: Whether the search kept the budgets.
        frontier: Networks for other budgets, by name.
        loss: Loss of the network on held-out inputs, before it was fit to them, too; None if no
            search measured it.
        accuracy: Accuracy of the original, of which a relative limit is a share; None without
            classes.
        limit: The limit of the loss; None if nothing limits it.
    """

    plan: Plan
    realization: Realization
    budgets: tuple[Budget, ...] = ()
    table: LatencyTable | None = None
    predicted_speedup: float | None = None
    status: Status = field(default_factory=Status)
    frontier: Mapping[str, ir.Model] = field(default_factory=dict)
    loss: Loss | None = None
    accuracy: float | None = None
    limit: LossLimit | None = None


class Build(Protocol):
    """Builds a network from a plan."""

    def __call__(
        self,
        plan: Plan,
        near: Realization | None,
        *,
        whole: bool = False,
        effort: float = 1.0,
    ) -> Realization:
        """Build the network.

        Args:
            plan: The plan.
            near: A network of another plan to start from, or None.
            whole: Fit to all sample inputs, not only to those that are not held out.
            effort: Share of the usual work, for a network that is only judged.
        """
        ...


@dataclass(frozen=True)
class SearchInput:
    """A search: the network, the options, and how a network is built.

    Attributes:
        problem: The network and its sample inputs.
        options: Options of the conversion.
        resources: Threads, seed, cache and progress.
        evaluate: The user's own measure, or None.
        metrics: Layer names -> coarse second moments of the layers' inputs, by name.
        tasks: What the outputs mean.
        build: How a network is built from a plan.
        deployed: Network -> the version of it that must keep the budgets (int8, if requested).
    """

    problem: Problem
    options: Options
    resources: Resources
    evaluate: Evaluate | None
    metrics: Callable[[Sequence[str]], Mapping[str, Sequence[Metric]]]
    tasks: tuple[Task, ...]
    build: Build
    deployed: Callable[[ir.Model], ir.Model]
