"""``decompose`` for Python callers: from an array to tensorly's factors and a chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import tensorly as tl
import torch

from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose as decompose_conv
from converter.decomposition.decompose import group_kernels
from converter.decomposition.form import fit_rank
from converter.decomposition.forms import find_form
from converter.decomposition.metric import Metric
from converter.decomposition.problem import SolverName, SolverSettings, Tensor
from converter.decomposition.ranks import parse_rank
from converter.errors import ConverterError
from converter.options import with_python_names

Kernel: TypeAlias = "np.ndarray | torch.Tensor | Conv"
AnyMetric: TypeAlias = (
    "Metric | np.ndarray | torch.Tensor | Sequence[Metric | np.ndarray | torch.Tensor]"
)


@dataclass(frozen=True)
class Decomposition:
    """A kernel written in a form.

    Attributes:
        tensor: The kernel of the chain, (O, I, *k), as a tensor of tensorly's: a ``CPTensor``
            over (O, I, *k) without axes of size 1 for ``flattened`` and ``lvh``, over (O, I, K)
            for ``separable`` and ``decoupled``, and over (O, I K) for ``channel``; a
            ``TuckerTensor`` over (O, I, K) for ``tucker``; a ``TTTensor`` for ``spatial``, over
            (I Kh, Kw O). For ``lvh2`` a pair of ``CPTensor``, the stages; for ``dense`` the
            kernel. Of a convolution in groups, a tuple of these, one for each group.
        chain: The convolutions that stand in for the kernel.
        rel_error: |W' - W| / |W|, under the metric if there is one.
    """

    tensor: Tensor
    chain: Chain
    rel_error: float


@with_python_names
def decompose(
    kernel: Kernel,
    form: str,
    rank: int | float | tuple[int | float, ...],
    *,
    solver: SolverName = "flatconv",
    metric: AnyMetric | None = None,
    seed: int = 0,
) -> Decomposition:
    """Write a convolution's kernel in a form.

    Args:
        kernel: (O, I, *k), of a convolution with stride 1 and no padding; or a ``Conv``, which
            has groups, stride, padding and a bias besides.
        form: Name of the form, one of ``FORMS``.
        rank: An integer, or a fraction of the number of channels; a pair for ``tucker``. A
            fraction is brought to the nearest rank that fits.
        solver: ``flatconv``, ``tensorly``, or ``tensorly+refine``.
        metric: Second moments (n, n) of the input patches, n = I K with the channels first, or a
            ``Metric``; a sequence of these, one for each group. The Frobenius norm if None.
        seed: Seed of the solver. The same seed gives the same bytes.

    Raises:
        ConverterError: When the kernel, the metric or the rank does not fit, or the solver does
            not know the form.
    """
    conv, registered = _conv(kernel), find_form(form)
    entries = rank if isinstance(rank, tuple) else (rank,)
    parsed_rank = parse_rank(",".join(map(str, entries)), registered, conv)
    if any(isinstance(entry, float) for entry in entries):
        parsed_rank = fit_rank(parsed_rank, registered, conv)
    metrics = _metrics(conv, metric)
    settings = SolverSettings(solver, seed)
    try:
        chain = decompose_conv(conv, registered, parsed_rank, settings, metrics=metrics)
    except np.linalg.LinAlgError as error:
        raise ConverterError(f"The kernel cannot be solved under this metric: {error}.") from None
    with tl.backend_context("numpy"):
        tensors = tuple(registered.to_tensor(part) for part in group_kernels(chain, conv.groups))
    tensor = tensors if conv.groups > 1 else tensors[0]
    return Decomposition(tensor, chain, relative_error(conv, chain, metrics))


def _conv(kernel: Kernel) -> Conv:
    if isinstance(kernel, Conv):
        conv = kernel
    else:
        if isinstance(kernel, torch.Tensor):
            kernel = kernel.detach().cpu()
            kernel = (kernel.float() if kernel.dtype == torch.bfloat16 else kernel).numpy()
        array = _array(kernel, "kernel")
        axes = array.ndim - 2
        conv = Conv(array, None, (1,) * axes, ((0, 0),) * axes, (1,) * axes)
    if conv.kernel.dtype.kind not in "fV":  # V: bfloat16
        raise ConverterError(f"A kernel of type {conv.kernel.dtype} must be of a float type.")
    if not np.isfinite(conv.kernel).all():
        raise ConverterError("The kernel has values that are not finite.")
    return conv


def _array(values: object, what: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # ragged lists, types that numpy lacks
        raise ConverterError(f"The {what} must be an array of numbers.") from None


def _metrics(conv: Conv, metric: AnyMetric | None) -> list[Metric] | None:
    """Make a metric for each group from the argument of ``decompose``."""
    if metric is None:
        return None
    metrics = list(metric) if isinstance(metric, list | tuple) else [metric]
    if len(metrics) != conv.groups:
        raise ConverterError(f"{len(metrics)} metrics do not fit {conv.groups} groups.")
    return [_metric(conv, group_metric) for group_metric in metrics]


def _metric(conv: Conv, metric: object) -> Metric:
    """Make a metric of one group, after a check that it has one row for each entry of a filter."""
    I, n = conv.kernel.shape[1], conv.kernel[0].size
    if isinstance(metric, Metric):
        shape = (len(metric.channels), len(metric.window))
        if shape != (I, n // I):
            raise ConverterError(
                f"A metric of {shape[0]} channels and {shape[1]} positions does not fit a kernel "
                f"of shape {conv.kernel.shape}."
            )
        return metric
    moments = _array(metric, "metric")
    if moments.shape != (n, n) or moments.dtype.kind not in "fiu" or not np.isfinite(moments).all():
        raise ConverterError(
            f"Second moments of shape {moments.shape} must be finite and of shape {(n, n)}."
        )
    return Metric.of(moments, I)
