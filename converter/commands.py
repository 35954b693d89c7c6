"""The smaller commands: dry run, inspect, compare, export."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from converter.errors import ConverterError
from converter.evaluation.check import check_graph
from converter.evaluation.compare import Conditions, Evaluate, compare_models
from converter.evaluation.comparison import Comparison
from converter.evaluation.tasks.task import Task
from converter.graph import network as onnx_network
from converter.graph.batch_axes import as_given, examples_first
from converter.graph.survey import Layer
from converter.job import open_job
from converter.models.datasets import read_scored_data
from converter.models.input_shapes import user_shapes
from converter.models.source import Model
from converter.options import Options
from converter.pipeline import choose
from converter.processes import Progress, Resources, no_progress
from converter.report.folder import read_record
from converter.report.layers import LayerRow, layer_rows
from converter.report.paths import check_writable_file
from converter.runtime.ort import OnnxRuntime
from converter.runtime.ort_session import NodeTime
from converter.search.plan import Plan
from converter.timing.latency import LatencyTable
from converter.timing.table import latency_table

FOLDER_NETWORKS = ("original.onnx", "model.onnx", "original.int8.onnx", "model.int8.onnx")


@dataclass(frozen=True)
class Inspection:
    """The layers of a network, their times, what its outputs mean, and what is doubtful."""

    layers: tuple[Layer, ...]
    table: LatencyTable
    tasks: tuple[Task, ...]
    warnings: tuple[str, ...] = ()


def dry_run(
    model: Model,
    options: Options,
    *,
    evaluate: Evaluate | None = None,
    progress: Progress = no_progress,
) -> tuple[Plan, tuple[LayerRow, ...]]:
    """Plan a conversion and list every layer before and after; nothing is written.

    Raises:
        ConverterError: As ``converter.convert``.
    """
    job = open_job(model, options, evaluate=evaluate, progress=progress)
    search = choose(job)
    return search.plan, layer_rows(job.layers, search)


def inspect(
    model: Model,
    options: Options,
    *,
    gains: bool = False,
    normal: Path | None = None,
    progress: Progress = no_progress,
) -> Inspection:
    """List a network's layers with their times, and with their times in other forms if cached.

    Args:
        model: As for ``converter.convert``.
        options: Options of the conversion.
        gains: Time other forms if they are not in the cache, which takes much longer.
        normal: File to write the canonical network to, or None; ``flatconv measure`` on another
            machine finds the same layers in it.
        progress: Called with a stage and the fraction of it that is done.

    Raises:
        ConverterError: As ``converter.convert``, or when ``normal`` cannot be written.
    """
    progress("loading", 0.0)
    in_float = options.changed(int8=False)  # times in int8 need no sample inputs
    job = open_job(model, in_float, progress=progress)
    progress("loading", 1.0)
    if normal is not None:
        write_network(job.source.network, normal)
    table = latency_table(job.problem, options, job.resources, all_forms=gains)
    return Inspection(job.layers, table, job.tasks, (*job.warnings, *table.warnings))


def compare(
    *paths: str | Path,
    data: object = None,
    options: Options | None = None,
    progress: Progress = no_progress,
) -> Comparison:
    """Race ONNX files in onnxruntime and score them on the same data; see ``converter.compare``."""
    files = compared_files(paths)
    options = options or comparison_options(paths)
    data = _scored_data(paths, options) if data is None else data
    models = {str(path): examples_first(onnx_network.load(path)) for path in files}
    if len(models) < len(files):
        raise ConverterError("Each file can be named once.")
    first = next(iter(models.values()))
    inputs = onnx_network.inputs(first)
    shapes, *more = user_shapes(options.model.input_shape, inputs)
    conditions = Conditions(
        OnnxRuntime.of(options.timing),
        shapes,
        [shapes | other for other in more],
        options.timing.batch_size,
    )
    examples = None if data is None else read_scored_data(data, first, options)
    resources = Resources(seed=options.resources.seed, progress=progress)
    return compare_models(models, conditions, resources, examples, tasks=dict(options.data.task))


def _scored_data(paths: Sequence[str | Path], options: Options) -> object:
    """Return the data of ``--eval``; without, the sample inputs of an output folder."""
    calib = options.data.calib
    folder = len(paths) == 1 and isinstance(calib, str) and (":" in calib or Path(calib).exists())
    return calib if options.data.eval is None and folder else options.data.eval


def comparison_options(paths: Sequence[str | Path], **values: Any) -> Options:
    """Return the options of a comparison; for one output folder, those of its conversion.

    Args:
        paths: As for ``compare``.
        values: Options by name that are changed.

    Raises:
        ConverterError: When there is no such option, or a value does not fit.
    """
    folder = len(paths) == 1 and Path(paths[0]).is_dir()
    options = read_record(Path(paths[0])).options if folder else Options()
    return options.changed(**values)


def compared_files(paths: Sequence[str | Path]) -> list[Path]:
    """List the files to compare: those named, or the networks of one output folder.

    Raises:
        ConverterError: When there are fewer than two.
    """
    if len(paths) == 1 and Path(paths[0]).is_dir():
        folder = Path(paths[0])
        read_record(folder)
        return [folder / name for name in FOLDER_NETWORKS if (folder / name).exists()]
    if len(paths) < 2:
        raise ConverterError("Name at least two .onnx files to compare, or one output folder.")
    return [Path(path) for path in paths]


def node_times(
    *paths: str | Path, comparison: Comparison, options: Options | None = None
) -> list[Sequence[NodeTime]]:
    """Time the nodes of the optimized networks of a comparison.

    Args:
        paths: As for ``compare``.
        comparison: The result of ``compare``; its input shapes are used.
        options: Options of timing.

    Raises:
        ConverterError: When a file cannot be read or run.
    """
    from converter.timing.profile import node_times as times_of

    runtime = OnnxRuntime.of((options or Options()).timing)
    shapes = list(comparison.input_shapes.values())
    return [times_of(path, shapes, runtime) for path in compared_files(paths)]


def export(directory: str | Path, path: str | Path, *, progress: Progress = no_progress) -> None:
    """Write the converted network of an output folder as one ONNX file, whole or not at all.

    Raises:
        ConverterError: When ``directory`` is not an output folder, its ``model.onnx`` is damaged,
            or ``path`` cannot be written.
    """
    folder, target = Path(directory), Path(path)
    check_writable_file(target)
    progress("exporting", 0.0)
    read_record(folder)
    network = onnx_network.load(folder / "model.onnx")
    problem = check_graph(network)
    if problem:
        raise ConverterError(f"{folder / 'model.onnx'} cannot be exported. {problem}")
    write_network(network, target)
    progress("exporting", 1.0)


def write_network(network: ir.Model, target: Path) -> None:
    """Write a network, whole or not at all; weights too large for one file go into a second.

    Raises:
        ConverterError: When it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            onnx_network.save(as_given(network), Path(scratch) / target.name)
            for file in sorted(Path(scratch).iterdir(), reverse=True):  # the network last
                file.replace(target.with_name(file.name))
    except OSError as error:
        raise ConverterError(f"{target} cannot be written: {error}.") from None
