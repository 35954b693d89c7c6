"""``Conv``, one convolution as data, and ``Chain``, a sequence of convolutions that replaces it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter.decomposition.taps import compose_taps, merge_groups, swap_in_out
from converter.errors import ConverterError

BALANCING_SWEEPS = 12
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Conv:
    """One convolution over 1, 2 or 3 spatial axes, independent of any framework.

    With no spatial axis it is a linear layer: its kernel is (O, I), and ``size`` below is the size
    of its input's axes other than the channels.

    Attributes:
        kernel: (O, I/groups, *k), also for a transposed convolution (torch and ONNX store that
            as (I, O/groups, *k); ``taps.swap_in_out`` converts between the two). Any float type;
            arithmetic happens in float32 or float64.
        bias: (O,) or None.
        stride: One per axis.
        padding: (begin, end) per axis; a transposed convolution crops its output by it.
        dilation: One per axis.
        padding_mode: One of ``PADDING_MODES``.
        groups: Divides both I and O.
        transposed: Whether the convolution is transposed.
        output_padding: One per axis; used by transposed convolutions only.

    Raises:
        ConverterError: When the fields contradict each other.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        axes = self.kernel.ndim - 2
        if not 0 <= axes <= 3 or 0 in self.kernel.shape:
            raise ConverterError(f"A kernel of shape {self.kernel.shape} is not a convolution's.")
        if not len(self.stride) == len(self.padding) == len(self.dilation) == axes:
            raise ConverterError(
                f"Stride {self.stride}, padding {self.padding} and dilation {self.dilation} must "
                f"each have {axes} entries for a kernel of shape {self.kernel.shape}."
            )
        if any(len(pair) != 2 or min(pair) < 0 for pair in self.padding):
            raise ConverterError(
                f"Padding {self.padding} must be (begin, end) per axis, not below 0."
            )
        if self.output_padding and len(self.output_padding) != axes:
            raise ConverterError(f"Output padding {self.output_padding} must have {axes} entries.")
        if min((*self.stride, *self.dilation, self.groups)) < 1:
            raise ConverterError("Stride, dilation and groups must be at least 1.")
        if self.padding_mode not in PADDING_MODES:
            raise ConverterError(
                f"Padding mode {self.padding_mode!r} is unknown; use one of {PADDING_MODES}."
            )
        if self.kernel.shape[0] % self.groups:
            raise ConverterError(
                f"{self.groups} groups do not divide {self.kernel.shape[0]} filters."
            )
        if self.transposed and self.padding_mode != "zeros":
            raise ConverterError("A transposed convolution cuts its padding off; it has no mode.")
        if self.bias is not None and self.bias.shape != (self.O,):
            raise ConverterError(f"A bias of shape {self.bias.shape} must have shape ({self.O},).")

    @property
    def O(self) -> int:  # noqa: E743
        """Output channels."""
        return int(self.kernel.shape[0])

    @property
    def I(self) -> int:  # noqa: E743
        """Input channels."""
        return int(self.kernel.shape[1]) * self.groups

    @property
    def k(self) -> tuple[int, ...]:
        """Kernel size per axis."""
        return self.kernel.shape[2:]

    @property
    def pointwise(self) -> bool:
        """Whether each position is computed from that position alone."""
        return set(self.k) <= {1} and set(self.stride) <= {1} and not any(map(sum, self.padding))

    @property
    def depthwise(self) -> bool:
        """Whether each input channel is filtered by itself."""
        return self.groups == self.I > 1

    @property
    def params(self) -> int:
        """Number of weights, bias included."""
        return self.kernel.size + (0 if self.bias is None else self.bias.size)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial output size for a spatial input ``size``, one entry per axis."""
        if not self.k:
            return tuple(size)
        out = []
        for axis, n in enumerate(size):
            span = self.dilation[axis] * (self.k[axis] - 1)
            if self.transposed:
                extra = self.output_padding[axis] if self.output_padding else 0
                out.append((n - 1) * self.stride[axis] + span + 1 + extra - sum(self.padding[axis]))
            else:
                out.append((n + sum(self.padding[axis]) - span - 1) // self.stride[axis] + 1)
        return tuple(out)

    def macs(self, size: Sequence[int]) -> int:
        """Multiply-accumulates for one example of spatial input ``size``."""
        return self.kernel.size * math.prod(size if self.transposed else self.output_size(size))


@dataclass(frozen=True)
class Chain:
    """A sequence of convolutions that replaces one ``Conv``.

    Raises:
        ConverterError: When channels do not match, a step before the last has a bias, or a chain
            with a transposed step has a step that is neither transposed nor pointwise.
    """

    steps: tuple[Conv, ...]

    def __post_init__(self) -> None:
        """Check that each step takes as many channels as the one before it gives."""
        if not self.steps:
            raise ConverterError("A chain has at least one step.")
        if len({len(step.k) for step in self.steps}) > 1:
            raise ConverterError("The steps of a chain have the same number of spatial axes.")
        for before, after in zip(self.steps, self.steps[1:]):
            if before.O != after.I:
                raise ConverterError(f"A step gives {before.O} channels, the next takes {after.I}.")
            if before.bias is not None:
                raise ConverterError("Only the last step of a chain carries a bias.")
        plain = [step for step in self.steps if not step.transposed]
        if len(plain) < len(self.steps) and not all(step.pointwise for step in plain):
            raise ConverterError("Beside a transposed step the others are pointwise.")

    @property
    def params(self) -> int:
        """Number of weights, bias included."""
        return sum(step.params for step in self.steps)

    def macs(self, size: Sequence[int]) -> int:
        """Multiply-accumulates for one example of spatial input ``size``."""
        total = 0
        for step in self.steps:
            total += step.macs(size)
            size = step.output_size(size)
        return total

    def dense(self) -> Conv:
        """Compose the steps into the one convolution that they compute (in float64).

        The padding of the steps is added up. This is exact when each axis is padded at the first
        step that covers it, as in every form.
        """
        result = self.steps[0]
        for step in self.steps[1:]:
            result = _compose(result, step)
        return result

    def scaled(self, scale: np.ndarray) -> Chain:
        """Multiply the kernel, but not the bias, of each output channel by ``scale`` (O,)."""
        *head, last = self.steps
        kernel = last.kernel.astype(np.float64) * _column(scale, last.kernel.ndim)
        return Chain((*head, replace(last, kernel=kernel.astype(last.kernel.dtype))))

    def balanced(self) -> Chain:
        """Balance the weights between steps: equal norms on both sides of each inner channel.

        The chain computes the same function. The gradients of all steps are then of similar size,
        and so are the activations between them.
        """
        kernels = [step.kernel.astype(np.float64) for step in self.steps]
        groups = [step.groups for step in self.steps]
        for _ in range(BALANCING_SWEEPS if len(kernels) > 2 else 1):
            for n in range(len(kernels) - 1):
                before, after = kernels[n], swap_in_out(kernels[n + 1], groups[n + 1])
                axes = tuple(range(1, before.ndim))
                norms = [np.sqrt(np.square(a).sum(axes)) for a in (before, after)]
                usable = (norms[0] > 0) & (norms[1] > 0)
                scale = np.sqrt(np.divide(norms[1], norms[0], np.ones_like(norms[0]), where=usable))
                scale[~usable] = 1.0
                kernels[n] = before * _column(scale, before.ndim)
                kernels[n + 1] = swap_in_out(after / _column(scale, before.ndim), groups[n + 1])
        return Chain(
            tuple(
                replace(step, kernel=kernel.astype(step.kernel.dtype))
                for step, kernel in zip(self.steps, kernels)
            )
        )

    def with_bias(self, bias: np.ndarray | None) -> Chain:
        """Return the same chain with another ``bias`` (O,) on its last step."""
        *head, last = self.steps
        return Chain((*head, replace(last, bias=bias)))


def assemble(conv: Conv, kernels: Sequence[tuple[np.ndarray, int]]) -> Chain:
    """Give factor kernels the geometry of ``conv`` and make a chain of them.

    An axis is padded at the first step whose kernel covers it (at the first step if its size is
    1) and strided at the last; a transposed convolution is strided at the first and cropped at the
    last. All steps that cover the axis are dilated. The bias is on the last step. In the chain of
    a transposed convolution, the steps that cover no axis are ordinary pointwise convolutions. The
    kernels are cast to the type of ``conv``'s.

    Args:
        conv: The convolution that the chain replaces.
        kernels: (kernel (O, I/groups, *k), groups) of each step.
    """
    covering = [
        [n for n, (kernel, _) in enumerate(kernels) if kernel.shape[2 + axis] > 1] or [0]
        for axis in range(len(conv.k))
    ]
    steps = []
    for n, (kernel, groups) in enumerate(kernels):
        covered = [n in steps_of_axis for steps_of_axis in covering]
        begins, ends = ([steps_of_axis[at] == n for steps_of_axis in covering] for at in (0, -1))
        strided, padded = (begins, ends) if conv.transposed else (ends, begins)
        step = Conv(
            kernel=kernel.astype(conv.kernel.dtype, copy=False),
            bias=conv.bias if n == len(kernels) - 1 else None,
            stride=tuple(s if here else 1 for s, here in zip(conv.stride, strided)),
            padding=tuple(p if here else (0, 0) for p, here in zip(conv.padding, padded)),
            dilation=tuple(d if here else 1 for d, here in zip(conv.dilation, covered)),
            padding_mode=conv.padding_mode,
            groups=groups,
        )
        extra = tuple(e if here else 0 for e, here in zip(conv.output_padding, begins))
        if conv.transposed and not (step.pointwise and not any(extra)):
            step = replace(step, transposed=True, output_padding=extra)
        steps.append(step)
    return Chain(tuple(steps))


def _column(scale: np.ndarray, ndim: int) -> np.ndarray:
    return scale.reshape(-1, *[1] * (ndim - 1))


def _compose(first: Conv, second: Conv) -> Conv:
    """Compose two convolutions: taps t1 of the first, t2 of the second give tap d1 t1 + s1 d2 t2.

    If they are transposed, they give tap s2 d1 t1 + d2 t2. Here s is the stride and d the dilation.
    The result has the greatest common divisor of their groups.
    """
    groups = math.gcd(first.groups, second.groups)
    transposed, ones = first.transposed or second.transposed, (1,) * len(first.k)
    first_scale, second_scale = (second.stride, ones) if transposed else (ones, first.stride)
    kernel, dilation = compose_taps(
        merge_groups(first.kernel, first.groups, groups),
        merge_groups(second.kernel, second.groups, groups),
        near=[s * d for s, d in zip(first_scale, first.dilation)],
        far=[s * d for s, d in zip(second_scale, second.dilation)],
    )
    zeros = (0,) * len(first.k)
    extra = zip(first_scale, first.output_padding or zeros, second.output_padding or zeros)
    return Conv(
        kernel=kernel.reshape(-1, *kernel.shape[2:]),
        bias=second.bias,
        stride=tuple(x * y for x, y in zip(first.stride, second.stride)),
        padding=tuple(
            (near * p[0] + far * q[0], near * p[1] + far * q[1])
            for p, q, near, far in zip(first.padding, second.padding, first_scale, second_scale)
        ),
        dilation=dilation,
        padding_mode=first.padding_mode,
        groups=groups,
        transposed=transposed,
        output_padding=tuple(s * x + y for s, x, y in extra) if transposed else (),
    )
