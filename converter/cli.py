"""The command line: ``Options`` as flags, and nothing that the library cannot do."""

from __future__ import annotations

import json
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from converter.errors import ConverterError, lacks_memory, root_line
from converter.options import Options

LOG_INTERVAL_S = 60.0  # between lines of progress

app = App(
    name="flatconv",
    help="Make a trained convolutional network faster: ONNX out, measured in onnxruntime.",
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
Config = Annotated[Options, Parameter(name="*")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"])]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"])]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]


@app.command
def convert(
    model: str,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    options: Config = Options(),
    evaluate: str | None = None,
    dry_run: bool = False,
    json: bool = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Convert a trained network and show what became of it.

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
    from converter.commands import dry_run as plan_only
    from converter.models.export import find_callable
    from converter.pipeline import TIMEOUT, run_worker
    from converter.pipeline import convert as run
    from converter.processes import process_group
    from converter.report.result import writable_folder
    from converter.report.tables import comparison_table, frontier_table, layer_table

    if dry_run:
        with _progress(quiet or json) as progress:
            score = find_callable(evaluate, "--evaluate") if evaluate else None
            plan, rows = plan_only(model, options, evaluate=score, progress=progress)
        _show(quiet, json, plan.to_json, layer_table(rows))
        return 0
    if output is None:
        raise ConverterError("Name the output folder with -o, or pass --dry-run.")
    if process_group(options.resources.device, TIMEOUT).rank:
        run_worker(model, None, options)
        return 0
    folder = writable_folder(output)
    score = find_callable(evaluate, "--evaluate") if evaluate else None
    with _progress(quiet or json) as progress:
        result = run(model, None, options, evaluate=score, command=_command(), progress=progress)
        result.save(folder)
    report = result.report
    tables: list[Any] = [layer_table(report.layers)] if verbose else []
    if report.frontier:
        tables.append(frontier_table(report.frontier))
    _show(
        quiet, json, lambda: _dump(report.to_dict()), *tables, comparison_table(report.comparison)
    )
    return _finish(report.met, report.reason, output, quiet or json)


@app.command
def finetune(
    directory: Path,
    *,
    train: str | None = None,
    epochs: int = 0,
    reconstruct: int = 0,
    eval: str | None = None,
    labels: bool = True,
    loss: str | None = None,
    lr: float | None = None,
    train_batch: int | None = None,
    accumulate: int | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    augment: Literal["flip", "shift", "none"] | None = None,
    workers: int | None = None,
    device: str | None = None,
    seed: int | None = None,
    resume: bool = False,
    evaluate: str | None = None,
    json: bool = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Train a converted network further, toward its original.

    On several GPUs or machines: accelerate launch -m converter finetune ...

    Args:
        directory: What convert wrote.
        train: Training inputs, labelled or not: .npz, folder of images, or module:function, which
            may give a torch DataLoader; as at the conversion if left out.
        epochs: Passes over them.
        reconstruct: Passes before, that teach each layer to give what it gave in the original.
        eval: Labelled inputs for accuracy; as at the conversion if left out.
        labels: Use the labels of the training inputs, if they have any.
        loss: module:function, called as loss(outputs, originals, labels), instead of distillation.
        lr: Highest learning rate.
        train_batch: Examples a step.
        accumulate: Compute each batch in so many parts, to save memory.
        precision: Of the activations in training; bfloat16 only where the device has it, and only
            where the network learns in it.
        augment: Shift training images at random and flip them, only shift them, or neither.
        workers: Processes that read the training inputs.
        device: Where to train: cpu, cuda, cuda:1.
        seed: Seed of every random choice.
        resume: Go on with a fine-tuning that was interrupted.
        evaluate: module:function, called as evaluate(predict) -> float; higher is better.
        json: Print the report as JSON.
        verbose: Also show every layer.
        quiet: Print nothing but errors.
    """
    from converter.models.export import find_callable
    from converter.pipeline import finetune as run
    from converter.processes import is_first
    from converter.report.result import read_origin, writable_folder
    from converter.report.tables import comparison_table, layer_table

    if epochs + reconstruct < 1:
        raise ConverterError("Give --epochs or --reconstruct, at least 1.")
    changes = {
        "train": train,
        "eval": eval,
        "lr": lr,
        "train_batch": train_batch,
        "accumulate": accumulate,
        "precision": precision,
        "augment": augment,
        "workers": workers,
        "device": device,
        "seed": seed,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    read_origin(directory)
    writable_folder(directory)
    score = find_callable(evaluate, "--evaluate") if evaluate else None
    with _progress(quiet or json or not is_first()) as progress:
        result = run(
            directory,
            evaluate=score,
            progress=progress,
            command=_command(),
            finetune=epochs,
            reconstruct=reconstruct,
            labels=labels,
            loss=loss,
            resume=resume,
            **given,
        )
        if result is None:
            return 0
        result.save(directory)
    report = result.report
    tables = [layer_table(report.layers)] if verbose else []
    _show(
        quiet, json, lambda: _dump(report.to_dict()), *tables, comparison_table(report.comparison)
    )
    return _finish(report.met, report.reason, directory, quiet or json)


@app.command
def export(directory: Path, *, output: Output, verbose: Verbose = False) -> int:
    """Write the converted network of an output folder as one ONNX file.

    Args:
        directory: What convert wrote.
        output: The .onnx file to write.
        verbose: Show where an unexpected error came from.
    """
    from converter.commands import export as run

    with _progress(False) as progress:
        run(directory, output, progress=progress)
    Console().print(f"Wrote {output}", soft_wrap=True)
    return 0


@app.command
def inspect(
    model: str,
    *,
    options: Config = Options(),
    gains: bool = False,
    normal: Path | None = None,
    json: bool = False,
    verbose: Verbose = False,
) -> int:
    """List a network's convolutions: shapes, cost, time, and what each could gain, if known.

    Args:
        model: net.onnx, or package.module:factory (with --checkpoint).
        options: Options of the conversion.
        gains: Time other forms, too, where no conversion or earlier call has: about a minute.
        normal: Write the network as it is read here, for flatconv measure on another machine.
        json: Print the list as JSON.
        verbose: Show where an unexpected error came from.
    """
    from converter.commands import inspect as run
    from converter.report.report import survey_dicts
    from converter.report.tables import survey_table

    with _progress(json) as progress:
        layers, table = run(model, options, gains=gains, normal=normal, progress=progress)
    _show(False, json, lambda: _dump(survey_dicts(layers, table)), survey_table(layers, table))
    return 0


@app.command
def measure(
    model: Path,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    prepare: Path | None = None,
    input_shape: tuple[str, ...] = (),
    threads: int = 1,
    provider: str | None = None,
    batch_size: int | None = None,
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
        prepare: The bundle to write, bundle.zip or a new folder.
        input_shape: Shape of an input, [NAME:]1,3,32,32; repeatable.
        threads: Threads of onnxruntime.
        provider: Execution provider of onnxruntime.
        batch_size: Examples a call, where the network takes any.
        int8: Time them in int8, for convert --int8.
        verbose: Show where an unexpected error came from.
        quiet: Print nothing but errors.
    """
    from converter.report.tables import times_table
    from converter.timing.table import measure_file, prepare_file

    if (output is None) == (prepare is None):
        raise ConverterError("Give --output latency.json to measure, or --prepare bundle.zip.")
    options = Options.of(
        input_shape=input_shape,
        threads=threads,
        provider=provider,
        batch_size=batch_size,
        int8=int8,
    )
    with _progress(quiet) as progress:
        if output is not None:
            table = measure_file(model, output, options, progress)
            shown = [times_table(table), *table.warnings, f"Wrote {output}"]
        elif prepare is not None:
            count = prepare_file(model, prepare, options, progress)
            shown = [f"Wrote {count} variants of the network to {prepare}"]
    _show(quiet, False, str, *shown)
    return 0


@app.command
def compare(
    *models: Path,
    data: str | None = None,
    html: Path | None = None,
    json: Path | None = None,
    options: Config = Options(),
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Race ONNX networks in onnxruntime and score them on the same data.

    Args:
        models: Two or more .onnx files; the first is what the others are held against.
        data: Inputs, labelled for accuracy: .npz, folder of images, or module:function.
        html: Write a page here.
        json: Write the figures here.
        options: Options; those of timing and images are used.
        verbose: Show where an unexpected error came from.
        quiet: Print nothing but errors.
    """
    from converter.cache import atomic_write
    from converter.commands import compare as run
    from converter.commands import node_times
    from converter.report.page import comparison_html
    from converter.report.report import comparison_dict
    from converter.report.tables import comparison_table, without_shared_folders

    for path in (html, json):
        if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
            raise ConverterError(f"{path} cannot be written; name a file in an existing folder.")
    with _progress(quiet) as progress:
        comparison = run(*models, data=data, options=options, progress=progress)
    if json is not None:
        with atomic_write(json) as scratch:
            scratch.write_text(_dump(comparison_dict(comparison)) + "\n")
    shown = without_shared_folders(comparison)
    if html is not None:
        nodes = node_times(*models, comparison=comparison, options=options)
        with atomic_write(html) as scratch:
            scratch.write_text(comparison_html(shown, nodes, _command()))
    _show(quiet, False, str, comparison_table(shown))
    return 0


def main() -> None:
    """Run the command line; errors are one sentence and status 2 (with -v, bugs tell where).

    Raises:
        KeyboardInterrupt: When it is interrupted, which it has told.
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
    except Exception as error:  # a mistake of ours: whoever reports it wants to see where
        if lacks_memory(error):
            text = (
                "flatconv: there is too little memory; free some, convert with less --memory, or "
                "train with a smaller --train-batch or more --accumulate."
            )
            errors.print(text, style="red", soft_wrap=True)
            sys.exit(2)
        if {"-v", "--verbose"} & set(arguments):
            traceback.print_exc()
        errors.print(
            f"flatconv: unexpected {root_line(error)}; please report it with what -v shows.",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _finish(met: bool, reason: str | None, folder: Path, silent: bool) -> int:
    """Say how it ended, and give the exit status."""
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
    return json.dumps(document, indent=2)


def _command() -> str:
    return shlex.join(["flatconv", *sys.argv[1:]])


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[str, float], None]]:
    """Draw a bar a stage, on standard error; where that is no terminal, write a line a minute."""
    drawn = sys.stderr.isatty()
    bars = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=silent or not drawn,
    )
    stages: dict[str, TaskID] = {}
    told_s = time.monotonic()

    def update(stage: str, done: float) -> None:
        nonlocal told_s
        if stage not in stages:
            stages[stage] = bars.add_task(stage, total=1.0)
        task = bars.tasks[stages[stage]]
        if done < task.completed:  # another round of the same
            bars.reset(stages[stage])
        bars.update(stages[stage], completed=done)
        if not silent and not drawn and time.monotonic() - told_s > LOG_INTERVAL_S:
            told_s = time.monotonic()
            left_s = task.time_remaining
            left = "" if left_s is None else f", {timedelta(seconds=left_s)} left"
            sys.stderr.write(f"{stage}: {100 * done:.0f} %{left}\n")

    with bars:
        yield update
