"""The whole story: a network goes in, a faster one comes out, with the proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from converter.config import ConvertConfig, parse_shapes
from converter.data import Data
from converter.delivery.budget import Found, Solved, find_plan
from converter.delivery.check import check, check_graph, check_same, check_twin
from converter.delivery.compare import Comparison, Evaluate, Progress, verdict
from converter.delivery.correct import SOLVED_AGAIN, correct
from converter.delivery.int8 import as_int8, check_int8, small_version
from converter.delivery.prove import Conversion, prove
from converter.delivery.report import LayerRow, layer_rows
from converter.delivery.result import Result, load, read_config, read_origin, read_rows
from converter.delivery.schedule import dense_again, increment, staged
from converter.delivery.teach import taught, trainable
from converter.errors import ConverterError
from converter.kernels.conv import Chain
from converter.kernels.form import relative_error
from converter.kernels.forms import find_form
from converter.kernels.metric import Metric
from converter.networks import (
    onnx_network,
    runtime,
    torch_export,
    torch_network,
)  # fmt: skip
from converter.networks.normal_form import normal
from converter.networks.onnx_rewrite import rewrite
from converter.networks.source import (
    Source,
    examples,
    open_source,
    read_data,
    read_named_data,
    samples,
)
from converter.networks.survey import Layer, survey
from converter.planning.calibrate import second_moments
from converter.planning.plan import Plan, make_plan, read_plan
from converter.planning.solve import solve_layers
from converter.planning.spread import connected
from converter.tuning.lesson import own_loss
from converter.tuning.place import check_device, place_of


def convert(
    model: nn.Module | str | Path,
    example_input: object = None,
    config: ConvertConfig | None = None,
    *,
    calib: object = None,
    evaluate: Evaluate | None = None,
    command: str = "converter.convert",
    progress: Progress = lambda stage, done: None,
) -> Result:
    """Convert a trained network.

    Args:
        model: A torch model (left as it is), the path of an .onnx file, or
            ``package.module:factory`` (with ``config.checkpoint``).
        example_input: An array or tensor (N, ...), or a dictionary of them; may be left out
            where ``calib``, the configuration or the network itself says the shapes.
        config: Options; the defaults if left out.
        calib: Sample inputs, as ``example_input``; takes the place of ``config.calib``.
        evaluate: ``evaluate(predict) -> float``, higher is better; ``predict`` takes and returns
            dictionaries of arrays. Without it accuracy is measured on ``config.eval``.
        command: Written into the report.
        progress: Called with a stage and the share of it that is done.

    Returns:
        The converted network with its plan and its measured comparison.

    Raises:
        ConverterError: When the input or an option is wrong; nothing is written.
    """
    config = check_options(config or ConvertConfig())
    progress("loading", 0.0)
    source = open_source(model, example_input, config, calib)
    progress("loading", 1.0)
    if config.int8:
        check_int8(source)
    if config.trains and source.train is None and source.calib is None:
        raise ConverterError("--finetune needs inputs to train on; give --train.")
    if config.trains and source.module is None:
        if config.schedule > 1:
            raise ConverterError("--schedule needs a torch model, not an ONNX network.")
        trainable(source.network, source, config)
    if config.trains and place_of(config.device).processes > 1:
        raise ConverterError(
            "Convert in one process, then run accelerate launch -m converter finetune."
        )
    now, stages = source, staged(config)
    for stage in stages[:-1]:
        layers = list_layers(now, stage)
        found = decide(now, layers, increment(stage, config), evaluate, progress)
        step = carried_out(now, layers, found, source, replace(stage, int8=False), progress)
        now = dense_again(now, step, stage)
    last = stages[-1]
    layers = list_layers(now, last)
    found = decide(now, layers, increment(last, config), evaluate, progress)
    conversion = carried_out(now, layers, found, source, last, progress)
    result = prove(source, conversion, config, evaluate, command, progress)
    while _withdrawable(conversion, config, result.comparison):
        slow = verdict(result.comparison.gain)
        plan = conversion.plan.withdrawn(
            f"with it the network was no faster ({slow})", _least_gain(conversion.rows)
        )
        solved = build(now, layers, plan, found.fit, config, progress)
        found = replace(found, solved=solved, predicted_speedup=None)
        conversion = carried_out(now, layers, found, source, last, progress)
        result = prove(source, conversion, config, evaluate, command, progress)
    return result


def finetune(
    directory: str | Path,
    *,
    progress: Progress = lambda stage, done: None,
    command: str = "converter.finetune",
    **changes: Any,
) -> Result | None:
    """Train the network in an output folder further, toward its original.

    Run by ``accelerate launch``, all processes train together; the first gives the result.

    Args:
        directory: What ``Result.save`` wrote, from an ONNX network or a torch model with a factory.
        progress: Called with a stage and the share of it that is done.
        command: Written into the report.
        changes: Fields of ``ConvertConfig`` other than those of the conversion: ``train``,
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
    config = check_options(replace(recorded, **(fresh | changes)))
    network = onnx_network.load(folder / "original.onnx")
    spec = onnx_network.inputs(network)
    calib = None
    if config.calib and (":" in config.calib or Path(config.calib).exists()):
        calib = read_data(config.calib, spec, config).sample(config.samples, config.seed)
    shapes, *more = parse_shapes(config.input_shape, [item.name for item in spec])
    shapes = dict(plan.input_shapes) | shapes
    further = tuple(shapes | other for other in more)
    train, scored = read_named_data(spec, config)
    module = student if isinstance(student, nn.Module) else None
    source = Source(
        network, normal(network), None, spec, shapes, further, calib, train, scored, origin
    )
    if module is not None:
        source = replace(source, module=original_model(folder, source, config))
    layers = [l for l in list_layers(source, config) if l.name in plan.chosen()]
    module, converted, _ = taught(
        module, onnx_network.load(folder / "model.onnx"), source, layers, {}, config, progress
    )
    if place_of(config.device).rank > 0:
        return None
    problem = check_graph(converted)
    if module is not None:
        problem = problem or check_twin(module, converted, samples(source, config.seed))
    rows = tuple(replace(row, rel_error=None) for row in read_rows(folder))
    int8 = as_int8(converted, source, config) if config.int8 else None
    conversion = Conversion(plan, rows, converted, module, problem, int8=int8)
    return prove(source, conversion, config, None, command, progress)


def original_model(folder: Path, source: Source, config: ConvertConfig) -> nn.Module:
    """Build the original of an output folder again.

    Raises:
        ConverterError: When its factory or checkpoint is gone, or gives another model now.
    """
    origin = source.origin
    checkpoint = Path(origin["checkpoint"]) if "checkpoint" in origin else None
    module = torch_export.build(
        origin["factory"], origin["factory_args"], checkpoint, config.trust_pickle
    )
    problem = check_twin(module, source.original, samples(source, config.seed))
    if problem:
        raise ConverterError(f"{folder}: its factory gives another model than it did. {problem}")
    return module


def check_options(config: ConvertConfig) -> ConvertConfig:
    """Refuse at once what is used only after minutes of solving.

    Returns:
        The options, with the seed of the plan that is replayed, if one is.

    Raises:
        ConverterError: When there is no such form, execution provider, device, cluster or plan.
    """
    for text in config.form:
        find_form(text.rpartition("=")[2])
    runtime.check_provider(config.provider)
    check_device(config.device)
    if config.loss:
        own_loss(config.loss)
    if config.cluster:
        with connected(config.cluster):  # answers, and has workers
            pass
    return replace(config, seed=read_plan(config.plan).seed) if config.plan else config


def list_layers(source: Source, config: ConvertConfig) -> tuple[Layer, ...]:
    """List the convolutions and linear layers."""
    feeds = examples(source, config.seed, 1)
    layers = survey(source.network, feeds)
    if source.module is None:
        return layers
    return torch_network.match(source.module, layers, feeds)


def decide(
    source: Source,
    layers: Sequence[Layer],
    config: ConvertConfig,
    evaluate: Evaluate | None,
    progress: Progress,
) -> Found:
    """Carry out the user's choices, or search for the best under a budget."""
    if config.manual or (not config.budget and source.calib is None):
        if config.frontier:
            raise ConverterError(
                "--frontier needs a search; give --calib or a budget, and leave out --form, --rank "
                "and --plan."
            )
        plan = make_plan(layers, config, source.shapes)
        return Found(build(source, layers, plan, source.calib, config, progress), source.calib)

    def carry_out(plan: Plan, fit: Data | None) -> Solved:
        return build(source, layers, plan, fit, config, progress)

    def deployed(network: ir.Model) -> ir.Model:
        return as_int8(network, source, config) if config.int8 else network

    return find_plan(source, layers, config, evaluate, carry_out, deployed, progress)


def build(
    source: Source,
    layers: Sequence[Layer],
    plan: Plan,
    fit: Data | None,
    config: ConvertConfig,
    progress: Progress,
) -> Solved:
    """Carry out a plan, fitted to sample inputs if there are any."""
    chains, errors = solve(replace(source, calib=fit), plan, layers, config, progress)
    if config.trains:
        chains = {name: chain.balanced() for name, chain in chains.items()}
    by_output = {l.output: (l.name, chains[l.name]) for l in layers if l.name in chains}
    return Solved(plan, chains, errors, rewrite(source.network, by_output))


def carried_out(
    source: Source,
    layers: Sequence[Layer],
    found: Found,
    teacher: Source,
    config: ConvertConfig,
    progress: Progress,
) -> Conversion:
    """Check what was found, make its torch model, and train that toward ``teacher`` if asked to."""
    plan, chains, errors = found.solved.plan, found.solved.chains, found.solved.errors
    budget = config.budget or found.budget
    if not chains:
        rows = layer_rows(layers, plan, {}, {}, found.table)
        int8, missed = small_version(teacher.network, teacher, found, config)
        return Conversion(
            plan, rows, teacher.original, teacher.module, None, missed, budget, int8=int8
        )
    converted, module, unproven = found.solved.network, None, None
    problem = check_same(source.original, source.network, samples(source, config.seed))
    problem = problem or check(
        source.network, converted, layers, chains, samples(source, config.seed)
    )
    if source.module is not None:
        module = torch_network.apply(source.module, layers, chains)
    if config.trains:
        errors = {}  # those of weights that are no more
        done = [layer for layer in layers if layer.name in chains]
        module, converted, kept = taught(module, converted, teacher, done, budget, config, progress)
        problem = problem or check_graph(converted)
        if not kept and "max_drop" in budget:
            unproven = "Fine-tuning ended before the held-out inputs said that --max-drop is kept."
    if module is not None:
        problem = problem or check_twin(module, converted, samples(source, config.seed))
    # In a schedule the search judged beside an earlier stage.
    judged = found if source is teacher else replace(found, lost=None)
    int8, missed = small_version(converted, source, judged, config)
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
    )


def solve(
    source: Source,
    plan: Plan,
    layers: Sequence[Layer],
    config: ConvertConfig,
    progress: Progress,
) -> tuple[dict[str, Chain], dict[str, float]]:
    """Decompose every chosen layer, for what it sees of the sample inputs if there are any.

    Returns:
        Chains and relative errors by layer name; the errors are those of the layer's responses,
        or without sample inputs of its weights.
    """
    chosen = plan.chosen()
    cache = config.cache_folder()
    if source.calib is not None and config.correct and chosen:
        return correct(
            source.network, layers, chosen, source.calib,
            seed=plan.seed, device=config.device, cache=cache,
            batch_size=source.inputs[0].shape[0], memory=config.memory * 2**30,
            threads=torch.get_num_threads(), progress=lambda done: progress("solving", done),
        )  # fmt: skip
    metrics: dict[str, tuple[Metric, ...]] = {}
    if source.calib is not None and chosen:
        metrics = second_moments(
            source.network, [layer for layer in layers if layer.name in chosen], source.calib,
            seed=plan.seed, batch_size=source.inputs[0].shape[0], memory=config.memory * 2**30,
            threads=torch.get_num_threads(), progress=lambda done: progress("calibrating", done),
        )  # fmt: skip
    chains = solve_layers(
        layers, chosen, metrics,
        seed=plan.seed, device=config.device, cache=cache, cluster=config.cluster,
        progress=lambda done: progress("solving", done),
    )  # fmt: skip
    convs = {layer.name: layer.conv for layer in layers if layer.conv is not None}
    errors = {
        name: relative_error(convs[name], chain, metrics.get(name))
        for name, chain in chains.items()
    }
    return chains, errors


def _withdrawable(conversion: Conversion, config: ConvertConfig, comparison: Comparison) -> bool:
    """Tell whether choices are to be taken back: ours, sound, and no faster."""
    ours = bool(conversion.plan.chosen()) and not config.manual
    sound = conversion.problem is None
    return ours and sound and comparison.gain.low <= 1


def _least_gain(rows: Sequence[LayerRow]) -> set[str]:
    """Name the half of the converted layers that gains least; all layers if that leaves none."""

    def gain(row: LayerRow) -> tuple[float, int]:
        before_ms, after_ms = row.latency_before_ms or 0.0, row.latency_after_ms or 0.0
        return before_ms - after_ms, row.macs_before - row.macs_after

    changed = [row for row in rows if row.form and row.form != SOLVED_AGAIN]
    if len(changed) < 2:
        return {row.name for row in rows}
    return {row.name for row in sorted(changed, key=gain)[: (len(changed) + 1) // 2]}
