"""A conversion step by step: load, choose, realize, train, quantize, check, race, report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

import onnx_ir as ir
from torch import nn

from converter.cache import evict, store_seconds
from converter.decomposition.conv import Chain
from converter.errors import ConverterError
from converter.evaluation.check import check, check_graph, check_same, check_torch_vs_onnx
from converter.evaluation.compare import Evaluate
from converter.evaluation.comparison import verdict
from converter.evaluation.status import Status, status_of
from converter.graph.outputs import output_names
from converter.job import Job, input_warnings, open_job
from converter.measurement import measure
from converter.models import match as torch_network
from converter.models.source import Model, Source, samples
from converter.options import Options
from converter.processes import Progress, no_progress
from converter.quantization.int8 import Int8
from converter.reconstruction.coarse import coarse_metrics
from converter.reconstruction.moments import Metrics
from converter.reconstruction.realize import (
    Realization,
    balanced,
    realize,
    with_chains,
)
from converter.reconstruction.refit import Refit
from converter.report.layers import layer_rows, least_gaining
from converter.report.report import Report
from converter.report.result import Result
from converter.report.verify import ConvertedModel, Verified, is_slower
from converter.search.budgets import Budget, budgets_of, limits_of
from converter.search.choose import choose_plan
from converter.search.int8 import quantize
from converter.search.manual import make_plan
from converter.search.plan import Plan
from converter.search.result import SearchInput, SearchResult
from converter.stages import StageTimer
from converter.timing.table import chosen_times
from converter.training.distill import distill
from converter.training.phases import list_phases
from converter.training.schedule import compose_chains, increment, split_schedule


def convert(
    model: Model,
    options: Options,
    *,
    example_input: object = None,
    evaluate: Evaluate | None = None,
    command: str = "converter.convert",
    progress: Progress = no_progress,
) -> Result:
    """Convert a trained network; see ``converter.convert``.

    ``command`` is recorded in the report.
    """
    progress = timer = StageTimer(progress)
    progress("loading", 0.0)
    job = open_job(model, options, example_input, evaluate, progress)
    job = replace(job, warnings=(*input_warnings(job, model), *job.warnings))
    progress("loading", 1.0)
    group = job.resources.group
    if group.rank:
        raise ConverterError("Only the first process converts; call converter.run_worker here.")
    group.all_reduce_mean(0)  # nothing is timed while others still load
    original, current = job.source, job
    *first_steps, last = split_schedule(job.options)
    for step in first_steps:
        search = choose(replace(current, options=increment(step, job.options)))
        in_float = replace(current, options=step.changed(int8=False))
        converted = finish(in_float, search, original)
        dense = compose_chains(current.source, converted.module, converted.plan)
        current = current.for_network(dense)
    search = choose(replace(current, options=increment(last, job.options)))
    current = replace(current, options=last)
    converted = finish(current, search, original)
    verified = measure(job, converted)
    while not job.options.layers.manual and is_slower(verified):
        search = without_least_gaining(current, search, verified)
        converted = finish(current, search, original)
        verified = measure(job, converted)
    group.broadcast_task(None)  # ends the other processes
    if job.resources.cache is not None:
        store_seconds(job.resources.cache, {k: v.seconds for k, v in timer.stages.items()})
        evict(job.resources.cache)
    report = Report(verified, job.options.resources.seed, command, timer.stages)
    return Result(report, original.original, original.origin, job.options, original.module)


def run_worker(model: Model, options: Options, example_input: object = None) -> None:
    """Share the work of ``convert`` in a process other than the first.

    Raises:
        ConverterError: As ``convert``, or when another process is gone.
    """
    job = open_job(model, options, example_input)
    job.resources.group.all_reduce_mean(0)
    for task in job.resources.group.tasks():
        task(job)


def choose(job: Job) -> SearchResult:
    """Follow the user's choices of forms and ranks, or search the best under the budgets."""
    options, group = job.options, job.resources.group
    if options.layers.manual or (not options.limits and job.source.calib is None):
        if options.search.frontier:
            raise ConverterError(
                "--frontier needs a search; give --calib or a budget, and leave out --form, --rank "
                "and --plan."
            )
        seed = options.resources.seed
        plan = make_plan(job.layers, options.layers, job.source.shapes, seed)
        forms = {name: (form.name, rank) for name, (form, rank) in plan.chosen().items()}
        table = chosen_times(job.problem, forms, options, job.resources)
        realization = group.run_on_all(partial(_realize, plan, None, whole=True), job)
        return SearchResult(plan, realization, table=table)

    def build(
        plan: Plan, near: Realization | None, *, whole: bool = False, effort: float = 1.0
    ) -> Realization:
        before = near.refit if near else None
        return group.run_on_all(partial(_realize, plan, before, whole=whole, effort=effort), job)

    search_input = SearchInput(
        problem=job.problem,
        options=options,
        resources=job.resources,
        evaluate=job.evaluate,
        tasks=job.tasks,
        metrics=lambda names: group.run_on_all(partial(_estimate, names), job),
        build=build,
        deployed=partial(_deployed, job),
    )
    return choose_plan(search_input)


def _realize(
    plan: Plan, before: Refit | None, job: Job, *, whole: bool, effort: float = 1.0
) -> Realization:
    """Solve the layers of a plan for all sample inputs, or without those that are held out."""
    network = job.problem.network
    realization = realize(
        network,
        job.layers,
        plan.chosen(),
        job.problem.calib if whole else job.problem.fit,
        replace(job.resources, seed=plan.seed, effort=effort),
        refit=job.options.search.correct,
        before=before,
    )
    return (
        balanced(network, job.layers, realization) if job.options.training.trains else realization
    )


def _estimate(names: Collection[str], job: Job) -> Metrics:
    """Estimate the second moments of layers' inputs, without the held-out sample inputs."""
    layers = [layer for layer in job.layers if layer.name in names]
    return coarse_metrics(job.problem.network, layers, job.problem.fit, job.resources)


def finish(job: Job, search: SearchResult, teacher: Source) -> ConvertedModel:
    """Check the chosen network, make its torch model, and train and quantize it if requested.

    Args:
        job: The conversion.
        search: The plan and the network that was built from it.
        teacher: The original, toward which the network is trained. From the second step of a
            schedule on, this is not the network of ``job``.
    """
    if budgets := budgets_of(job.options.budget):
        search = replace(search, budgets=budgets)
    if not search.realization.chains:
        rows = layer_rows(job.layers, search)
        search, int8, status = _quantize_if_requested(job, teacher.network, search)
        return ConvertedModel(search, teacher.original, teacher.module, rows, int8, status)
    seed, trains = job.options.resources.seed, job.options.training.trains
    source, chains, network = job.source, search.realization.chains, search.realization.network
    inputs = samples(source, seed)
    problem = check_same(source.original, source.network, inputs)
    problem = problem or check(source.network, network, job.layers, chains, inputs)
    module, unproven = None, None
    if trains:
        limits = trainable_limits(search.budgets, job.evaluate)
        train = partial(_train, chains, limits, teacher if teacher is not source else None)
        module, network, unproven = job.resources.group.run_on_all(train, job)
        problem = problem or check_graph(network)
    elif source.module is not None:
        module = torch_network.apply(source.module, job.layers, chains)
    if module is not None:
        problem = problem or check_torch_vs_onnx(module, network, inputs)
    if trains:  # the search estimated the loss before the training
        search = replace(search, loss=None)
    if source is not teacher:  # its losses are against an earlier step of the schedule
        search = replace(search, loss=None, limit=None)
    search, int8, status = _quantize_if_requested(job, network, search)
    status = status_of("unsound", problem).then(status).then(status_of("unproven", unproven))
    rows = layer_rows(job.layers, search, trained=trains)
    proven = trains and unproven is None and not job.options.search.int8
    return ConvertedModel(search, network, module, rows, int8, status, proven)


def _train(
    chains: Mapping[str, Chain], limits: Mapping[str, float], teacher: Source | None, job: Job
) -> tuple[nn.Module | None, ir.Model, str | None]:
    """Replace layers by chains and train the network; all processes call this alike."""
    source = job.source
    student = source.module and torch_network.apply(source.module, job.layers, chains)
    network = with_chains(source.network, job.layers, chains)
    converted = [layer for layer in job.layers if layer.name in chains]
    phases = list_phases(job.options, limits, job.tasks, output_names(source.network))
    return distill(student, network, teacher or source, converted, phases, job.resources)


def trainable_limits(budgets: Collection[Budget], evaluate: Evaluate | None) -> dict[str, float]:
    """Return the limits that training can test; it cannot call the user's own measure."""
    limits = limits_of(list(budgets))
    return {} if evaluate is not None and "max_drop" in limits else limits


def _quantize_if_requested(
    job: Job, network: ir.Model, search: SearchResult
) -> tuple[SearchResult, Int8 | None, Status]:
    """Quantize a network if requested; the budgets then hold for the network in int8.

    Returns:
        The search with the loss of the network that ships; the network in int8; and a status.
    """
    if not job.options.search.int8:
        return search, None, search.status
    limit = search.limit
    usage = None if limit is None else limit.usage
    int8, missed = quantize(network, job.source, job.options, job.tasks, usage), None
    if limit is None:
        return search, int8, search.status
    if search.loss is not None:
        search = replace(search, loss=limit.loss(int8.network))
    if limit.is_missed(int8.network):
        share = limit.usage(int8.network)
        missed = f"The int8 network loses {share:.2f} times what the budget allows."
    return search, int8, status_of("missed", missed)  # the other budgets are measured at the end


def without_least_gaining(job: Job, search: SearchResult, verified: Verified) -> SearchResult:
    """Revert the half of the converted layers that gains least, and estimate the loss again."""
    baseline = " than the original's int8" if job.options.search.int8 else ""
    result = verdict(verified.comparison.gain)
    layers = least_gaining(verified.converted.rows)
    plan = search.plan.reverted(f"with it the network was no faster{baseline} ({result})", layers)

    def build(near: Realization, whole: bool) -> Realization:
        return job.resources.group.run_on_all(partial(_realize, plan, near.refit, whole=whole), job)

    realization, loss = search.realization, None
    if search.limit is not None:
        realization = build(realization, whole=False)
        loss = search.limit.loss(_deployed(job, realization.network))
    return replace(
        search,
        plan=plan,
        realization=build(realization, whole=not job.options.search.int8),
        predicted_speedup=None,
        loss=loss,
        status=Status(),  # that of another network
    )


def _deployed(job: Job, network: ir.Model) -> ir.Model:
    """Return the version of a network that ships."""
    if not job.options.search.int8:
        return network
    return quantize(network, job.source, job.options, job.tasks).network
