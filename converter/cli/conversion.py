"""The commands that make networks: convert and finetune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from converter.cli.app import (
    Flat,
    MaybeOutput,
    Printed,
    app,
    check_model,
    finish,
    function,
    given_values,
    optional,
    show,
    typed_command,
    warn,
)
from converter.errors import ConverterError
from converter.options import Options, TrainOptions, check_inputs
from converter.progress import show_progress
from converter.report.paths import check_output_folder, to_json, writable_folder
from converter.stages import USUAL_S

if TYPE_CHECKING:
    from converter.report.report import Report


MaybeTrain: Any = optional(
    TrainOptions,
    eval=(str, "Labelled inputs for accuracy."),
    device=(str, "Where to train: cpu, cuda, cuda:1."),
    seed=(int, "Seed of every random choice."),
    trust_pickle=(bool, "Unpickle the factory's checkpoint again; this runs code from the file."),
)


@app.command
def convert(
    model: str,
    *,
    output: MaybeOutput = None,
    options: Annotated[Options, Flat] = Options(),
    evaluate: str | None = None,
    dry_run: bool = False,
    printed: Annotated[Printed, Flat] = Printed(),
) -> int:
    """Convert a trained network and show the result.

    Much data, several GPUs or machines: accelerate launch -m converter convert ...

    Args:
        model: net.onnx, or package.module:factory or file.py:factory (with --checkpoint).
        output: Folder for the converted network and the report.
        options: Options of the conversion.
        evaluate: module:function, called as evaluate(predict) -> float; higher is better.
        dry_run: Show the plan (with --json as JSON) and write nothing.
        printed: Options of the output.
    """
    if output is None and not dry_run:
        raise ConverterError("Name the output folder with -o, or pass --dry-run.")
    check_model(model)
    check_inputs(options, evaluate is not None)
    folder = None if output is None else writable_folder(output)
    from converter import commands, pipeline
    from converter.cache import load_seconds
    from converter.processes import TIMEOUT, process_group
    from converter.report.tables import layer_table

    score = function(evaluate)
    if folder is None or dry_run:
        with show_progress(printed.silent) as progress:
            plan, rows = commands.dry_run(model, options, evaluate=score, progress=progress)
        show(printed, plan.to_json, layer_table(rows))
        return 0
    if process_group(options.resources.device, TIMEOUT).rank:
        pipeline.run_worker(model, options)
        return 0
    expected_s = load_seconds(options.resources.cache_folder()) or USUAL_S
    with show_progress(printed.silent, expected_s) as progress:
        result = pipeline.convert(
            model, options, evaluate=score, command=typed_command(), progress=progress
        )
        result.save(folder)
    return _show_report(result.report, folder, printed)


@app.command
def finetune(
    directory: Path,
    *,
    output: MaybeOutput = None,
    options: Annotated[
        MaybeTrain, Parameter(name="*", group=Group("Training", sort_key=1))
    ] = MaybeTrain(),
    evaluate: str | None = None,
    printed: Annotated[Printed, Flat] = Printed(),
) -> int:
    """Train a converted network further, toward its original.

    Options that are left out have the values of the conversion. On several GPUs or machines:
    accelerate launch -m converter finetune ...

    Args:
        directory: The folder that convert wrote.
        output: Folder for the trained network and its report; the same folder if left out.
        options: Options of training.
        evaluate: module:function, called as evaluate(predict) -> float; higher is better.
        printed: Options of the output.
    """
    values = given_values(options)
    if not (values.get("epochs") or values.get("reconstruct")):
        raise ConverterError("Give --epochs or --reconstruct, at least 1.")
    Options().changed(**{n: v for n, v in values.items() if n != "resume"})
    check_output_folder(directory)
    folder = writable_folder(output or directory)
    from converter import retrain
    from converter.processes import is_first

    score = function(evaluate)
    with show_progress(printed.silent or not is_first()) as progress:
        result = retrain.finetune(
            directory, values, evaluate=score, command=typed_command(), progress=progress
        )
        if result is None:
            return 0
        result.save(folder)
    return _show_report(result.report, folder, printed)


def _show_report(report: Report, folder: Path, printed: Printed) -> int:
    """Print a report, and return the exit status."""
    from converter.report.tables import comparison_table, frontier_table, layer_table

    tables: list[Any] = [layer_table(report.layers)] if printed.verbose else []
    tables += [frontier_table(report.frontier)] if report.frontier else []
    tables.append(comparison_table(report.comparison))
    show(printed, lambda: to_json(report.to_dict()), *tables)
    warn(report.warnings)
    return finish(report.met, report.reason, folder, printed.silent)
