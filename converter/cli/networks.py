"""The commands about networks: inspect, measure, compare, export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from converter.cli.app import (
    Flat,
    MaybeOutput,
    Messages,
    Output,
    Printed,
    Shapes,
    Verbose,
    app,
    check_model,
    given_values,
    optional,
    show,
    show_tables,
    typed_command,
    warn,
)
from converter.errors import ConverterError
from converter.options import (
    ImageOptions,
    ModelOptions,
    Options,
    TimingOptions,
    panel,
)
from converter.options.parsing import OutputTask, each_value, parse_task
from converter.progress import show_progress
from converter.report.paths import check_writable_file, to_json


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of the list of layers.

    Attributes:
        calib: Sample inputs, which give the input shapes.
        latency: Times that flatconv measure took on the target machine.
        int8: Show the times in int8.
        gains: Also time other forms that are not in the cache: about a minute.
        normal: Write the canonical network here, for flatconv measure on another machine.
        json: Print the list as JSON.
        cache: Keep times on disk and use them again ($FLATCONV_CACHE, else the user's cache).
        seed: Seed of random inputs.
    """

    calib: str | None = None
    latency: Path | None = None
    int8: bool = False
    gains: bool = False
    normal: Path | None = None
    json: bool = False
    cache: Annotated[bool, Parameter(negative="--no-cache")] = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Data and output files of a comparison.

    Attributes:
        data: Inputs, labelled for accuracy: .npz, folder of images, or module:function.
        eval: The same as --data.
        html: Write a page here.
        json: Write the figures here.
        input_shape: Shape of an input, [NAME:]1,3,32,32; repeatable.
        task: What an output means, [OUTPUT=]classify, label, detect, embed or regress; repeatable.
        seed: Seed of random inputs.
    """

    data: str | None = None
    eval: str | None = None
    html: Path | None = None
    json: Path | None = None
    input_shape: Shapes = ()
    task: Annotated[tuple[OutputTask, ...], each_value(parse_task)] = ()
    seed: int | None = None


MaybeImages: Any = optional(ImageOptions)
MaybeTiming: Any = optional(TimingOptions)


@app.command
def export(directory: Path, *, output: Output, verbose: Verbose = False) -> int:
    """Write the converted network of an output folder as one ONNX file.

    Args:
        directory: The folder that convert wrote.
        output: The .onnx file to write.
        verbose: Show where an unexpected error came from.
    """
    from converter.commands import export as run

    with show_progress(False) as progress:
        run(directory, output, progress=progress)
    Console().print(f"Wrote {output}", soft_wrap=True)
    return 0


@app.command
def inspect(
    model: str,
    *,
    settings: Annotated[InspectOptions, Flat] = InspectOptions(),
    model_options: Annotated[ModelOptions, panel("Model", 1)] = ModelOptions(),
    images: Annotated[ImageOptions, panel("Images", 2)] = ImageOptions(),
    timing: Annotated[TimingOptions, panel("Timing", 3)] = TimingOptions(),
    verbose: Verbose = False,
) -> int:
    """List a network's layers: shapes, cost, time, and the fastest other form if forms were timed.

    Args:
        model: net.onnx, or package.module:factory or file.py:factory (with --checkpoint).
        settings: Options of the list.
        model_options: How the network is read.
        images: Preprocessing of images in the sample inputs.
        timing: How it is timed.
        verbose: Show where an unexpected error came from.
    """
    check_model(model)
    options = Options(model=model_options, images=images, timing=timing).changed(
        calib=settings.calib,
        latency=settings.latency,
        int8=settings.int8,
        cache=settings.cache,
        seed=settings.seed,
    )
    from converter.commands import inspect as run
    from converter.report.layers import survey_dicts
    from converter.report.tables import survey_table

    with show_progress(settings.json) as progress:
        made = run(model, options, gains=settings.gains, normal=settings.normal, progress=progress)
    drawn = survey_table(made.layers, made.table, made.tasks)
    show(Printed(json=settings.json), lambda: to_json(survey_dicts(made.layers, made.table)), drawn)
    warn(made.warnings)
    return 0


@app.command
def measure(
    model: Path,
    *,
    output: MaybeOutput = None,
    prepare: Path | None = None,
    input_shape: Shapes = (),
    timing: Annotated[TimingOptions, panel("Timing", 1)] = TimingOptions(),
    int8: bool = False,
    messages: Annotated[Messages, Flat] = Messages(),
) -> int:
    """Time a network's layers in onnxruntime, as they are and in other forms.

    The table is for convert --latency. To time the layers on a machine that has onnxruntime and
    numpy but not flatconv, write a bundle with --prepare, and run python bundle.zip there.

    Args:
        model: net.onnx; its weights do not matter.
        output: The table to write, latency.json.
        prepare: The bundle to write instead: bundle.zip, or a new folder.
        input_shape: Shape of an input, [NAME:]1,3,32,32; repeatable.
        timing: How layers are timed.
        int8: Time them in int8, for convert --int8.
        messages: Whether messages are printed.
    """
    if (output is None) == (prepare is None):
        raise ConverterError("Name the table to write with -o, or a bundle with --prepare.")
    check_writable_file(output)
    check_model(str(model))
    options = Options(timing=timing).changed(input_shape=input_shape, int8=int8)
    from converter.report.tables import times_table
    from converter.timing.table import measure_file, prepare_file

    shown: list[Any] = []
    with show_progress(messages.quiet) as progress:
        if output is not None:
            table = measure_file(model, output, options, progress)
            shown = [times_table(table), *table.warnings, f"Wrote {output}"]
        elif prepare is not None:
            count = prepare_file(model, prepare, options, progress)
            shown = [f"Wrote {count} variants of the network to {prepare}"]
    if not messages.quiet:
        show_tables(*shown)
    return 0


@app.command
def compare(
    *models: Path,
    settings: Annotated[CompareOptions, Flat] = CompareOptions(),
    images: Annotated[MaybeImages, panel("Images", 1)] = MaybeImages(),
    timing: Annotated[MaybeTiming, panel("Timing", 2)] = MaybeTiming(),
    messages: Annotated[Messages, Flat] = Messages(),
) -> int:
    """Race ONNX networks in onnxruntime and score them on the same data.

    For an output folder, options that are left out have the values of its conversion.

    Args:
        models: Two or more .onnx files, the first of which is the reference; or one output
            folder.
        settings: Data and output files.
        images: Preprocessing of images.
        timing: How networks are timed.
        messages: Whether messages are printed.
    """
    html, json = settings.html, settings.json
    for path in (html, json):
        check_writable_file(path)
    for path in models:
        check_model(str(path))
    values = given_values(images, timing) | {
        name: value
        for name, value in {
            "input_shape": settings.input_shape or None,
            "seed": settings.seed,
            "eval": settings.data or settings.eval,
            "task": settings.task or None,
        }.items()
        if value is not None
    }
    from converter import commands
    from converter.cache import atomic_write
    from converter.report.page import comparison_html
    from converter.report.report import comparison_dict
    from converter.report.tables import comparison_table, without_shared_folders

    options = commands.comparison_options(models, **values)
    with show_progress(messages.quiet) as progress:
        comparison = commands.compare(*models, options=options, progress=progress)
    if json is not None:
        with atomic_write(json) as scratch:
            scratch.write_text(to_json(comparison_dict(comparison)) + "\n")
    shown = without_shared_folders(comparison)
    if html is not None:
        nodes = commands.node_times(*models, comparison=comparison, options=options)
        with atomic_write(html) as scratch:
            scratch.write_text(comparison_html(shown, nodes, typed_command()))
    if not messages.quiet:
        show_tables(comparison_table(shown))
    return 0
