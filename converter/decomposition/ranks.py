"""Ranks: read from text, listed for a layer, and chosen for timing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from converter.decomposition.conv import Conv
from converter.decomposition.form import Form, Rank, full_rank, rank_step
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError

RANK_LIMIT = 1_000_000


def rank_grid(conv: Conv, size: Sequence[int], block: int) -> list[tuple[str, Rank]]:
    """List the forms and ranks worth timing, as ``Form.ranks`` does for each form."""
    return [(form.name, rank) for form in FORMS.values() for rank in form.ranks(conv, size, block)]


def all_ranks(form: Form, conv: Conv, block: int) -> list[Rank]:
    """List all ranks that are multiples of the runtime's ``block``, and the full rank."""
    step = 1 if form.per_channel else rank_step(conv, block)
    axes = [[*range(step, full, step), full] for full in full_rank(form, conv)]
    return list(itertools.product(*axes))


def parse_rank(text: str, form: Form, conv: Conv) -> Rank:
    """Read a rank from text; it need not fit ``conv``.

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
    for part, reference in zip(parts, form.reference_rank((conv.O, conv.I, *conv.k))):
        try:
            value = int(part) if part.strip().lstrip("+-").isdigit() else float(part)
        except (ValueError, OverflowError):
            raise ConverterError(
                f"Rank {text!r} is not a number; write 16 or 0.5 (tucker: 0.5,0.5)."
            ) from None
        if not 0 < value < RANK_LIMIT:
            raise ConverterError(f"Rank {text[:20]!r} must be above 0 and below {RANK_LIMIT}.")
        rank.append(value if isinstance(value, int) else max(round(value * reference), 1))
    return tuple(rank)
