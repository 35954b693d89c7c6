"""Search a plan under budgets, from the times, errors and sensitivities of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from converter.decomposition.form import Rank
from converter.evaluation.compare import evaluated
from converter.evaluation.loss import Loss
from converter.evaluation.status import status_of
from converter.graph.network import nbytes, open_session
from converter.graph.survey import Layer
from converter.reconstruction.moments import patch_count, patch_size
from converter.reconstruction.realize import Realization
from converter.reconstruction.regression import REFIT
from converter.search.budgets import MaxDrop
from converter.search.drafts import save_time
from converter.search.measured import Measured
from converter.search.misses import miss_sentence
from converter.search.plan import Plan, plan_of
from converter.search.result import LossLimit, SearchInput, SearchResult
from converter.search.search import search
from converter.search.search_space import Assignment
from converter.search.setting import Setting, prepare
from converter.search.trials import LOOSE, TIGHT, Effort, Limits, Measures
from converter.timing.table import measured_speedup

RECOVERED = 0.75  # share of a loss that fine-tuning is expected to undo
FRONTIER_POINTS = 6
FIRST_LOSS = 0.01  # squared relative output error at which a search starts without a better guess
# As many networks are built as take about SEARCH_S, at LAYER_S for a layer and WORK_PER_S
# operations on second moments. The time is estimated, not measured, so that the result does not
# depend on how busy the machine is.
MAX_TRIALS, SEARCH_S, LAYER_S, WORK_PER_S = 6, 160.0, 1.0, 3e10
MAX_IMPROVE = 2  # networks for other priors
# With fewer holdout inputs, the noise of the loss would decide between networks close to the limit.
MIN_TIGHT_INPUTS = 1024


def choose_plan(task: SearchInput) -> SearchResult:
    """Search the forms and ranks of the layers under budgets.

    Raises:
        ConverterError: When a budget cannot be judged on this network or these inputs.
    """
    setting = prepare(task)
    problem, resources, space = task.problem, task.resources, setting.spaces[0]
    limits, tight = _limits(setting), problem.holdout.count >= MIN_TIGHT_INPUTS
    trials = _affordable_trials(setting.free)
    drafts = task.options.search.correct and problem.fit is not None and save_time(setting.free)
    effort = Effort(trials, TIGHT if tight else LOOSE, MAX_IMPROVE if tight else 0, drafts)
    stage = "racing" if limits.loss is None and limits.speedup else "searching"
    outcome = search(setting.spaces, limits, _measures(setting), effort, resources.stage(stage))
    best = outcome.best
    assert best.network is not None
    realization, plan = best.network, _plan(setting, best.assignment)
    limits_loss = any(budget.column == "loss" for budget in setting.budgets)
    loss = setting.estimator.loss(task.deployed(realization.network)) if limits_loss else None
    # What is quantized later is measured again on the holdout inputs, so it is not fit to them.
    refit = trials > 1 and problem.fit is not problem.calib and not task.options.search.int8
    if refit and realization.chains:
        realization = task.build(plan, realization, whole=True)
    missed, trains = None, task.options.training.trains and limits.loss is not None
    if not outcome.kept and not trains and not _is_undecided(setting, best.usage, loss):
        missed = miss_sentence(outcome, setting.budgets, space, limits, setting.original)
    return SearchResult(
        plan=plan,
        realization=realization,
        budgets=setting.budgets,
        table=setting.table,
        predicted_speedup=setting.predicted_speedup(best.assignment),
        status=status_of("missed", missed),
        frontier=_frontier(setting) if task.options.search.frontier else {},
        loss=loss,
        accuracy=setting.original.accuracy,
        limit=_loss_limit(setting) if limits_loss else None,
    )


def _is_undecided(setting: Setting, usage: Mapping[str, float], loss: Loss | None) -> bool:
    """Whether no limit but ``--max-drop`` is exceeded, and that only by the doubt about the loss.

    Args:
        setting: The setting.
        usage: Share of each limit that the network uses, by option.
        loss: Its loss on the held-out inputs.
    """
    drops = [budget for budget in setting.budgets if isinstance(budget, MaxDrop)]
    others = (share for option, share in usage.items() if option != MaxDrop.option)
    if loss is None or not drops or setting.task.evaluate is not None or max(others, default=0) > 1:
        return False
    return loss.estimate.lost <= drops[0].max_lost(setting.original.accuracy)


def _limits(setting: Setting) -> Limits:
    """Turn the budgets into limits of the search."""
    original, fixed_ms = setting.original, setting.fixed("ms")
    losses = [b.allowance(original) for b in setting.budgets if b.column == "loss"]
    loss = min(losses, default=None)
    return Limits(
        loss=FIRST_LOSS if loss == np.inf else loss,
        speedup=next((b.limit for b in setting.budgets if b.column == "ms"), None),
        sums={
            budget.column: budget.allowance(original) - setting.fixed(budget.column)
            for budget in setting.budgets
            if budget.column in ("macs", "bytes")
        },
        ms_at=lambda speedup: original.ms / speedup - fixed_ms,
        goal="loss" if loss is None else "ms",
    )


def _measures(setting: Setting) -> Measures[Realization]:
    """Return the functions that build, score and race an assignment."""
    task = setting.task
    recovery = 1 / (1 - RECOVERED) if task.options.training.trains else 1.0

    def build(assignment: Assignment, near: Realization | None, effort: float) -> Realization:
        return task.build(_plan(setting, assignment), near, effort=effort)

    def usage(realization: Realization) -> dict[str, float]:
        measured = _measured(setting, task.deployed(realization.network), realization)
        return {
            budget.option: budget.usage(measured, setting.original)
            / (recovery if budget.column == "loss" else 1.0)
            for budget in setting.budgets
            if budget.column != "ms"
        }

    def speedup(assignment: Assignment) -> float:
        forms = _forms(assignment)
        return measured_speedup(task.problem, forms, setting.table, task.options, task.resources)

    def error(realization: Realization) -> float:
        return setting.estimator.loss(task.deployed(realization.network)).output_error

    return Measures(build, usage, speedup, error)


def _measured(
    setting: Setting, network: ir.Model, realization: Realization | None = None
) -> Measured:
    """Measure the quantities that the budgets limit; the MACs follow from the chains."""
    columns = {budget.column for budget in setting.budgets}
    evaluate, before = setting.task.evaluate, setting.original.accuracy
    drop = None
    judged = any(budget.option == "max_drop" for budget in setting.budgets)
    if evaluate is not None and before is not None and judged:
        threads = setting.task.options.timing.threads
        drop = before - evaluated(evaluate, open_session(network, threads))
    macs = None
    if realization is not None:
        chains = realization.chains
        macs = sum(
            chains[layer.name].macs(layer.size) if layer.name in chains else layer.macs
            for layer in setting.task.problem.layers
        )
    return Measured(
        loss=setting.estimator.loss(network) if "loss" in columns else None,
        drop=drop,
        macs=macs,
        bytes=nbytes(network) if "bytes" in columns else None,
    )


def _loss_limit(setting: Setting) -> LossLimit:
    """Return the limit of the loss, to which networks are held after the search."""

    def usages(network: ir.Model) -> dict[str, float]:
        measured, budgets = _measured(setting, network), setting.budgets
        losses = [budget for budget in budgets if budget.column == "loss"]
        return {budget.option: budget.usage(measured, setting.original) for budget in losses}

    def is_missed(network: ir.Model) -> bool:
        found = usages(network)
        if max(found.values()) <= 1:
            return False
        return not _is_undecided(setting, found, setting.estimator.loss(network))

    return LossLimit(
        loss=setting.estimator.loss,
        usage=lambda network: max(usages(network).values()),
        is_missed=is_missed,
    )


def _plan(setting: Setting, assignment: Assignment) -> Plan:
    """Write an assignment as a plan; layers after the first converted one are refit."""
    task, forms = setting.task, _forms(assignment)
    free = {layer.name for layer in setting.free}
    refit = task.options.search.correct and task.problem.fit is not None
    chosen: dict[str, tuple[str, Rank]] = {}
    for layer in task.problem.layers:
        if layer.name in forms:
            chosen[layer.name] = forms[layer.name]
        elif layer.name in free and refit and chosen:
            chosen[layer.name] = (REFIT, (1,))
    return plan_of(task.problem.layers, chosen, free, task.problem.shapes, task.resources.seed)


def _forms(assignment: Assignment) -> dict[str, tuple[str, Rank]]:
    """Return form and rank of the layers that an assignment changes."""
    return {name: (c.form, c.rank) for name, c in assignment.items() if c.form and c.rank}


def _frontier(setting: Setting) -> dict[str, ir.Model]:
    """Build networks of the least loss for predicted speedups up to the largest."""
    task, space = setting.task, setting.spaces[0]
    fastest, limits = space.least("ms"), _limits(setting)
    ends = (setting.predicted_speedup(space.unchanged()), setting.predicted_speedup(fastest))
    networks: dict[str, ir.Model] = {}
    for speedup in np.geomspace(*ends, FRONTIER_POINTS + 1)[1:]:
        sums = {**limits.sums, "ms": limits.ms_at(float(speedup))}
        assignment = space.minimize("loss", sums) or fastest
        realization = task.build(_plan(setting, assignment), None)
        networks[f"for {speedup:.2f}x"] = task.deployed(realization.network)
        task.resources.progress("frontier", len(networks) / FRONTIER_POINTS)
    return networks


def _affordable_trials(layers: Sequence[Layer]) -> int:
    """Return how many networks a search may build, by an estimate of their time."""
    sizes = [patch_size(layer.conv) for layer in layers if layer.conv is not None]
    operations = sum(n**2 * patch_count(n, np.inf) for n in sizes)
    trial_s = LAYER_S * len(sizes) + operations / WORK_PER_S
    return int(np.clip(SEARCH_S / max(trial_s, 1.0), 1, MAX_TRIALS))
