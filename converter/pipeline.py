"""The whole story: a network goes in, a faster one comes out, with the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from converter.decomposition.forms import find_form
from converter.errors import ConverterError
from converter.evaluation.check import check, check_graph, check_same, check_torch_vs_onnx
from converter.evaluation.compare import Comparison, Evaluate, Progress, verdict
from converter.evaluation.verify import Conversion, prove
from converter.graph import network as onnx_network
from converter.graph.canonicalize import canonicalize
from converter.graph.survey import Layer, survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.source import (
    Source,
    examples,
    open_source,
    read_data,
    read_named_data,
    samples,
)
from converter.options import Options, shapes_by_name
from converter.processes import Resources, check_device, process_group
from converter.quantization.int8 import as_int8, check_int8, quantize_if_requested
from converter.reconstruction.build import Realization, build
from converter.reconstruction.parallel import connected
from converter.reconstruction.refit import REFIT
from converter.report.report import LayerRow, layer_rows
from converter.report.result import Result, load, read_budget, read_config, read_origin, read_rows
from converter.runtime import ort as runtime
from converter.search.find_plan import Found, find_plan
from converter.search.plan import Plan, make_plan, read_plan
from converter.timing.table import chosen_times
from converter.training.distill import check_trainable, distill, distill_chains
from converter.training.losses import import_loss
from converter.training.phases import list_phases
from converter.training.schedule import compose_chains, increment, split_schedule

# The other processes wait while the first one searches and measures.
TIMEOUT = timedelta(days=1)


def convert(
    model: nn.Module | str | Path,
    example_input: object = None,
    options: Options | None = None,
    *,
    calib: object = None,
    evaluate: Evaluate | None = None,
    command: str = "converter.convert",
    progress: Progress = lambda stage, done: None,
) -> Result:
    """Convert a trained network.

    Args:
        model: A torch model (left as it is), the path of an .onnx file, or
            ``package.module:factory`` (with ``options.model.checkpoint``).
        example_input: An array or tensor (N, ...), or a dictionary of them; may be left out
            where ``calib``, the configuration or the network itself says the shapes.
        options: Options; the defaults if left out.
        calib: Sample inputs, as ``example_input``; takes the place of ``options.data.calib``.
        evaluate: ``evaluate(predict) -> float``, higher is better; ``predict`` takes and returns
            dictionaries of arrays. Without it accuracy is measured on ``options.data.eval``.
        command: Written into the report.
        progress: Called with a stage and the share of it that is done.

    Returns:
        The converted network with its plan and its measured comparison.

    Raises:
        ConverterError: When the input or an option is wrong; nothing is written.

    Note:
        Of several processes (``accelerate launch``, torchrun), the first calls this and all others
        ``run_worker``; where it raises, all of them have to end.
    """
    progress("loading", 0.0)
    source, options = _opened(model, example_input, options, calib)
    progress("loading", 1.0)
    if source.place.rank:
        raise ConverterError(
            "Only the first process converts; call converter.run_worker in this one."
        )
    source.place.all_reduce_mean(0)  # nothing is timed while others still load
    now, stages = source, split_schedule(options)
    for stage in stages[:-1]:
        layers = list_layers(now, stage)
        found = decide(now, layers, increment(stage, options), evaluate, progress)
        step = carried_out(
            now, layers, found, source, stage.changed(int8=False), evaluate, progress
        )
        now = compose_chains(now, step, stage)
    last = stages[-1]
    layers = list_layers(now, last)
    found = decide(now, layers, increment(last, options), evaluate, progress)
    conversion = carried_out(now, layers, found, source, last, evaluate, progress)
    result = prove(source, conversion, options, evaluate, command, progress)
    while _withdrawable(conversion, options, result.comparison):
        slow = verdict(result.comparison.gain)
        than = " than the original's int8" if options.search.int8 else ""
        plan = conversion.plan.reverted(
            f"with it the network was no faster{than} ({slow})", _least_gain(conversion.rows)
        )
        solved = build(plan, now, layers, options, progress)
        found = replace(found, solved=solved, predicted_speedup=None)
        conversion = carried_out(now, layers, found, source, last, evaluate, progress)
        result = prove(source, conversion, options, evaluate, command, progress)
    source.place.broadcast_task(None)
    return result


def run_worker(
    model: nn.Module | str | Path,
    example_input: object = None,
    options: Options | None = None,
    *,
    calib: object = None,
) -> None:
    """Share the work of ``convert``, which the first process of ``accelerate launch`` runs.

    Every other process calls this with the same arguments. Each runs the networks on its part of
    the sample inputs, and trains where that is asked for; the first also searches, solves and
    measures. Ends when ``convert`` does, before its result is saved.

    Args:
        model: As for ``convert``.
        example_input: As for ``convert``.
        options: As for ``convert``.
        calib: As for ``convert``.

    Raises:
        ConverterError: As ``convert``, or when another process is gone.
    """
    source, options = _opened(model, example_input, options, calib)
    layers = list_layers(source, options)
    source.place.all_reduce_mean(0)
    for task in source.place.tasks():
        task(source, layers, options, lambda stage, done: None)


def finetune(
    directory: str | Path,
    *,
    evaluate: Evaluate | None = None,
    progress: Progress = lambda stage, done: None,
    command: str = "converter.finetune",
    **changes: Any,
) -> Result | None:
    """Train the network in an output folder further, toward its original.

    Run by ``accelerate launch``, all processes train together; the first gives the result. All
    epochs are trained, and the budget of the folder judged after them.

    Args:
        directory: What ``Result.save`` wrote, from an ONNX network or a torch model with a factory.
        evaluate: As for ``convert``.
        progress: Called with a stage and the share of it that is done.
        command: Written into the report.
        changes: Fields of ``Options`` other than those of the conversion: ``train``,
            ``finetune`` and ``reconstruct`` (epochs), ``labels``, ``loss``, ``lr``,
            ``train_batch``, ``accumulate``, ``precision``, ``augment``, ``workers``, ``eval``,
            ``device``, ``seed``, ``resume``.

    Returns:
        The trained network, measured; None in every process but the first.

    Raises:
        ConverterError: When the folder or the data cannot be used.
    """
    folder = Path(directory)
    origin, plan = read_origin(folder), read_plan(folder / "plan.json")
    student = load(folder)
    if isinstance(student, nn.Module) and "factory" not in origin:
        raise ConverterError(f"{folder} was not made from a factory; it cannot be fine-tuned.")
    recorded = read_config(folder)
    fresh: dict[str, Any] = {"plan": None, "cluster": None, "resume": False}
    fresh |= {"finetune": 0, "reconstruct": 0, "schedule": 1}
    options = check_options(recorded.changed(**(fresh | changes)))
    network = onnx_network.load(folder / "original.onnx")
    spec = onnx_network.inputs(network)
    calib = None
    if options.data.calib and (":" in options.data.calib or Path(options.data.calib).exists()):
        calib = read_data(options.data.calib, spec, options).sample(
            options.data.samples, options.resources.seed
        )
    shapes, *more = shapes_by_name(options.model.input_shape, [item.name for item in spec])
    shapes = dict(plan.input_shapes) | shapes
    further = tuple(shapes | other for other in more)
    train, scored = read_named_data(spec, options)
    module = student if isinstance(student, nn.Module) else None
    source = Source(
        network, canonicalize(network), None, spec, shapes, further, calib, train, scored, origin
    )
    if module is not None:
        source = replace(source, module=original_model(folder, source, options))
    layers = [l for l in list_layers(source, options) if l.name in plan.chosen()]
    budget = read_budget(folder)
    module, converted, unproven = distill(
        module,
        onnx_network.load(folder / "model.onnx"),
        source,
        layers,
        list_phases(options, _judged(budget, evaluate), to_the_end=True),
        Resources.of(options, progress=progress),
    )
    if process_group(options.resources.device).rank > 0:
        return None
    problem = check_graph(converted)
    if module is not None:
        problem = problem or check_torch_vs_onnx(
            module, converted, samples(source, options.resources.seed)
        )
    rows = tuple(replace(row, rel_error=None) for row in read_rows(folder))
    int8 = as_int8(converted, source, options) if options.search.int8 else None
    if int8 is not None and "max_drop" in budget:
        unproven = "Nothing says what of accuracy int8 loses; give labelled --eval."
    conversion = Conversion(
        plan, rows, converted, module, problem, budget=budget, unproven=unproven, int8=int8
    )
    return prove(source, conversion, options, evaluate, command, progress)


def _opened(
    model: nn.Module | str | Path,
    example_input: object,
    options: Options | None,
    calib: object,
) -> tuple[Source, Options]:
    """Load what is to be converted, and refuse what could not be done with it."""
    options = check_options(options or Options())
    source = open_source(model, example_input, options, calib)
    source = replace(source, place=process_group(options.resources.device, TIMEOUT))
    if options.search.int8:
        check_int8(source)
    if options.training.schedule > 1 and options.training.trains and source.module is None:
        raise ConverterError("--schedule needs a torch model, not an ONNX network.")
    if options.training.schedule > 1 and source.place.size > 1:
        raise ConverterError("--schedule works in one process; leave out accelerate launch.")
    if options.training.trains:
        check_trainable(source, options)
    return source, options


def original_model(folder: Path, source: Source, options: Options) -> nn.Module:
    """Build the original of an output folder again.

    Raises:
        ConverterError: When its factory or checkpoint is gone, or gives another model now.
    """
    origin = source.origin
    checkpoint = Path(origin["checkpoint"]) if "checkpoint" in origin else None
    module = torch_export.build(
        origin["factory"], origin["factory_args"], checkpoint, options.model.trust_pickle
    )
    problem = check_torch_vs_onnx(module, source.original, samples(source, options.resources.seed))
    if problem:
        raise ConverterError(f"{folder}: its factory gives another model than it did. {problem}")
    return module


def check_options(options: Options) -> Options:
    """Refuse at once what is used only after minutes of solving.

    Returns:
        The options, with the seed of the plan that is replayed, if one is.

    Raises:
        ConverterError: When there is no such form, execution provider, device, cluster or plan.
    """
    for text in options.layers.form:
        find_form(text.rpartition("=")[2])
    runtime.check_provider(options.timing.provider)
    check_device(options.resources.device)
    if options.training.loss:
        import_loss(options.training.loss)
    if options.resources.cluster:
        with connected(options.resources.cluster):  # answers, and has workers
            pass
    return (
        options.changed(seed=read_plan(options.layers.plan).seed)
        if options.layers.plan
        else options
    )


def list_layers(source: Source, options: Options) -> tuple[Layer, ...]:
    """List the convolutions and linear layers."""
    feeds = examples(source, options.resources.seed, 1)
    layers = survey(source.network, feeds)
    if source.module is None:
        return layers
    return torch_network.match(source.module, layers, feeds)


def decide(
    source: Source,
    layers: Sequence[Layer],
    options: Options,
    evaluate: Evaluate | None,
    progress: Progress,
) -> Found:
    """Carry out the user's choices, or search for the best under a budget."""
    if options.layers.manual or (not options.limits and source.calib is None):
        if options.search.frontier:
            raise ConverterError(
                "--frontier needs a search; give --calib or a budget, and leave out --form, --rank "
                "and --plan."
            )
        plan = make_plan(layers, options, source.shapes)
        forms = {name: (form.name, rank) for name, (form, rank) in plan.chosen().items()}
        times = chosen_times(source, layers, forms, options, progress)
        return Found(build(plan, source, layers, options, progress), times)

    def carry_out(plan: Plan, whole: bool) -> Realization:
        return build(plan, source, layers, options, progress, whole=whole)

    def deployed(network: ir.Model) -> ir.Model:
        return as_int8(network, source, options) if options.search.int8 else network

    return find_plan(source, layers, options, evaluate, carry_out, deployed, progress)


def carried_out(
    source: Source,
    layers: Sequence[Layer],
    found: Found,
    teacher: Source,
    options: Options,
    evaluate: Evaluate | None,
    progress: Progress,
) -> Conversion:
    """Check what was found, make its torch model, and train that toward ``teacher`` if asked to."""
    plan, chains, errors = found.solved.plan, found.solved.chains, found.solved.errors
    budget = options.limits or found.budget
    if not chains:
        rows = layer_rows(layers, plan, {}, {}, found.table)
        int8, missed = quantize_if_requested(teacher.network, teacher, found, options)
        return Conversion(
            plan,
            rows,
            teacher.original,
            teacher.module,
            None,
            missed,
            budget,
            frontier=found.frontier,
            int8=int8,
            lost=found.lost,
        )
    converted, module, unproven = found.solved.network, None, None
    problem = check_same(source.original, source.network, samples(source, options.resources.seed))
    problem = problem or check(
        source.network, converted, layers, chains, samples(source, options.resources.seed)
    )
    if options.training.trains:
        errors = {}  # those of weights that are no more
        toward = None if teacher is source else teacher  # the others have their own source
        task = partial(distill_chains, chains, _judged(budget, evaluate), teacher=toward)
        module, converted, unproven = source.place.run_on_all(
            task, source, layers, options, progress
        )
        problem = problem or check_graph(converted)
    elif source.module is not None:
        module = torch_network.apply(source.module, layers, chains)
    if module is not None:
        problem = problem or check_torch_vs_onnx(
            module, converted, samples(source, options.resources.seed)
        )
    # In a schedule the search judged beside an earlier stage.
    found = found if source is teacher else replace(found, lost=None)
    int8, missed = quantize_if_requested(converted, source, found, options)
    return Conversion(
        plan,
        layer_rows(layers, plan, chains, errors, found.table),
        converted,
        module,
        problem,
        missed,
        budget,
        found.predicted_speedup,
        found.frontier,
        unproven,
        int8,
        found.lost,
    )


def _judged(budget: Mapping[str, float], evaluate: Evaluate | None) -> Mapping[str, float]:
    """Give what training can judge of a budget: nothing of what a measure of the user's finds."""
    return {} if evaluate is not None and "max_drop" in budget else budget


def _withdrawable(conversion: Conversion, options: Options, comparison: Comparison) -> bool:
    """Tell whether choices are to be taken back: ours, sound, and no faster."""
    ours = bool(conversion.plan.chosen()) and not options.layers.manual
    sound = conversion.problem is None
    return ours and sound and comparison.gain.low <= 1


def _least_gain(rows: Sequence[LayerRow]) -> set[str]:
    """Name the half of the converted layers that gains least; all layers if that leaves none."""

    def gain(row: LayerRow) -> tuple[float, int]:
        before_ms, after_ms = row.latency_before_ms or 0.0, row.latency_after_ms or 0.0
        return before_ms - after_ms, row.macs_before - row.macs_after

    changed = [row for row in rows if row.form and row.form != REFIT]
    if len(changed) < 2:
        return {row.name for row in rows}
    return {row.name for row in sorted(changed, key=gain)[: (len(changed) + 1) // 2]}
