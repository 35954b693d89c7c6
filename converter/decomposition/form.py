"""``Form``: a way to write one ``Conv`` as a ``Chain``, and what can be asked of any form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter.decomposition.conv import Chain, Conv, assemble
from converter.decomposition.metric import Metric
from converter.errors import ConverterError

LARGEST_RANK = 1_000_000
RIDGE = 1e-4  # of the mean power of the inputs of a chain's last step
Rank = tuple[int, ...]
Shape = tuple[int, ...]
Kernels = list[tuple[np.ndarray, int]]
ErrorAt = Callable[[Rank], float]


@dataclass(frozen=True)
class Setting:
    """What a kernel is solved under.

    Attributes:
        metric: What is close; None for the Frobenius norm.
        seed: Of the random part of a start.
        start: Kernels of the same form at a rank not above the one wanted, to start from.
        device: torch device of the iterative solvers.
        effort: Share of the usual work that an iterative solver may take.
    """

    metric: Metric | None = None
    seed: int = 0
    start: Kernels | None = None
    device: str = "cpu"
    effort: float = 1.0


Solve = Callable[[np.ndarray, Rank, Setting], Kernels]


@dataclass(frozen=True)
class Form:
    """One way to factor a kernel.

    Attributes:
        name: As the user writes it.
        solve: (kernel (O, I, *k), rank, setting) -> kernels of the steps with their groups.
        shapes: ((O, I, *k), rank) -> shapes of those kernels with their groups.
        max_rank: (O, I, *k) -> the highest rank, at which the form is exact (but for lvh).
        default: The rank used when the user names the form only, as text for ``parse_rank``.
        refuses: kernel size k -> why the form has nothing to offer for it, or None.
        whole: (O, I, *k) of the whole layer -> what the rank 1.0 means.
        per_channel: The rank counts per channel (lvh, decoupled), not over the whole layer.
        splits_depthwise: Whether the form splits a depthwise kernel over two or more axes.
        errors: kernel (O, I, *k) -> a function from rank to relative error, where that has a
            closed form (for tucker an upper bound); None where only solving tells.
    """

    name: str
    solve: Solve
    shapes: Callable[[Shape, Rank], list[tuple[Shape, int]]]
    max_rank: Callable[[Shape], Rank]
    default: str
    refuses: Callable[[tuple[int, ...]], str | None]
    whole: Callable[[Shape], Rank] = lambda shape: (shape[0],)
    per_channel: bool = False
    splits_depthwise: bool = False
    errors: Callable[[np.ndarray], ErrorAt] | None = None


def refusal(form: Form, conv: Conv) -> str | None:
    """Say why ``form`` cannot stand in for ``conv``, or None if it can."""
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


def parse_rank(text: str, form: Form, conv: Conv) -> Rank:
    """Turn what the user wrote into a rank, which need not fit ``conv``.

    ``16`` is an integer; ``1.0`` a fraction of O (for ``tucker`` of I and O, for ``decoupled``
    of the kernel's size); ``0.5,0.5`` or ``16,32`` a pair for ``tucker``, and for ``spatial`` of
    a kernel over three axes.

    Raises:
        ConverterError: When ``text`` is not a number (or a pair), or not above 0.
    """
    count = len(full_rank(form, conv))
    parts = text.split(",")
    if len(parts) == 1:
        parts = parts * count
    if len(parts) != count:
        raise ConverterError(f"Rank {text!r} has {len(parts)} parts; {form.name} takes {count}.")
    rank = []
    for part, size in zip(parts, form.whole((conv.O, conv.I, *conv.k))):
        try:
            value = int(part) if part.strip().lstrip("+-").isdigit() else float(part)
        except (ValueError, OverflowError):
            raise ConverterError(
                f"Rank {text!r} is not a number; write 16 or 0.5 (tucker: 0.5,0.5)."
            ) from None
        if not 0 < value < LARGEST_RANK:
            raise ConverterError(f"Rank {text[:20]!r} must be above 0 and below {LARGEST_RANK}.")
        rank.append(value if isinstance(value, int) else max(round(value * size), 1))
    return tuple(rank)


def fit_rank(rank: Rank, form: Form, conv: Conv) -> Rank:
    """Bring ``rank`` to the nearest that ``conv`` takes: a multiple of groups, not above full."""
    unit = 1 if form.per_channel else conv.groups
    full = full_rank(form, conv)
    return tuple(min(max(round(r / unit), 1) * unit, most) for r, most in zip(rank, full))


def rank_grid(form: Form, conv: Conv, block: int) -> list[Rank]:
    """List the ranks worth asking for: multiples of the runtime's ``block``, and the full one.

    The steps of a depthwise convolution mix no channels: any multiple of its groups will do.
    """
    unit = conv.groups if conv.depthwise else math.lcm(block, conv.groups)
    unit = 1 if form.per_channel else unit
    axes = [[*range(unit, most, unit), most] for most in full_rank(form, conv)]
    return list(itertools.product(*axes))


def skeleton(conv: Conv, form: Form, rank: Rank) -> Chain:
    """Give the chain that ``decompose`` would, with zeros for weights: its shapes and its cost."""
    rank = _group_rank(conv, form, rank)
    shape = (conv.kernel.shape[0] // conv.groups, *conv.kernel.shape[1:])
    zero = np.zeros((), conv.kernel.dtype)
    return assemble(
        conv,
        [
            (np.broadcast_to(zero, (s[0] * conv.groups, *s[1:])), groups * conv.groups)
            for s, groups in form.shapes(shape, rank)
        ],
    )


def estimate_errors(conv: Conv, form: Form) -> ErrorAt | None:
    """Give the relative Frobenius error of ``conv`` as a function of the rank, if it is cheap."""
    if form.errors is None:
        return None
    parts = np.split(conv.kernel.astype(np.float64), conv.groups)
    curves = [form.errors(part) for part in parts]
    power = np.array([np.sum(part**2) for part in parts])
    weights = power / max(power.sum(), np.finfo(np.float64).tiny)

    def error_at(rank: Rank) -> float:
        rank = _group_rank(conv, form, rank)
        return math.sqrt(sum(w * curve(rank) ** 2 for w, curve in zip(weights, curves)))

    return error_at


def decompose(
    conv: Conv,
    form: Form,
    rank: Rank,
    seed: int = 0,
    metrics: Sequence[Metric] | None = None,
    start: Chain | None = None,
    device: str = "cpu",
    effort: float = 1.0,
) -> Chain:
    """Write ``conv`` as a chain of ``form`` at ``rank``, each group by itself.

    Solved in float64 or float32, the last step in float64; the chain's kernels have the type of
    ``conv``'s.

    Args:
        conv: What the chain stands in for.
        form: Of the chain.
        rank: Over all groups.
        seed: Of the solvers.
        metrics: One for each group; the Frobenius norm if left out.
        start: A chain of the same form at a rank not above ``rank``, which the CP forms improve;
            the others make no use of it.
        device: torch device of the iterative solvers.
        effort: Share of the usual work that an iterative solver may take.

    Raises:
        ConverterError: When the form cannot stand in for ``conv``, or the rank does not fit.
    """
    per_group = _group_rank(conv, form, rank)
    parts = np.split(conv.kernel.astype(np.float64), conv.groups)
    each: Sequence[Metric | None] = [None] * conv.groups if metrics is None else metrics
    starts = [None] * conv.groups if start is None else _group_kernels(conv, start)
    solved = [
        form.solve(part, per_group, Setting(metric, seed, begin, device, effort))
        for part, metric, begin in zip(parts, each, starts, strict=True)
    ]
    chain = assemble(
        conv,
        [
            (np.concatenate([kernel for kernel, _ in step]), step[0][1] * conv.groups)
            for step in zip(*solved)
        ],
    )
    exact = len(chain.steps) == 1
    return chain if metrics is None or exact else refit(conv, chain, metrics)


def path(
    conv: Conv,
    form: Form,
    ranks: Sequence[Rank],
    seed: int = 0,
    metrics: Sequence[Metric] | None = None,
    device: str = "cpu",
    effort: float = 1.0,
) -> dict[Rank, Chain]:
    """Solve many ranks of one convolution, each from the one below.

    For the CP forms the error never rises with the rank (but for a ridge of 1e-6), and each rank
    costs a few steps.

    Args:
        conv: What the chains stand in for.
        form: Of the chains.
        ranks: In any order.
        seed: Of the solvers.
        metrics: One for each group; the Frobenius norm if left out.
        device: torch device of the iterative solvers.
        effort: Share of the usual work that an iterative solver may take.
    """
    chains: dict[Rank, Chain] = {}
    start = None
    for rank in sorted(set(ranks), key=lambda r: (sum(r), r)):
        start = decompose(conv, form, rank, seed, metrics, start, device, effort)
        chains[rank] = start
    return chains


def _group_kernels(conv: Conv, chain: Chain) -> list[Kernels]:
    """Split a chain that ``decompose`` gave into the kernels of each group."""
    steps = [
        [(part, step.groups // conv.groups) for part in np.split(step.kernel, conv.groups)]
        for step in chain.steps
    ]
    return [list(kernels) for kernels in zip(*steps)]


def _group_rank(conv: Conv, form: Form, rank: Rank) -> Rank:
    """Check that ``form`` takes ``rank`` for ``conv``, and give the rank of one group."""
    reason = refusal(form, conv)
    if reason:
        raise ConverterError(f"{form.name} cannot stand in for this convolution: {reason}.")
    full = full_rank(form, conv)
    if len(rank) != len(full) or any(not 1 <= r <= most for r, most in zip(rank, full)):
        raise ConverterError(
            f"Rank {show_rank(rank)} does not fit; {form.name} takes 1 to {show_rank(full)} here."
        )
    unit = 1 if form.per_channel else conv.groups
    if any(r % unit for r in rank):
        raise ConverterError(f"Rank {show_rank(rank)} must be a multiple of {unit} groups.")
    return tuple(r // unit for r in rank)


def refit(conv: Conv, chain: Chain, metrics: Sequence[Metric]) -> Chain:
    """Solve the last step of a chain again, for what the layer really sees.

    With the steps before it fixed, the dense kernel is linear in the last step, W' = C B, so that
    the least E|(W - C B) x|^2 has the closed form C = W S B^T (B S B^T)^-1 with S = E[x x^T] (the
    response reconstruction of arXiv 1505.06798, for every form). What the sample does not
    determine stays as it was, so that the error never rises. A depthwise last step is solved
    filter by filter.

    Args:
        conv: What the chain stands in for.
        chain: Of any form.
        metrics: One for each group.
    """
    *head, last = chain.steps
    features = last_features(chain)
    filters = features.shape[1]
    per_group = last.groups // conv.groups  # groups of the last step in one of the convolution's
    before = last.kernel.astype(np.float64).reshape(last.groups, -1, filters)
    rest = conv.kernel.astype(np.float64).reshape(last.groups, -1, features.shape[2])
    rest = rest - before @ features
    solved = []
    for group in range(last.groups):
        metric, B = metrics[group // per_group], features[group]
        BS = metric.times(B)
        gram = BS @ B.T
        ridge = max(RIDGE * np.trace(gram) / filters, np.finfo(np.float64).tiny)
        gram[np.diag_indices(filters)] += ridge
        change = np.linalg.solve(gram, BS @ rest[group].T).T
        solved.append(before[group] + change)
    kernel = np.concatenate(solved).reshape(last.kernel.shape).astype(last.kernel.dtype)
    return Chain((*head, replace(last, kernel=kernel)))


def last_features(chain: Chain) -> np.ndarray:
    """Give B (groups, filters, n) of the last step: the patterns that its weights multiply.

    ``filters`` are the weights of one of its filters; a group's dense kernel is C B, with C
    (O/groups, filters) the group's weights.
    """
    *head, last = chain.steps
    filters = last.kernel.shape[1] * math.prod(last.k)
    taps = np.eye(filters).reshape(filters, last.kernel.shape[1], *last.k)
    probe = replace(last, kernel=np.tile(taps, (last.groups, *[1] * (taps.ndim - 1))), bias=None)
    return Chain((*head, probe)).dense().kernel.reshape(last.groups, filters, -1)


def relative_error(conv: Conv, chain: Chain, metrics: Sequence[Metric] | None = None) -> float:
    """Relative error of the chain's dense kernel: Frobenius, or of the responses under metrics.

    Args:
        conv: What the chain stands in for.
        chain: Of any form.
        metrics: One for each group, or None.
    """
    kernel = conv.kernel.astype(np.float64)
    rest = chain.dense().kernel.reshape(kernel.shape) - kernel
    error, norm = (_norm(array, conv.groups, metrics) for array in (rest, kernel))
    return error / norm if norm else error


def _norm(kernel: np.ndarray, groups: int, metrics: Sequence[Metric] | None) -> float:
    if metrics is None:
        return float(np.linalg.norm(kernel))
    parts = np.split(kernel, groups)
    return math.sqrt(sum(metric.square(part) for metric, part in zip(metrics, parts, strict=True)))


def cancellation(chain: Chain) -> float:
    """Say how much larger the terms of a chain are than what they add up to, in norm.

    About 1 where terms are independent; many times more where they are degenerate, that is,
    large and nearly opposite (de Silva and Lim 2008).
    """
    squares = Chain(tuple(replace(s, kernel=np.square(s.kernel), bias=None) for s in chain.steps))
    whole = float(np.square(chain.dense().kernel).sum())
    return math.sqrt(float(squares.dense().kernel.sum()) / (whole or 1.0))


def show_rank(rank: Rank) -> str:
    """Write a rank as the user would: ``16`` or ``16,32``."""
    return ",".join(map(str, rank))
