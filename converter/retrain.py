"""Fine-tuning of an earlier conversion, from its output folder or its result in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from converter.errors import ConverterError
from converter.evaluation.check import check_graph, check_torch_vs_onnx
from converter.evaluation.compare import Evaluate
from converter.evaluation.status import status_of
from converter.graph import network as onnx_network
from converter.graph.batch_axes import examples_first
from converter.graph.canonicalize import canonicalize
from converter.graph.outputs import output_names
from converter.job import Job, check_options, job_of
from converter.measurement import measure
from converter.models.datasets import read_data, read_named_data
from converter.models.factory import build
from converter.models.input_shapes import user_shapes
from converter.models.notes import data_notes
from converter.models.source import Source, samples
from converter.options import Options
from converter.pipeline import trainable_limits
from converter.processes import TIMEOUT, Progress, Resources, no_progress, process_group
from converter.reconstruction.realize import Realization
from converter.report.folder import Record, read_record
from converter.report.report import Report
from converter.report.result import Result, load
from converter.report.verify import ConvertedModel
from converter.search.int8 import quantize
from converter.search.plan import Plan, read_plan
from converter.search.result import SearchResult
from converter.stages import StageTimer
from converter.training.distill import distill
from converter.training.phases import list_phases

# Options of the conversion that a later training resets.
RESET = {"plan": None, "cluster": None, "resume": False, "reconstruct": 0, "schedule": 1}


@dataclass(frozen=True)
class Earlier:
    """An earlier conversion.

    Attributes:
        record: Origin, options, budgets and layers of the conversion.
        plan: Form and rank of each layer.
        original: The original network.
        network: The converted network.
        module: The converted torch model, or None for an ONNX network.
        teacher: The original torch model, or None for an ONNX network.
    """

    record: Record
    plan: Plan
    original: ir.Model
    network: ir.Model
    module: nn.Module | None
    teacher: nn.Module | None

    @classmethod
    def of_result(cls, result: Result) -> Earlier:
        """Take the result of a conversion."""
        converted = result.report.verified.converted
        record = Record(
            result.origin, result.options, converted.search.budgets, result.report.layers
        )
        return cls(
            record,
            result.plan,
            result.original,
            converted.network,
            converted.module,
            result.teacher,
        )

    @classmethod
    def of_folder(cls, folder: Path, trust_pickle: bool) -> Earlier:
        """Read an output folder.

        Raises:
            ConverterError: When it is damaged, or its torch model cannot be built again.
        """
        record, student = read_record(folder), load(folder)
        plan = read_plan(folder / "plan.json")
        original, network = (
            examples_first(onnx_network.load(folder / name))
            for name in ("original.onnx", "model.onnx")
        )
        if not isinstance(student, nn.Module):
            return cls(record, plan, original, network, None, None)
        origin = record.origin
        if "factory" not in origin:
            raise ConverterError(
                f"{folder} was not made from a factory; it cannot be fine-tuned. In Python, "
                "fine-tune the result of the conversion."
            )
        checkpoint = Path(origin["checkpoint"]) if "checkpoint" in origin else None
        state_key = record.options.model.state_key
        teacher, _ = build(
            origin["factory"], origin["factory_args"], checkpoint, trust_pickle, state_key
        )
        return cls(record, plan, original, network, student, teacher)


def finetune(
    result_or_folder: Result | str | Path,
    values: Mapping[str, Any],
    *,
    evaluate: Evaluate | None = None,
    command: str = "converter.finetune",
    progress: Progress = no_progress,
) -> Result | None:
    """Train a converted network further; see ``converter.finetune``.

    ``values`` are options by name, and ``command`` is recorded in the report.
    """
    if isinstance(result_or_folder, Result):
        earlier = Earlier.of_result(result_or_folder)
    else:
        trust_pickle = bool(values.get("trust_pickle", False))
        earlier = Earlier.of_folder(Path(result_or_folder), trust_pickle)
    options = check_options(earlier.record.options.changed(**{**RESET, "epochs": 0, **values}))
    timer = StageTimer(progress)
    job = _open(earlier, options, evaluate, timer)
    if earlier.teacher is not None and not isinstance(result_or_folder, Result):
        problem = check_torch_vs_onnx(
            earlier.teacher, earlier.original, samples(job.source, options.resources.seed)
        )
        if problem:
            raise ConverterError(
                f"{result_or_folder}: its factory gives another model than it did. {problem}"
            )
    converted = _train(job, earlier)
    if job.resources.group.rank > 0:
        return None
    verified = measure(job, converted)
    report = Report(verified, options.resources.seed, command, timer.stages)
    record = earlier.record
    return Result(report, earlier.original, record.origin, options, earlier.teacher)


def _open(earlier: Earlier, options: Options, evaluate: Evaluate | None, progress: Progress) -> Job:
    """Read the data of an earlier conversion, to train its network further."""
    inputs = onnx_network.inputs(earlier.original)
    calib, calib_source = None, options.data.calib
    missing = (
        isinstance(calib_source, str)
        and ":" not in calib_source
        and not Path(calib_source).exists()
    )
    if calib_source is not None and not missing:
        calib = read_data(calib_source, inputs, options)
        calib = calib.sample(options.data.samples, options.resources.seed)
    shapes, *more = user_shapes(options.model.input_shape, inputs)
    shapes = dict(earlier.plan.input_shapes) | shapes
    train, evaluation = read_named_data(earlier.original, options)
    source = Source(
        original=earlier.original,
        network=canonicalize(earlier.original),
        module=earlier.teacher,
        inputs=inputs,
        shapes=shapes,
        more_shapes=tuple(shapes | other for other in more),
        calib=calib,
        train=train,
        eval=evaluation,
        origin=dict(earlier.record.origin),
        notes=tuple(data_notes(calib, evaluation)),
    )
    group = process_group(options.resources.device, TIMEOUT)
    return job_of(source, options, Resources.of(options, group, progress), evaluate)


def _train(job: Job, earlier: Earlier) -> ConvertedModel:
    """Train the converted network, and check and quantize the result."""
    options, budgets, plan = job.options, earlier.record.budgets, earlier.plan
    limits = trainable_limits(budgets, job.evaluate)
    layers = [layer for layer in job.layers if layer.name in plan.chosen()]
    names = output_names(job.source.network)
    phases = list_phases(options, limits, job.tasks, names, all_epochs=True)
    module, network, unproven = distill(
        earlier.module, earlier.network, job.source, layers, phases, job.resources
    )
    problem = check_graph(network)
    if module is not None:
        inputs = samples(job.source, options.resources.seed)
        problem = problem or check_torch_vs_onnx(module, network, inputs)
    int8 = None
    if options.search.int8:
        int8 = quantize(network, job.source, options, job.tasks)
        if "max_drop" in limits:
            unproven = (
                "--max-drop is not shown to be kept: no measurement says how much accuracy int8 "
                "loses; give labelled --eval."
            )
    search = SearchResult(plan, Realization({}, {}, network), budgets)
    rows = tuple(replace(row, rel_error=None) for row in earlier.record.layers)
    status = status_of("unsound", problem).then(status_of("unproven", unproven))
    return ConvertedModel(search, network, module, rows, int8, status, unproven is None)
