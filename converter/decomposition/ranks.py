"""Which forms and ranks of a layer are worth timing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from converter.decomposition.conv import Conv
from converter.decomposition.form import Form, Rank, fit_rank, full_rank, refusal, skeleton
from converter.decomposition.forms import find_form

# Shares of the layer's multiply-accumulates that ranks are chosen for; more than the last, and
# what the shorter chain saves is not worth its error.
CP_SHARES = (0.04, 0.07, 0.11, 0.17, 0.25, 0.35, 0.5, 0.7)
CP_FORMS = ("flattened", "separable")
SHARES = (0.12, 0.25, 0.4, 0.6)
PAIR_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625)  # of the channels, for forms of two ranks
MOST_SHARE = 0.8
WINDOWS = (1, 2, 3)  # per input channel, of the form `decoupled`
LONG = 5  # from this kernel size on, 1-D filters save something over windows; both are tried


def ladder(conv: Conv, size: Sequence[int], block: int) -> list[tuple[str, Rank]]:
    """List forms and ranks worth timing, the ranks of a form from low to high.

    Args:
        conv: Of whose kernel only the shape counts.
        size: Spatial size of its input.
        block: Channels that the runtime computes together.
    """
    found = []
    for name in _forms(conv):
        form = find_form(name)
        if refusal(form, conv) is None:
            most = MOST_SHARE * conv.macs(size)
            full = full_rank(form, conv)
            for rank in dict.fromkeys(_ranks(form, conv, size, block)):
                cheaper = skeleton(conv, form, rank).macs(size) <= most
                if cheaper and (rank != full or conv.depthwise):
                    found.append((name, rank))
    return found


def unit(conv: Conv, block: int) -> int:
    """Give the step between ranks that fit the runtime's block and the groups."""
    return conv.groups if conv.depthwise else math.lcm(block, conv.groups)


def _forms(conv: Conv) -> list[str]:
    if conv.depthwise:
        return ["spatial"]
    if not conv.k or max(conv.k) == 1:
        return ["channel"]
    terms = CP_FORMS if _long(conv) else ("separable",)
    forms = [*terms, "spatial", "tucker", "channel"]
    return [*forms, "decoupled"] if max(conv.stride) > 1 else forms


def _long(conv: Conv) -> bool:
    return len(conv.k) > 1 and max(conv.k) >= LONG


def _ranks(form: Form, conv: Conv, size: Sequence[int], block: int) -> Iterator[Rank]:
    full, step = full_rank(form, conv), unit(conv, block)
    if form.per_channel:
        yield from ((m,) for m in WINDOWS if m < full[0])
    elif len(full) > 1:
        whole = form.whole((conv.O, conv.I, *conv.k))
        for share in PAIR_SHARES:
            wanted = tuple(max(round(share * n / step), 1) * step for n in whole)
            yield fit_rank(tuple(map(min, wanted, full)), form, conv)
    elif conv.depthwise:
        yield from ((rank,) for rank in range(step, full[0], step))
    else:
        each = skeleton(conv, form, (conv.groups,)).macs(size) / conv.groups
        shares: Sequence[float] = SHARES
        if form.name in CP_FORMS:  # of two such forms each is timed at every other rank
            shares = CP_SHARES[::2] if _long(conv) else CP_SHARES
        for share in shares:
            rank = max(round(share * conv.macs(size) / each / step), 1) * step
            if rank < full[0]:
                yield (rank,)
