"""The Python interface: takes Python types, and names options in errors as in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from converter import commands, pipeline, retrain
from converter.evaluation.compare import Evaluate
from converter.evaluation.comparison import Comparison
from converter.evaluation.status import Status
from converter.options import Options, to_python_names, with_python_names
from converter.processes import Progress, no_progress
from converter.report import result as results
from converter.report.result import Result


@with_python_names
def convert(
    model: nn.Module | onnx.ModelProto | str | Path,
    example_input: object = None,
    *,
    evaluate: Evaluate | None = None,
    options: Options | None = None,
    progress: Progress = no_progress,
    **values: Any,
) -> Result:
    """Convert a trained network.

    Args:
        model: A torch model (left as it is), an ``onnx.ModelProto``, the path of an .onnx file,
            ``package.module:factory`` or ``file.py:factory`` (with ``checkpoint``).
        example_input: An array or tensor (N, ...), a tuple of them, or a dictionary by input
            name. It may be left out where ``calib``, ``input_shape`` or the network gives the
            shapes.
        evaluate: ``evaluate(predict) -> float``, higher is better; ``predict`` takes and returns
            dictionaries of arrays. Without it, accuracy is measured on ``eval``.
        options: Options as one object; the defaults if left out.
        progress: Called with a stage and the fraction of it that is done.
        **values: Options by name, as in ``calib=loader, max_drop=0.005, int8=True,
            layers={"conv1": LayerForm("spatial", rank=96), "fc": None}``. Names and meanings are
            those of the command line. ``calib``, ``eval`` and ``train`` take text (.npz, folder
            of images, ``module:function``), arrays, tensors, dictionaries, lists of batches, or a
            ``DataLoader``.

    Returns:
        The converted network with its plan and its measured comparison.

    Raises:
        ConverterError: When the input or an option is wrong; nothing is written.

    Note:
        Of several processes (``accelerate launch``, torchrun), the first calls this and all others
        ``run_worker``; where it raises, all of them have to end.
    """
    result = pipeline.convert(
        model,
        (options or Options()).changed(**values),
        example_input=example_input,
        evaluate=evaluate,
        progress=progress,
    )
    return _to_python_names(result)


@with_python_names
def run_worker(
    model: nn.Module | onnx.ModelProto | str | Path,
    example_input: object = None,
    *,
    options: Options | None = None,
    **values: Any,
) -> None:
    """Share the work of ``convert``, which the first process of ``accelerate launch`` runs.

    Every other process calls this with the same arguments. Each runs the networks on its part of
    the sample inputs, and trains where that is asked for; the first also searches, solves and
    measures. This ends when ``convert`` does, before its result is saved.

    Args:
        model: As for ``convert``.
        example_input: As for ``convert``.
        options: As for ``convert``.
        **values: As for ``convert``.

    Raises:
        ConverterError: As ``convert``, or when another process is gone.
    """
    pipeline.run_worker(model, (options or Options()).changed(**values), example_input)


@with_python_names
def finetune(
    result_or_folder: Result | str | Path,
    *,
    epochs: int = 0,
    evaluate: Evaluate | None = None,
    progress: Progress = no_progress,
    **values: Any,
) -> Result | None:
    """Train a converted network further, toward its original.

    All epochs are trained; the budgets of the conversion are judged after them. Run by
    ``accelerate launch``, all processes train together, and the first returns the result.

    Args:
        result_or_folder: The result of ``convert``, or the folder that ``Result.save`` wrote.
        epochs: Epochs of distillation.
        evaluate: As for ``convert``.
        progress: Called with a stage and the fraction of it that is done.
        **values: Options of training by name: ``train``, ``reconstruct`` (epochs), ``labels``,
            ``loss``, ``lr``, ``train_batch``, ``accumulate``, ``precision``, ``augment``,
            ``workers``, ``resume``; also ``eval``, ``device``, ``seed`` and ``trust_pickle``.
            Others are those of the conversion.

    Returns:
        The trained network, measured; None in every process but the first.

    Raises:
        ConverterError: When the folder or the data cannot be used.
    """
    result = retrain.finetune(
        result_or_folder, {**values, "epochs": epochs}, evaluate=evaluate, progress=progress
    )
    return None if result is None else _to_python_names(result)


@with_python_names
def compare(
    *paths: str | Path,
    data: object = None,
    options: Options | None = None,
    progress: Progress = no_progress,
    **values: Any,
) -> Comparison:
    """Race ONNX files in onnxruntime and score them on the same data.

    Args:
        paths: At least two files, the first of which is the reference, or one output folder.
        data: Inputs, as ``calib`` of ``convert``, with labels for accuracy; ``eval`` if left out.
        options: Options of timing and of images; for a folder, those of its conversion if left
            out.
        progress: Called with a stage and the fraction of it that is done.
        **values: Options by name, such as ``threads=2``.

    Raises:
        ConverterError: When a file cannot be read, or the networks take other inputs.
    """
    if options is None:
        options = commands.comparison_options(paths, **values)
    elif values:
        options = options.changed(**values)
    return commands.compare(*paths, data=data, options=options, progress=progress)


@with_python_names
def load(directory: str | Path) -> nn.Module | onnx.ModelProto:
    """Load the converted network of an output folder.

    Returns:
        The torch model in evaluation mode, built by its factory (without one, what
        ``torch.export`` saved of it); for an ONNX input the ONNX model.

    Raises:
        ConverterError: When the folder is not one that ``Result.save`` wrote.
    """
    return results.load(directory)


def _to_python_names(result: Result) -> Result:
    """Write options in the status and the warnings of a report as Python parameters."""
    verified = result.report.verified
    sentence = verified.status.sentence
    status = Status(verified.status.code, sentence and to_python_names(sentence))
    warnings = tuple(map(to_python_names, verified.warnings))
    verified = replace(verified, status=status, warnings=warnings)
    report = replace(result.report, verified=verified)
    return replace(result, report=report)
