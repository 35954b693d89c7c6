"""Fake quantization while a network trains, so that it adapts to int8.

Quantization-aware training with straight-through gradients (Jacob et al., arXiv 1712.05877, section
3). It imitates what ``quantization.quantize`` does to convolutions and products with weights:
activations have one scale per tensor, weights one per output channel. Between two linear steps that
nothing else uses, ``channel_equalization`` brings all channels to the same range, which amounts to
one scale per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from converter.quantization.channel_equalization import MAX_SCALE
from converter.runtime.ort_quantizer import saturates

TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d, *TRANSPOSED)
PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
ACTIVATION_LEVELS = 255
MAX_WEIGHT, MAX_WEIGHT_SATURATING = 127, 64
EPSILON = 1e-12

Tensors = Sequence[torch.Tensor]
Run = Callable[[Tensors], list[torch.Tensor]]  # runs a model: inputs -> outputs


class Origin(NamedTuple):
    """The linear step that gave a tensor: its number, and whether it is a convolution."""

    step: int
    convolution: bool


def fake_quantize(run: Run) -> Run:
    """Run a model with the inputs and weights of its convolutions and linear layers rounded.

    Layers that run inside one call of torch, as in ``nn.MultiheadAttention``, are not rounded.
    """
    max_weight = MAX_WEIGHT_SATURATING if saturates() else MAX_WEIGHT
    # The first run fills these: steps whose output other operations use, and, by step, the largest
    # values of each output channel of the other steps.
    shared, ranges = set[int](), dict[int, torch.Tensor]()

    def quantized_run(inputs: Tensors) -> list[torch.Tensor]:
        mode = _FakeQuantization(max_weight, shared, ranges)
        with mode:
            outputs = run(inputs)
        mode.mark_shared(outputs)
        return outputs

    return quantized_run


class _FakeQuantization(TorchFunctionMode):
    """Rounds the inputs of linear steps, and tracks which step gave a tensor."""

    def __init__(self, max_weight: int, shared: set[int], ranges: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self._max_weight, self._shared, self._ranges = max_weight, shared, ranges
        self._steps = 0
        self._used: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in (*CONVOLUTIONS, functional.linear):
            args = [*args, *(options.pop(n) for n in ("input", "weight")[len(args) :])]
        if not _is_linear(func, args):
            result = func(*args, **options)
            if func is functional.batch_norm and not _trains(args, options):
                _set_origin(result, _origin(args[0]))  # it will be folded into the step
            elif result is None or any(True for _ in _tensors([result])):  # not only a shape
                self.mark_shared([*args, *options.values()])
            return result
        x, weight, *rest = args
        convolution, transposed = func in CONVOLUTIONS, func in (*TRANSPOSED, *PRODUCTS)
        axis = x.ndim - weight.ndim + 1 if convolution else x.ndim - 1
        in_range = None
        if (source := self._only_source(x, convolution)) is not None:
            others = [a for a in range(x.ndim) if a != axis]
            largest = x.detach().abs().amax(others).float()
            in_range = largest.maximum(largest.max() / MAX_SCALE).clamp_min(EPSILON)
            self._ranges[source] = in_range
        self._steps += 1
        out_range = self._ranges.get(self._steps) if self._steps not in self._shared else None
        x = _round_input(x, in_range, axis)
        weight = _round_weight(weight, in_range, out_range, transposed, self._max_weight)
        output = func(x, weight, *rest, **options)
        _set_origin(output, Origin(self._steps, convolution))
        return output

    def mark_shared(self, values: Sequence[Any]) -> None:
        """Record that something other than a linear step uses the outputs of linear steps."""
        self._shared |= {origin.step for t in _tensors(values) if (origin := _origin(t))}

    def _only_source(self, x: torch.Tensor, convolution: bool) -> int | None:
        """Return the step that gave ``x``, if it is of the same kind and nothing else uses it."""
        origin = _origin(x)
        if origin is None:
            return None
        if origin.step in self._used:
            self._shared.add(origin.step)
        self._used.add(origin.step)
        same_kind = origin.convolution == convolution and (convolution or x.ndim == 2)
        return origin.step if same_kind and origin.step not in self._shared else None


def _is_linear(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether a call is a convolution or a product of an input and weights."""
    if func not in PRODUCTS or len(args) < 2:
        return func in CONVOLUTIONS or func is functional.linear
    weight = args[1]
    trained = isinstance(weight, nn.Parameter) or isinstance(weight._base, nn.Parameter)
    return trained and weight.ndim == 2


def _trains(args: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Whether a call of ``batch_norm`` uses the statistics of the batch."""
    return bool(args[5] if len(args) > 5 else options.get("training", False))


def _origin(x: torch.Tensor) -> Origin | None:
    return getattr(x, "linear_step", None)


def _set_origin(x: torch.Tensor, origin: Origin | None) -> None:
    x.linear_step = origin  # type: ignore[attr-defined]


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """List tensors, also those in sequences."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _round_input(x: torch.Tensor, in_range: torch.Tensor | None, axis: int) -> torch.Tensor:
    if in_range is not None:
        return _round(x, _along(in_range * (2 / ACTIVATION_LEVELS), axis, x.ndim))
    low, high = x.detach().aminmax()
    return _round(x, (high.clamp_min(0) - low.clamp_max(0)) / ACTIVATION_LEVELS)


def _round_weight(
    weight: torch.Tensor,
    in_range: torch.Tensor | None,
    out_range: torch.Tensor | None,
    transposed: bool,
    max_weight: int,
) -> torch.Tensor:
    """Round weights, (O, I / groups, *k) or transposed (I, O / groups, *k), one scale an output.

    With channel equalization, the equalized weights are rounded and the scaling is undone. The
    rounding step then differs from input to input, and between outputs that share a scale, as the
    groups of transposed weights do.

    Args:
        weight: The weights.
        in_range: Largest value of each input channel if the input is equalized; (I,) or None.
        out_range: The same of each output channel; (O,) or None.
        transposed: Whether the first axis is that of the inputs.
        max_weight: Largest integer.
    """
    with torch.no_grad():
        equalization = torch.ones((), device=weight.device)
        if in_range is not None:
            equalization = (
                _along(in_range, 0, weight.ndim) if transposed else _by_group(in_range, weight)
            )
        if out_range is not None and transposed:
            equalization = equalization / _by_group(out_range, weight)
        output = 1 if transposed else 0
        others = [a for a in range(weight.ndim) if a != output]
        largest = (weight * equalization).abs().amax(others, keepdim=True)
        step = largest / (max_weight * equalization)
    return _round(weight, step)


def _by_group(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Shape a vector along the second axis of weights that may have groups along the first."""
    groups = len(scale) // weight.shape[1]
    each = scale.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
    return each.reshape(*each.shape, *(1,) * (weight.ndim - 2))


def _along(scale: torch.Tensor, axis: int, ndim: int) -> torch.Tensor:
    """Shape a vector along an axis."""
    return scale.reshape([-1 if n == axis else 1 for n in range(ndim)])


def _round(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Round to multiples of a step; the gradient passes."""
    with torch.no_grad():
        step = step.clamp_min(EPSILON).to(x.dtype)
        error = (x / step).round_().mul_(step).sub_(x)
    return x + error
