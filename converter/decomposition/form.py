"""``Form``: a way to write one ``Conv`` as a ``Chain``, with its shapes, ranks and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from converter.decomposition.conv import Chain, Conv, assemble
from converter.decomposition.problem import KernelProblem, SolverSettings, Tensor
from converter.errors import ConverterError

# Shares of the layer's multiply-accumulates (MACs) at which forms with a single rank are tried.
# Above the last, a chain loses more by its error than it gains in speed.
MACS_SHARES = (0.12, 0.25, 0.4, 0.6)
CHANNEL_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625)  # of the channels, for forms with several ranks
CHANNEL_MULTIPLIERS = (1, 2, 3)  # for forms whose rank counts per channel
MAX_MACS_SHARE = 0.8

Rank: TypeAlias = tuple[int, ...]
Shape: TypeAlias = tuple[int, ...]
Kernels: TypeAlias = list[tuple[np.ndarray, int]]  # kernel and groups of each step
ErrorAt: TypeAlias = Callable[[Rank], float]
Solve: TypeAlias = Callable[[KernelProblem, Rank, SolverSettings], Tensor]
RankPolicy: TypeAlias = "Callable[[Form, Conv, Sequence[int], int], Iterable[Rank]]"


def default_ranks(form: Form, conv: Conv, size: Sequence[int], block: int) -> Iterable[Rank]:
    """Choose ranks by shares of the layer's MACs or of its channels, from low to high.

    Args:
        form: Form of the chains.
        conv: Only the shape of its kernel counts.
        size: Spatial size of its input.
        block: Channels that the runtime computes together.
    """
    full, step = full_rank(form, conv), rank_step(conv, block)
    if form.per_channel:
        return [(m,) for m in CHANNEL_MULTIPLIERS if m < full[0]]
    if len(full) > 1:
        channels = form.reference_rank((conv.O, conv.I, *conv.k))
        multiples = [
            tuple(max(round(share * n / step), 1) * step for n in channels)
            for share in CHANNEL_SHARES
        ]
        return [fit_rank(tuple(map(min, rank, full)), form, conv) for rank in multiples]
    if conv.depthwise:
        return [(rank,) for rank in range(step, full[0], step)]
    return ranks_by_macs(form, conv, size, block, MACS_SHARES)


def ranks_by_macs(
    form: Form, conv: Conv, size: Sequence[int], block: int, shares: Sequence[float]
) -> list[Rank]:
    """Choose the ranks at which a chain has about these ``shares`` of the layer's MACs."""
    (full,), step = full_rank(form, conv), rank_step(conv, block)
    macs_per_rank = skeleton(conv, form, (conv.groups,)).macs(size) / conv.groups
    ranks = [max(round(s * conv.macs(size) / macs_per_rank / step), 1) * step for s in shares]
    return [(rank,) for rank in ranks if rank < full]


@dataclass(frozen=True)
class Form:
    """One way to write a kernel as a sequence of smaller ones.

    A form describes the kernel of one group, (O, I, *k). Groups, stride, padding, dilation and
    bias are not its concern: ``decompose`` deals with them for all forms.

    Attributes:
        name: Name on the command line and in plans.
        solve: (problem with target (O, I, *k), rank, settings) -> a decomposition.
        shapes: ((O, I, *k), rank) -> shapes of the steps' kernels, each with its groups.
        max_rank: (O, I, *k) -> the highest rank, at which the form is exact (but for lvh).
        to_kernels: (decomposition, (O, I, *k)) -> kernels of the steps with their groups; not
            needed where ``solve`` returns those.
        to_tensor: The reverse, from kernels to the decomposition.
        default: The rank used when the user names only the form, as text for ``parse_rank``.
        refuses: kernel size k -> the reason why the form does not apply, or None.
        reference_rank: (O, I, *k) of the whole layer -> the rank that 1.0 stands for.
        per_channel: Whether the rank counts per channel (lvh, decoupled), not over the layer.
        splits_depthwise: Whether the form splits a depthwise kernel over two or more axes.
        errors: kernel (O, I, *k) -> a function from rank to relative error, where that has a
            closed form (for tucker an upper bound), or None.
        solve_with_tensorly: The same as ``solve``, by tensorly alone; None where it cannot.
        warm_start: Whether a chain at a lower rank is a good start.
        rank_policy: Chooses the ranks worth timing, from low to high.
    """

    name: str
    solve: Solve
    shapes: Callable[[Shape, Rank], list[tuple[Shape, int]]]
    max_rank: Callable[[Shape], Rank]
    to_kernels: Callable[[Tensor, Shape], Kernels] = lambda tensor, shape: tensor
    to_tensor: Callable[[Kernels], Tensor] = lambda kernels: kernels
    default: str = "0.5"
    refuses: Callable[[tuple[int, ...]], str | None] = lambda k: None
    reference_rank: Callable[[Shape], Rank] = lambda shape: (shape[0],)
    per_channel: bool = False
    splits_depthwise: bool = False
    errors: Callable[[np.ndarray], ErrorAt] | None = None
    solve_with_tensorly: Solve | None = None
    warm_start: bool = False
    rank_policy: RankPolicy = default_ranks

    def ranks(self, conv: Conv, size: Sequence[int], block: int) -> list[Rank]:
        """List the ranks worth timing for ``conv``: those that save at least a fifth of its MACs.

        The arguments are those of ``default_ranks``.
        """
        if refusal(self, conv):
            return []
        full, max_macs = full_rank(self, conv), MAX_MACS_SHARE * conv.macs(size)
        return [
            rank
            for rank in dict.fromkeys(self.rank_policy(self, conv, size, block))
            if (rank != full or conv.depthwise)
            and skeleton(conv, self, rank).macs(size) <= max_macs
        ]


def refusal(form: Form, conv: Conv) -> str | None:
    """Return the reason why ``form`` cannot replace ``conv``, or None if it can."""
    if conv.depthwise and not form.splits_depthwise:
        return "it is depthwise and has no channels to separate"
    if conv.depthwise and sum(size > 1 for size in conv.k) < 2:
        return "it is depthwise and its kernel does not extend over two axes"
    return form.refuses(conv.k)


def full_rank(form: Form, conv: Conv) -> Rank:
    """Return the highest rank of ``form``, at which it reproduces ``conv`` (but for lvh)."""
    O, I = conv.kernel.shape[:2]
    per_group = form.max_rank((O // conv.groups, I, *conv.k))
    return per_group if form.per_channel else tuple(r * conv.groups for r in per_group)


def fit_rank(rank: Rank, form: Form, conv: Conv) -> Rank:
    """Return the nearest rank that fits ``conv``: a multiple of its groups, not above full."""
    unit = 1 if form.per_channel else conv.groups
    full = full_rank(form, conv)
    return tuple(min(max(round(r / unit), 1) * unit, limit) for r, limit in zip(rank, full))


def group_rank(form: Form, conv: Conv, rank: Rank) -> Rank:
    """Return the rank of one group.

    Raises:
        ConverterError: When ``form`` cannot stand in for ``conv``, or ``rank`` does not fit.
    """
    reason = refusal(form, conv)
    if reason:
        raise ConverterError(f"{form.name} cannot stand in for this convolution: {reason}.")
    full = full_rank(form, conv)
    if len(rank) != len(full) or any(not 1 <= r <= limit for r, limit in zip(rank, full)):
        raise ConverterError(
            f"Rank {show_rank(rank)} does not fit; {form.name} takes 1 to {show_rank(full)} here."
        )
    unit = 1 if form.per_channel else conv.groups
    if any(r % unit for r in rank):
        raise ConverterError(f"Rank {show_rank(rank)} must be a multiple of {unit} groups.")
    return tuple(r // unit for r in rank)


def rank_step(conv: Conv, block: int) -> int:
    """Return the step between ranks that fit the runtime's ``block`` and the groups.

    The steps of a depthwise convolution mix no channels, so that any multiple of its groups fits.
    """
    return conv.groups if conv.depthwise else math.lcm(block, conv.groups)


def skeleton(conv: Conv, form: Form, rank: Rank) -> Chain:
    """Return a chain of zeros with the shapes, and so the costs, of the one of ``decompose``."""
    rank = group_rank(form, conv, rank)
    shape = (conv.kernel.shape[0] // conv.groups, *conv.kernel.shape[1:])
    zero = np.zeros((), conv.kernel.dtype)
    return assemble(
        conv,
        [
            (np.broadcast_to(zero, (s[0] * conv.groups, *s[1:])), groups * conv.groups)
            for s, groups in form.shapes(shape, rank)
        ],
    )


def show_rank(rank: Rank) -> str:
    """Write a rank as the user would: ``16`` or ``16,32``."""
    return ",".join(map(str, rank))
