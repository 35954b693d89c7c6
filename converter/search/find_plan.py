"""From a budget to a plan: times, errors and sensitivities of the layers, then the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from converter.decomposition.form import Rank
from converter.errors import ConverterError
from converter.evaluation.compare import Evaluate, Progress, evaluated
from converter.evaluation.loss import LossEstimator
from converter.graph.network import open_session
from converter.graph.survey import Layer
from converter.models.problem import make_problem
from converter.models.source import Source
from converter.options import Options
from converter.reconstruction.moments import Metrics, patch_count, patch_size
from converter.reconstruction.realize import Realization
from converter.reconstruction.regression import REFIT
from converter.search.plan import Plan, open_layers, plan_of
from converter.search.search import (
    CLOSELY,
    ROUGHLY,
    Choice,
    Constraints,
    SearchSpace,
    Trial,
    close,
    improve,
    reach,
    total_macs,
    total_ms,
)
from converter.search.search_space import list_search_spaces
from converter.search.sensitivity import Sensitivity
from converter.timing.latency import LatencyTable
from converter.timing.table import latency_table, measured_speedup

DEFAULT_DROP, DEFAULT_ERROR = 0.005, 0.05
WON_BACK = 0.75  # share of a loss that fine-tuning undoes
POINTS = 6  # of the frontier
FIRST_LOSS = 0.01
# Networks built to close a budget, as many as take about SEARCH_S: a layer takes LAYER_S and its
# share of the arithmetic on second moments. An estimate, so that the result does not depend on how
# busy the machine is.
MOST_TRIALS, SEARCH_S, LAYER_S, WORK_PER_S = 6, 160.0, 1.0, 3e10
MOST_MORE = 4  # that other menus lose least by
# With fewer examples to judge on, the luckiest of many networks would win, and no network comes
# closer to a limit than the noise.
MANY = 1024


@dataclass(frozen=True)
class RealizedPlan:
    """A plan and what became of it."""

    plan: Plan
    realization: Realization


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        solved: The best network.
        table: Times of the layers, or None.
        budget: What was asked for, by option; the default if nothing was.
        predicted_speedup: By the table, or None.
        problem: Why the budget is missed, and what it would take; None if it is kept.
        frontier: Networks for other budgets, by name.
        lost: Says what a network loses, as a share of what it may lose; None where nothing limits
            that.
    """

    solved: RealizedPlan
    table: LatencyTable | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    predicted_speedup: float | None = None
    problem: str | None = None
    frontier: Mapping[str, ir.Model] = field(default_factory=dict)
    lost: Callable[[ir.Model], float] | None = None


Build = Callable[[Plan, bool], RealizedPlan]
Calibrate = Callable[[Collection[str]], Metrics]


def find_plan(
    source: Source,
    layers: Sequence[Layer],
    options: Options,
    evaluate: Evaluate | None,
    build: Build,
    calibrate: Calibrate,
    deployed: Callable[[ir.Model], ir.Model],
    progress: Progress,
) -> Found:
    """Choose forms and ranks by measured time, under a budget.

    Args:
        source: The network and its sample inputs, a part of which only says what is lost.
        layers: Of the network.
        options: The budget and the options.
        evaluate: The user's own measure, or None.
        build: Carries out a plan, fitted to all sample inputs or only to those that do not judge.
        calibrate: Estimates the inputs of layers, by their names, on the inputs to fit.
        deployed: Gives the version of a network that is to keep the budget.
        progress: Called with a stage and the share of it that is done.

    Raises:
        ConverterError: When the budget cannot be judged on this network or these inputs.
    """
    table = latency_table(source, layers, options, progress)
    problem_data = make_problem(source, layers, options.resources.seed)
    fit, held = problem_data.fit, problem_data.holdout
    judge = LossEstimator.of(source.network, held, torch.get_num_threads())
    budget = options.limits or _default(judge)
    _check(budget, judge, source, evaluate)
    free = open_layers(layers, options)
    metrics = calibrate([layer.name for layer in free])
    menus, probes = list_search_spaces(source, free, table, metrics, held, options, progress)
    menu = menus[0]
    kept = menu.unchanged()
    corrected = options.search.correct and fit is not None
    most = _affordable(free)
    macs = sum(layer.macs for layer in layers)

    def wanted(speedup: float | None) -> Constraints:
        others_ms = table.ms - total_ms(kept)
        ms = math.inf if speedup is None else table.original_ms / speedup - others_ms
        share = budget.get("max_macs", math.inf)
        return Constraints(ms, share * macs - macs + total_macs(kept))

    def built(choice: Choice) -> RealizedPlan:
        forms = _forms(choice)
        chosen: dict[str, tuple[str, Rank]] = {}
        for layer in layers:
            if layer.name in forms:
                chosen[layer.name] = forms[layer.name]
            elif layer in free and corrected and chosen:
                chosen[layer.name] = (REFIT, (1,))
        return build(plan_of(layers, chosen, options, source.shapes), False)

    def refitted(solved: RealizedPlan) -> RealizedPlan:
        """Fit what was chosen to the examples that judged it, too."""
        if most == 1 or fit is source.calib or not solved.realization.chains:
            return solved
        return build(solved.plan, True)

    def predicted(choice: Choice) -> float:
        return table.original_ms / (table.ms - total_ms(kept) + total_ms(choice))

    lost = None
    if {"max_drop", "max_error"} & set(budget):
        lost = _lost(source, budget, options, judge, evaluate)
    target, problem = budget.get("target_speedup"), None
    if menu.least_macs() > wanted(None).macs:
        least = (macs - total_macs(kept) + menu.least_macs()) / macs
        problem = f"No choice of forms leaves less than {least:.2f} of the MACs."
    if lost is not None:
        room = 1 / (1 - WON_BACK) if options.training.trains else 1.0

        def value(solved: RealizedPlan) -> float:
            return lost(deployed(solved.realization.network)) / room

        aim = CLOSELY if held.count >= MANY else ROUGHLY
        best, trials = close(
            menu,
            wanted(target),
            _first(budget, probes),
            built,
            value,
            most,
            aim,
            lambda done: progress("searching", done),
        )
        if best is not None and held.count >= MANY:
            best = improve(
                menus[1:], wanted(target), best, built, value, min(most - len(trials), MOST_MORE)
            )
        choice, solved, missed = _outcome(menu, best, trials, built)
        missed = None if options.training.trains else missed  # what is missed now may be won back
    elif target is not None:
        choice, speedup = reach(
            menu,
            wanted,
            target,
            lambda c: measured_speedup(source, layers, _forms(c), table, options),
            lambda done: progress("racing", done),
        )
        solved, missed = built(choice), None
        if speedup < target and choice == menu.fastest():
            missed = (
                f"A speedup of {target:g}x is out of reach: with every layer in its fastest form "
                f"the network is {speedup:.2f}x as fast ({_rest(table, menu)})."
            )
    else:
        choice, solved = _gentlest(
            menus,
            wanted(None),
            most,
            built,
            lambda s: judge.loss(deployed(s.realization.network)).output_error,
        )
        missed = None
    frontier = {}
    if options.search.frontier:
        for speedup in np.geomspace(predicted(kept), predicted(menu.fastest()), POINTS + 1)[1:]:
            point = menu.min_loss(wanted(speedup)) or menu.fastest()
            frontier[f"for {speedup:.2f}x"] = deployed(built(point).realization.network)
            progress("frontier", len(frontier) / POINTS)
    return Found(
        refitted(solved),
        table,
        budget,
        predicted(choice),
        problem or missed,
        frontier,
        lost,
    )


def _forms(choice: Choice) -> dict[str, tuple[str, Rank]]:
    """Form and rank of the layers that a choice changes."""
    return {name: (o.form, o.rank) for name, o in choice.items() if o.form and o.rank}


def _gentlest(
    menus: Sequence[SearchSpace],
    wanted: Constraints,
    most: int,
    built: Callable[[Choice], RealizedPlan],
    output_error: Callable[[RealizedPlan], float],
) -> tuple[Choice, RealizedPlan]:
    """Build what each menu loses least by, and take the network that really loses least."""
    choices = [menu.min_loss(wanted) or menu.fastest() for menu in menus]
    distinct = [choice for n, choice in enumerate(choices) if choice not in choices[:n]]
    tried = [(choice, built(choice)) for choice in distinct[:most]]
    return min(tried, key=lambda pair: output_error(pair[1]))


def _affordable(layers: Sequence[Layer]) -> int:
    """Say how many networks to build in a search."""
    sizes = [patch_size(layer.conv) for layer in layers if layer.conv is not None]
    work = sum(n**2 * patch_count(n, math.inf) for n in sizes)
    each_s = LAYER_S * len(sizes) + work / WORK_PER_S
    return int(np.clip(SEARCH_S / max(each_s, 1.0), 1, MOST_TRIALS))


def _default(judge: LossEstimator) -> dict[str, float]:
    return {"max_drop": DEFAULT_DROP} if judge.classes else {"max_error": DEFAULT_ERROR}


def _check(
    budget: Mapping[str, float], judge: LossEstimator, source: Source, evaluate: Evaluate | None
) -> None:
    if "max_drop" in budget and evaluate is None:
        if not judge.classes:
            raise ConverterError(
                "--max-drop needs an output of one vector of classes an example; give --evaluate "
                "or --max-error."
            )
        if source.calib is None:
            raise ConverterError("--max-drop needs sample inputs; give --calib.")


def _first(budget: Mapping[str, float], probes: Sensitivity) -> float:
    """Guess the loss at which the limit is met, from what the probes lost."""
    guesses = []
    if "max_drop" in budget and probes.drop > 0:
        guesses.append(budget["max_drop"] / probes.drop)
    if "max_error" in budget:
        guesses.append(budget["max_error"] ** 2)
    return min(guesses, default=FIRST_LOSS)


def _lost(
    source: Source,
    budget: Mapping[str, float],
    options: Options,
    judge: LossEstimator,
    evaluate: Evaluate | None,
) -> Callable[[ir.Model], float]:
    """Make the function that says what a network loses, as a share of what it may lose."""
    relative = options.budget.drop_type == "relative"
    before = None
    if evaluate is not None and "max_drop" in budget:
        before = evaluated(evaluate, open_session(source.network, options.timing.threads))

    def lost(network: ir.Model) -> float:
        loss = judge.loss(network)
        shares = [0.0]
        if "max_error" in budget:
            shares.append(loss.output_error / budget["max_error"])
        if "max_drop" in budget and evaluate is not None and before is not None:
            allowed = budget["max_drop"] * (abs(before) if relative else 1.0)
            after = evaluated(evaluate, open_session(network, options.timing.threads))
            shares.append((before - after) / allowed)
        elif "max_drop" in budget and loss.drop_high is not None:
            allowed = budget["max_drop"] * (judge.accuracy if relative else 1.0)
            shares.append(loss.drop_high / allowed)
        return max(shares)

    return lost


def _outcome(
    menu: SearchSpace,
    best: Trial[RealizedPlan] | None,
    trials: Sequence[Trial[RealizedPlan]],
    built: Callable[[Choice], RealizedPlan],
) -> tuple[Choice, RealizedPlan, str | None]:
    """Take the best trial; where none keeps the budget, the one that comes nearest."""
    if best is not None:
        return best.choice, best.built, None
    if not trials:
        choice = menu.fastest()
        return choice, built(choice), "No choice of forms keeps to the budget."
    nearest = min(trials, key=lambda trial: trial.value)
    missed = f"The best network found loses {nearest.value:.2f} times what it may."
    return nearest.choice, nearest.built, missed


def _rest(table: LatencyTable, menu: SearchSpace) -> str:
    share = 1 - sum(options[0].ms for options in menu.options.values()) / table.ms
    return f"{max(share, 0):.0%} of its time is in what no form makes faster"
