"""Rounding as in int8 while a network learns, so that it learns to live with it.

Quantization-aware training with straight-through gradients (Jacob et al., arXiv 1712.05877, section
3) of what ``networks.quantize`` does to convolutions and products with weights: activations have
one scale a tensor, weights one an output channel, and what one linear step gives to another alone
has its components brought to the same range (``networks.even``), which is one scale a component.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from converter.quantization.channel_equalization import LARGEST_SCALE
from converter.runtime.ort_quantizer import saturates
from converter.training.losses import Run, Tensors

TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d, *TRANSPOSED)
PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
LEVELS = 255  # of activations
LARGEST, LARGEST_SATURATING = 127, 64  # weights
TINY = 1e-12


class Mark(NamedTuple):
    """Tells of a tensor which linear step gave it, by number, and of what kind that is."""

    step: int
    convolution: bool


def rounded(run: Run) -> Run:
    """Run a model with what its convolutions and linear layers take, and their weights, rounded.

    Layers that run inside one call of torch, as in ``nn.MultiheadAttention``, are not.
    """
    largest_weight = LARGEST_SATURATING if saturates() else LARGEST
    # Known after the first run: steps whose outputs others take, too, and components of the others.
    shared, given = set[int](), dict[int, torch.Tensor]()

    def rounding(inputs: Tensors) -> list[torch.Tensor]:
        mode = _Rounding(largest_weight, shared, given)
        with mode:
            outputs = run(inputs)
        mode.take(outputs)
        return outputs

    return rounding


class _Rounding(TorchFunctionMode):
    """Rounds what linear steps take, and follows what they give."""

    def __init__(
        self, largest_weight: int, shared: set[int], given: dict[int, torch.Tensor]
    ) -> None:
        super().__init__()
        self._largest_weight, self._shared, self._given = largest_weight, shared, given
        self._steps = 0
        self._taken: set[int] = set()

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
            found = func(*args, **options)
            if func is functional.batch_norm and not _trains(args, options):
                _set_mark(found, _mark(args[0]))  # it will be part of the step
            elif found is None or any(True for _ in _tensors([found])):  # not asked for its shape
                self.take([*args, *options.values()])
            return found
        x, weight, *rest = args
        convolution, transposed = func in CONVOLUTIONS, func in (*TRANSPOSED, *PRODUCTS)
        axis = x.ndim - weight.ndim + 1 if convolution else x.ndim - 1
        components = None
        if (feeder := self._feeder(x, convolution)) is not None:
            others = [a for a in range(x.ndim) if a != axis]
            largest = x.detach().abs().amax(others).float()
            components = largest.maximum(largest.max() / LARGEST_SCALE).clamp_min(TINY)
            self._given[feeder] = components
        self._steps += 1
        given = self._given.get(self._steps) if self._steps not in self._shared else None
        x = _round_input(x, components, axis)
        weight = _round_weight(weight, components, given, transposed, self._largest_weight)
        output = func(x, weight, *rest, **options)
        _set_mark(output, Mark(self._steps, convolution))
        return output

    def take(self, values: Sequence[Any]) -> None:
        """See that something other than a linear step takes what linear steps gave."""
        self._shared |= {mark.step for t in _tensors(values) if (mark := _mark(t))}

    def _feeder(self, x: torch.Tensor, convolution: bool) -> int | None:
        """Name the step of its kind that a linear step takes from, if nobody else does."""
        mark = _mark(x)
        if mark is None:
            return None
        if mark.step in self._taken:
            self._shared.add(mark.step)
        self._taken.add(mark.step)
        same = mark.convolution == convolution and (convolution or x.ndim == 2)
        return mark.step if same and mark.step not in self._shared else None


def _is_linear(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Tell whether a call is a convolution or a product of an input and weights."""
    if func not in PRODUCTS or len(args) < 2:
        return func in CONVOLUTIONS or func is functional.linear
    weight = args[1]
    own = isinstance(weight, nn.Parameter) or isinstance(weight._base, nn.Parameter)
    return own and weight.ndim == 2


def _trains(args: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Tell whether a call of ``batch_norm`` takes statistics of the batch."""
    return bool(args[5] if len(args) > 5 else options.get("training", False))


def _mark(x: torch.Tensor) -> Mark | None:
    return getattr(x, "linear_step", None)


def _set_mark(x: torch.Tensor, mark: Mark | None) -> None:
    x.linear_step = mark  # type: ignore[attr-defined]


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """List tensors, also those in sequences."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _round_input(x: torch.Tensor, components: torch.Tensor | None, axis: int) -> torch.Tensor:
    if components is not None:
        return _off(x, _along(components * (2 / LEVELS), axis, x.ndim))
    low, high = x.detach().aminmax()
    return _off(x, (high.clamp_min(0) - low.clamp_max(0)) / LEVELS)


def _round_weight(
    weight: torch.Tensor,
    taken: torch.Tensor | None,
    given: torch.Tensor | None,
    transposed: bool,
    largest: int,
) -> torch.Tensor:
    """Round weights, (O, I / groups, *k) or transposed (I, O / groups, *k), one scale an output.

    Where components are brought to one range, it is the weights that give them and take that back
    which are rounded: of those that take, the scale then differs from input to input, of those that
    give, between the outputs that share one, as the groups of transposed weights do.
    """
    with torch.no_grad():
        equalize = torch.ones((), device=weight.device)
        if taken is not None:
            equalize = _along(taken, 0, weight.ndim) if transposed else _grouped(taken, weight)
        if given is not None and transposed:
            equalize = equalize / _grouped(given, weight)
        output = 1 if transposed else 0
        others = [a for a in range(weight.ndim) if a != output]
        step = (weight * equalize).abs().amax(others, keepdim=True) / (largest * equalize)
    return _off(weight, step)


def _grouped(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Lay a vector along the second axis of weights, which may have groups along the first."""
    groups = len(scale) // weight.shape[1]
    each = scale.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
    return each.reshape(*each.shape, *(1,) * (weight.ndim - 2))


def _along(scale: torch.Tensor, axis: int, ndim: int) -> torch.Tensor:
    """Lay a vector along an axis."""
    return scale.reshape([-1 if n == axis else 1 for n in range(ndim)])


def _off(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Round to multiples of a step; the gradient passes."""
    with torch.no_grad():
        step = step.clamp_min(TINY).to(x.dtype)
        error = (x / step).round_().mul_(step).sub_(x)
    return x + error
