"""The command line: options as flags, and nothing that the library cannot do."""

from __future__ import annotations

import json as json_format
import shlex
import sys
import traceback
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console

from converter import __version__
from converter.errors import ConverterError, lacks_memory, root_line
from converter.options import (
    ImageOptions,
    InputShape,
    ModelOptions,
    Options,
    ResourceOptions,
    TimingOptions,
    TrainOptions,
    check_inputs,
    each_value,
    panel,
    parse_input_shape,
)
from converter.progress import show_progress
from converter.report.paths import check_writable_file, writable_folder

app = App(
    name="flatconv",
    help="Make a trained convolutional network faster: ONNX out, measured in onnxruntime.",
    version=__version__,
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"])]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"])]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Shapes = Annotated[tuple[InputShape, ...], each_value(parse_input_shape)]


def _optional(kind: type) -> Any:
    """Make the options of a subject optional: those left out are as at the conversion."""
    hints = get_type_hints(kind, include_extras=True)
    optional = [(f.name, hints[f.name] | None, field(default=None)) for f in fields(kind)]
    twin = make_dataclass(f"Maybe{kind.__name__}", optional, frozen=True, kw_only=True)
    twin.__doc__ = kind.__doc__
    return twin


MaybeTrain: Any = _optional(TrainOptions)


@app.command
def convert(
    model: str,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    options: Annotated[Options, Parameter(name="*")] = Options(),
    evaluate: str | None = None,
    dry_run: bool = False,
    json: bool = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Convert a trained network and show the result.

    Much data, several GPUs or machines: accelerate launch -m converter convert ...

    Args:
        model: net.onnx, or package.module:factory (with --checkpoint).
        output: Folder for the converted network and the report.
        options: Options of the conversion.
        evaluate: module:function, called as evaluate(predict) -> float; higher is better.
        dry_run: Show the plan and write nothing.
        json: Print the report (with --dry-run the plan) as JSON.
        verbose: Also show every layer.
        quiet: Print nothing but errors.
    """
    if output is None and not dry_run:
        raise ConverterError("Name the output folder with -o, or pass --dry-run.")
    _check_model(model)
    check_inputs(options, evaluate is not None)
    folder = None if output is None else writable_folder(output)
    from converter import commands, pipeline
    from converter.processes import TIMEOUT, process_group
    from converter.report.tables import comparison_table, frontier_table, layer_table

    score = _function(evaluate)
    if folder is None or dry_run:
        with show_progress(quiet or json) as progress:
            plan, rows = commands.dry_run(model, options, evaluate=score, progress=progress)
        _show(quiet, json, plan.to_json, layer_table(rows))
        return 0
    if process_group(options.resources.device, TIMEOUT).rank:
        pipeline.run_worker(model, options)
        return 0
    with show_progress(quiet or json) as progress:
        result = pipeline.convert(
            model, options, evaluate=score, command=_command(), progress=progress
        )
        result.save(folder)
    report = result.report
    tables: list[Any] = [layer_table(report.layers)] if verbose else []
    tables += [frontier_table(report.frontier)] if report.frontier else []
    tables.append(comparison_table(report.comparison))
    _show(quiet, json, lambda: _dump(report.to_dict()), *tables)
    return _finish(report.met, report.reason, folder, quiet or json)


@app.command
def finetune(
    directory: Path,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    eval: str | None = None,
    options: Annotated[
        MaybeTrain, Parameter(name="*", group=Group("Training", sort_key=1))
    ] = MaybeTrain(),
    device: str | None = None,
    seed: int | None = None,
    evaluate: str | None = None,
    json: bool = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Train a converted network further, toward its original.

    Options that are left out are as at the conversion. On several GPUs or machines:
    accelerate launch -m converter finetune ...

    Args:
        directory: The folder that convert wrote.
        output: Folder for the trained network and its report; the same folder if left out.
        eval: Labelled inputs for accuracy.
        options: Options of training.
        device: Where to train: cpu, cuda, cuda:1.
        seed: Seed of every random choice.
        evaluate: module:function, called as evaluate(predict) -> float; higher is better.
        json: Print the report as JSON.
        verbose: Also show every layer.
        quiet: Print nothing but errors.
    """
    values = vars(options) | {"eval": eval, "device": device, "seed": seed}
    values = {name: value for name, value in values.items() if value is not None}
    if not (values.get("epochs") or values.get("reconstruct")):
        raise ConverterError("Give --epochs or --reconstruct, at least 1.")
    Options().changed(**{n: v for n, v in values.items() if n not in ("schedule", "resume")})
    folder = writable_folder(output or directory)
    from converter import retrain
    from converter.processes import is_first
    from converter.report.tables import comparison_table, layer_table

    score = _function(evaluate)
    with show_progress(quiet or json or not is_first()) as progress:
        result = retrain.finetune(
            directory, values, evaluate=score, command=_command(), progress=progress
        )
        if result is None:
            return 0
        result.save(folder)
    report = result.report
    tables: list[Any] = [layer_table(report.layers)] if verbose else []
    tables.append(comparison_table(report.comparison))
    _show(quiet, json, lambda: _dump(report.to_dict()), *tables)
    return _finish(report.met, report.reason, folder, quiet or json)


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
    model_options: Annotated[ModelOptions, panel("Model", 1)] = ModelOptions(),
    timing: Annotated[TimingOptions, panel("Timing", 2)] = TimingOptions(),
    resources: Annotated[ResourceOptions, panel("Resources", 3)] = ResourceOptions(),
    calib: str | None = None,
    latency: Path | None = None,
    int8: bool = False,
    gains: bool = False,
    normal: Path | None = None,
    json: bool = False,
    verbose: Verbose = False,
) -> int:
    """List a network's layers: shapes, cost, time, and what each could gain, if known.

    Args:
        model: net.onnx, or package.module:factory (with --checkpoint).
        model_options: How the network is read.
        timing: How it is timed.
        resources: Cache, device, seed.
        calib: Sample inputs, which give the input shapes.
        latency: Times that flatconv measure took on the target machine.
        int8: Show the times in int8.
        gains: Time other forms, too, where no conversion or earlier call has: about a minute.
        normal: Write the network as it is read here, for flatconv measure on another machine.
        json: Print the list as JSON.
        verbose: Show where an unexpected error came from.
    """
    _check_model(model)
    options = Options(model=model_options, timing=timing, resources=resources)
    options = options.changed(calib=calib, latency=latency, int8=int8)
    from converter.commands import inspect as run
    from converter.report.layers import survey_dicts
    from converter.report.tables import survey_table

    with show_progress(json) as progress:
        layers, table = run(model, options, gains=gains, normal=normal, progress=progress)
    _show(False, json, lambda: _dump(survey_dicts(layers, table)), survey_table(layers, table))
    return 0


@app.command
def measure(
    model: Path,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    prepare: Path | None = None,
    input_shape: Shapes = (),
    timing: Annotated[TimingOptions, panel("Timing", 1)] = TimingOptions(),
    int8: bool = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
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
        verbose: Show where an unexpected error came from.
        quiet: Print nothing but errors.
    """
    if (output is None) == (prepare is None):
        raise ConverterError("Name the table to write with -o, or a bundle with --prepare.")
    check_writable_file(output)
    _check_model(str(model))
    options = Options(timing=timing).changed(input_shape=input_shape, int8=int8)
    from converter.report.tables import times_table
    from converter.timing.table import measure_file, prepare_file

    with show_progress(quiet) as progress:
        if output is not None:
            table = measure_file(model, output, options, progress)
            shown = [times_table(table), *table.warnings, f"Wrote {output}"]
        else:
            assert prepare is not None
            count = prepare_file(model, prepare, options, progress)
            shown = [f"Wrote {count} variants of the network to {prepare}"]
    _show(quiet, False, str, *shown)
    return 0


@app.command
def compare(
    *models: Path,
    data: str | None = None,
    eval: str | None = None,
    html: Path | None = None,
    json: Path | None = None,
    input_shape: Shapes = (),
    images: Annotated[ImageOptions, panel("Images", 1)] = ImageOptions(),
    timing: Annotated[TimingOptions, panel("Timing", 2)] = TimingOptions(),
    seed: int = 0,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Race ONNX networks in onnxruntime and score them on the same data.

    Args:
        models: Two or more .onnx files, the first of which is the reference; or one output
            folder.
        data: Inputs, labelled for accuracy: .npz, folder of images, or module:function.
        eval: The same as --data.
        html: Write a page here.
        json: Write the figures here.
        input_shape: Shape of an input, [NAME:]1,3,32,32; repeatable.
        images: Preprocessing of images.
        timing: How networks are timed.
        seed: Of random inputs.
        verbose: Show where an unexpected error came from.
        quiet: Print nothing but errors.
    """
    for path in (html, json):
        check_writable_file(path)
    for path in models:
        _check_model(str(path))
    options = Options(images=images, timing=timing).changed(
        input_shape=input_shape, seed=seed, eval=data or eval
    )
    from converter import commands
    from converter.cache import atomic_write
    from converter.report.page import comparison_html
    from converter.report.report import comparison_dict
    from converter.report.tables import comparison_table, without_shared_folders

    with show_progress(quiet) as progress:
        comparison = commands.compare(*models, options=options, progress=progress)
    if json is not None:
        with atomic_write(json) as scratch:
            scratch.write_text(_dump(comparison_dict(comparison)) + "\n")
    shown = without_shared_folders(comparison)
    if html is not None:
        nodes = commands.node_times(*models, comparison=comparison, options=options)
        with atomic_write(html) as scratch:
            scratch.write_text(comparison_html(shown, nodes, _command()))
    _show(quiet, False, str, comparison_table(shown))
    return 0


def main() -> None:
    """Run the command line; errors are one sentence and status 2 (with -v, bugs show a trace).

    Raises:
        KeyboardInterrupt: When it is interrupted, after a message.
    """
    errors = Console(stderr=True)
    arguments = sys.argv[1:]
    try:
        status = app(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
    except (ConverterError, CycloptsError, OSError) as error:
        errors.print(f"flatconv: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("flatconv: interrupted; nothing was written.", style="red")
        raise
    except Exception as error:  # a bug: whoever reports it wants to see where
        if lacks_memory(error):
            text = (
                "flatconv: there is too little memory; free some, convert with less --memory, or "
                "train with a smaller --train-batch or more --accumulate."
            )
            errors.print(text, style="red", soft_wrap=True)
            sys.exit(2)
        if {"-v", "--verbose"} & set(arguments):
            traceback.print_exc()
        text = f"flatconv: unexpected {root_line(error)}; please report it with what -v shows."
        errors.print(text, style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _check_model(model: str) -> None:
    """Refuse at once a model file that is not there."""
    if ":" not in model and not Path(model).exists():
        raise ConverterError(f"{model} does not exist.")


def _function(name: str | None) -> Callable[..., Any] | None:
    from converter.models.export import find_callable

    return find_callable(name, "--evaluate") if name else None


def _finish(met: bool, reason: str | None, folder: Path, silent: bool) -> int:
    """Say how it ended, and return the exit status."""
    if reason and not (met and silent):
        Console(stderr=True).print(reason, style="yellow", markup=False, soft_wrap=True)
    if not silent:
        Console().print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    return 0 if met else 1


def _show(quiet: bool, as_json: bool, text: Callable[[], str], *tables: Any) -> None:
    if as_json:
        sys.stdout.write(text().rstrip() + "\n")
    elif not quiet:
        # Into a file or a pipe, Rich would fold every table to 80 columns.
        width = None if sys.stdout.isatty() else 120
        Console(width=width).print(*tables, sep="\n")


def _dump(document: Any) -> str:
    return json_format.dumps(document, indent=2)


def _command() -> str:
    return shlex.join(["flatconv", *sys.argv[1:]])
