"""What could stand in for a layer: form, rank, error and cost, as data."""

from __future__ import annotations

from dataclasses import dataclass

from converter.decomposition.approximation import estimate_errors
from converter.decomposition.form import Rank, full_rank, refusal, skeleton
from converter.decomposition.forms import FORMS
from converter.decomposition.ranks import all_ranks
from converter.graph.survey import Layer

BLOCK = 16  # channels that onnxruntime computes together on x86 with AVX-512


@dataclass(frozen=True)
class Candidate:
    """A layer in another form: its relative weight error (a bound for tucker) and its cost."""

    layer: str
    form: str
    rank: Rank
    rel_error: float
    params: int
    macs: int


def candidates(layer: Layer, max_error: float) -> list[Candidate]:
    """List, per form whose error has a closed form, the candidates worth choosing from.

    These have a relative error of at most ``max_error``, and no smaller rank of the same form
    has; they are sorted by MACs.
    """
    conv = layer.conv
    if conv is None or layer.reason:
        return []
    found = []
    for form in FORMS.values():
        error_at = None if refusal(form, conv) else estimate_errors(conv, form)
        if error_at is None:
            continue
        fitting = [r for r in all_ranks(form, conv, BLOCK) if error_at(r) <= max_error]
        for rank in _smallest(fitting, full_rank(form, conv)):
            chain = skeleton(conv, form, rank)
            found.append(
                Candidate(
                    layer.name,
                    form.name,
                    rank,
                    error_at(rank),
                    chain.params,
                    chain.macs(layer.size),
                )
            )
    return sorted(found, key=lambda candidate: candidate.macs)


def _smallest(ranks: list[Rank], full: Rank) -> list[Rank]:
    """Keep, for each value of the first entry, the smallest of the rest; the full rank is out."""
    best: dict[tuple[int, ...], Rank] = {}
    for rank in sorted(ranks):
        if rank != full:
            best.setdefault(rank[: len(rank) - 1], rank)
    return list(best.values())
