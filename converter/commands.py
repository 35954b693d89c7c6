"""The commands beside convert and finetune: plan only, inspect, compare, export."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir
from torch import nn

from converter.errors import ConverterError
from converter.evaluation.check import check_graph
from converter.evaluation.compare import Comparison, Evaluate, Progress, compare_models
from converter.graph import network as onnx_network
from converter.graph.survey import Layer
from converter.models.source import open_source, read_scored_data
from converter.options import Options, shapes_by_name
from converter.pipeline import check_options, decide, list_layers
from converter.quantization.int8 import check_int8
from converter.report.report import LayerRow, layer_rows
from converter.report.result import read_origin
from converter.runtime.ort import OnnxRuntime
from converter.runtime.ort_session import NodeTime
from converter.search.plan import Plan
from converter.timing import profile
from converter.timing.latency import LatencyTable
from converter.timing.table import latency_table


def dry_run(
    model: nn.Module | str | Path,
    options: Options,
    *,
    evaluate: Evaluate | None = None,
    progress: Progress = lambda stage, done: None,
) -> tuple[Plan, tuple[LayerRow, ...]]:
    """Plan a conversion, and tell what would become of each layer; nothing is written.

    Raises:
        ConverterError: As ``converter.convert``.
    """
    options = check_options(options)
    source = open_source(model, None, options, None)
    if options.search.int8:
        check_int8(source)
    layers = list_layers(source, options)
    found = decide(source, layers, options, evaluate, progress)
    solved = found.solved
    rows = layer_rows(layers, solved.plan, solved.chains, solved.errors, found.table)
    return solved.plan, rows


def inspect(
    model: nn.Module | str | Path,
    options: Options,
    *,
    gains: bool = False,
    normal: Path | None = None,
    progress: Progress = lambda stage, done: None,
) -> tuple[tuple[Layer, ...], LatencyTable]:
    """List a network's convolutions, with their times as they are and, if known, in other forms.

    Args:
        model: As for ``converter.convert``.
        options: Options.
        gains: Whether other forms are timed if they are not known yet, which takes much longer.
        normal: Where to write the network as it was read, or None; ``flatconv measure`` on
            another machine sees the same layers in it.
        progress: Called with a stage and the share of it that is done.

    Raises:
        ConverterError: As ``converter.convert``, or when ``normal`` cannot be written.
    """
    options = check_options(options)
    progress("loading", 0.0)
    source = open_source(model, None, options, None)
    layers = list_layers(source, options)
    progress("loading", 1.0)
    if normal is not None:
        _write(source.network, normal)
    return layers, latency_table(source, layers, options, progress, gains)


def compare(
    *paths: str | Path,
    data: str | None = None,
    options: Options | None = None,
    progress: Progress = lambda stage, done: None,
) -> Comparison:
    """Race ONNX files in onnxruntime and score them on the same data.

    Args:
        paths: At least two; the first is what the others are held against.
        data: Inputs, as ``Options.calib``, with labels for accuracy; those of
            ``options.data.eval`` if left out.
        options: Options of timing and of images.
        progress: Called with a stage and the share of it that is done.

    Raises:
        ConverterError: When a file cannot be read, or the networks take other inputs.
    """
    options = options or Options()
    data = data or options.data.eval
    if len(paths) < 2:
        raise ConverterError("Name at least two .onnx files to compare.")
    models = {str(path): onnx_network.load(Path(path)) for path in paths}
    if len(models) < len(paths):
        raise ConverterError("Each file can be named once.")
    spec = onnx_network.inputs(next(iter(models.values())))
    shapes, *more = shapes_by_name(options.model.input_shape, [item.name for item in spec])
    return compare_models(
        models,
        data=read_scored_data(data, spec, options) if data else None,
        shapes=shapes,
        more_shapes=[shapes | other for other in more],
        threads=options.timing.threads,
        provider=options.timing.provider,
        batch_size=options.timing.batch_size,
        seed=options.resources.seed,
        progress=progress,
    )


def node_times(
    *paths: str | Path, comparison: Comparison, options: Options | None = None
) -> list[tuple[NodeTime, ...]]:
    """Time what onnxruntime makes of the networks of a comparison, node by node.

    Args:
        paths: As for ``compare``.
        comparison: What ``compare`` gave, whose input shapes are used.
        options: Options of timing.

    Raises:
        ConverterError: When a file cannot be read or run.
    """
    options = options or Options()
    shapes = list(comparison.input_shapes.values())
    runtime = OnnxRuntime.of(options.timing.threads, options.timing.provider)
    return [profile.node_times(Path(path), shapes, runtime) for path in paths]


def export(
    directory: str | Path, path: str | Path, *, progress: Progress = lambda stage, done: None
) -> None:
    """Write the converted network of an output folder as one ONNX file, whole or not at all.

    Raises:
        ConverterError: When ``directory`` is not an output folder, its ``model.onnx`` is damaged,
            or ``path`` cannot be written.
    """
    folder, target = Path(directory), Path(path)
    if target.is_dir() or not target.resolve().parent.is_dir():
        raise ConverterError(f"{target} cannot be written; name a file in an existing folder.")
    progress("exporting", 0.0)
    read_origin(folder)
    network = onnx_network.load(folder / "model.onnx")
    problem = check_graph(network)
    if problem:
        raise ConverterError(f"{folder / 'model.onnx'} cannot be exported. {problem}")
    _write(network, target)
    progress("exporting", 1.0)


def _write(network: ir.Model, target: Path) -> None:
    """Write a network, whole or not at all; with its weights beside it if it is too large."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            onnx_network.save(network, Path(scratch) / target.name)
            for written in sorted(Path(scratch).iterdir(), reverse=True):  # the network last
                written.replace(target.with_name(written.name))
    except OSError as error:
        raise ConverterError(f"{target} cannot be written: {error}.") from None
