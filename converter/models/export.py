"""Torch models exported to ONNX, and held against what was exported."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from converter.errors import ConverterError, root_line
from converter.graph.differences import difference, tolerance
from converter.graph.network import name_batch_axis, open_session
from converter.graph.outputs import random_values
from converter.models.wrappers import copied, has_lazy_weights
from converter.runtime.ort import run


def input_names(model: nn.Module) -> tuple[str, ...]:
    """List the positional parameters of ``forward`` without a default; at least one name."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
    return tuple(names) or ("input",)


def float_type(model: nn.Module) -> torch.dtype:
    """Return the type of a model's first floating-point parameter; float32 if it has none."""
    kinds = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(kinds, torch.float32)


def forward(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> object:
    """Run a model on inputs in the order of its parameters, without gradients.

    Raises:
        ConverterError: When the model fails on them.
    """
    try:
        with torch.no_grad():
            return model(*(torch.from_numpy(array) for array in feeds.values()))
    except Exception as error:  # the user's model may raise anything
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        raise ConverterError(
            f"The model does not run on inputs of shape {shapes}: {root_line(error)}"
        ) from None


def export(
    model: nn.Module,
    feeds: Mapping[str, np.ndarray],
    free_axes: Mapping[str, Iterable[int]] | None = None,
) -> ir.Model:
    """Export ``model`` in evaluation mode.

    The network is held against the model on ``feeds`` and on their first example alone. Where they
    differ, or the model does not run on two examples, the batch is fixed to that of ``feeds``.

    Args:
        model: Left as it is.
        feeds: Example inputs by name, each (N, ...).
        free_axes: Axes of each input that stay free if the model allows it; the batch axis if left
            out.

    Raises:
        ConverterError: When the model cannot run on ``feeds``, torch cannot export it, or the
            network computes something else.
    """
    exported = copied(model).cpu().eval()
    forward(exported, feeds)
    axes = {name: set((free_axes or {}).get(name, (0,))) for name in feeds}
    if all(0 in free for free in axes.values()):
        # torch.export would treat a batch of one as a constant.
        doubled = {n: np.concatenate([a, a]) if len(a) == 1 else a for n, a in feeds.items()}
        first = {name: array[:1] for name, array in feeds.items()}
        if _runs(exported, doubled):
            network = _exported(exported, doubled, axes)
            if not any(_misfit(exported, network, sample) for sample in (feeds, first)):
                return network
    network = _exported(exported, feeds, {name: free - {0} for name, free in axes.items()})
    problem = _misfit(exported, network, feeds)
    if problem:
        raise ConverterError(f"torch exports the model to an ONNX network that {problem}.")
    return network


def _exported(
    model: nn.Module, feeds: Mapping[str, np.ndarray], free_axes: Mapping[str, Iterable[int]]
) -> ir.Model:
    """Export a model at the shapes of ``feeds``, with some free axes."""
    auto = torch.export.Dim.AUTO
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                tuple(torch.from_numpy(array) for array in feeds.values()),
                input_names=list(feeds),
                dynamic_shapes=_as_arguments(
                    model, [dict.fromkeys(free_axes[name], auto) for name in feeds]
                ),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.export raises many classes
        raise ConverterError(f"torch cannot export the model to ONNX: {root_line(error)}") from None
    assert program is not None
    # The metadata holds stack traces, with the paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    return name_batch_axis(program.model)


def _as_arguments(model: nn.Module, values: list[Any]) -> tuple[Any, ...]:
    """Arrange a value for each input as the parameters of ``forward``: ``*args`` is one of them."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    kinds = [parameter.kind for parameter in parameters]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(values)
    before = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    rest = values[before:]
    return (*values[:before], tuple(rest)) if rest else tuple(values)


def materialize(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> None:
    """Run a model with lazy layers once, in place: its inputs decide the shapes of its weights.

    Raises:
        ConverterError: When the model does not run on ``feeds``.
    """
    if has_lazy_weights(model):
        forward(model, feeds)


def _runs(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> bool:
    try:
        forward(model, feeds)
    except ConverterError:
        return False
    return True


def _misfit(model: nn.Module, network: ir.Model, feeds: Mapping[str, np.ndarray]) -> str | None:
    """Say how the exported network and a model differ on ``feeds``, which the model may not take.

    Returns:
        The end of a sentence, or None. Outputs that depend on random numbers are not compared.
    """
    if not _runs(model, feeds):
        return None
    drawn = random_values(network)
    expected = [tensor.detach().numpy() for tensor in flat_outputs(forward(model, feeds))]
    try:
        actual = run(open_session(network), feeds)
    except ConverterError as error:
        return f"does not run: {error}"
    for (name, array), tensor in zip(actual.items(), expected):
        distance = 0.0 if name in drawn else difference(tensor, array)
        if not distance <= tolerance(tensor):  # also true of NaN
            return f"differs from it by {distance:.1e} at output {name}"
    return None


def flat_outputs(output: object) -> list[torch.Tensor]:
    """Flatten the outputs of a model, in the order of the exported outputs."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        return flat_outputs(list(output.values()))
    if isinstance(output, Iterable):
        return [tensor for part in output for tensor in flat_outputs(part)]
    return []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of the exporter on the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
