"""Drafts: networks that are solved with little work, to find where a search should begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from converter.graph.survey import Layer
from converter.reconstruction.moments import patch_size
from converter.search.search_space import Assignment
from converter.search.trials import Built, Effort, Measures, Trial, build_trial, next_loss, walk

# Networks are built with little effort first. They lose DRAFT_EXCESS times as much then, more or
# less: one that uses more than DRAFT_USAGE of a limit would not keep the limit with all effort
# either. The first walk ends where a network is expected to use a share between DRAFT_ENDS.
DRAFT_EFFORT, DRAFT_EXCESS, DRAFT_USAGE = 0.25, 1.6, 1.5
MAX_DRAFTS, DRAFT_ENDS = 3, (0.75, 1.15)
MAX_DRAFT_SIZE = 2400  # entries of a patch of the widest convolution


def save_time(layers: Sequence[Layer]) -> bool:
    """Tell whether drafts take much less time than the networks themselves.

    The work on a wide layer hardly depends on the number of patches and steps.
    """
    sizes = [patch_size(layer.conv) for layer in layers if layer.conv is not None and layer.conv.k]
    return max(sizes, default=0) <= MAX_DRAFT_SIZE


def make_draft(
    propose: Callable[[float], Assignment | None],
    measures: Measures[Built],
    allowance: float,
    effort: Effort,
) -> Trial[Built] | None:
    """Look for the allowance at which to start, by networks that are built with little effort.

    Returns:
        The last network, with the allowance to start at; None if there is no network at all.
    """

    def measure(
        assignment: Assignment, allowance: float, last: Trial[Built] | None
    ) -> Trial[Built]:
        trial = build_trial(Trial(assignment, allowance), measures, last, DRAFT_EFFORT)
        expected = {option: used / DRAFT_EXCESS for option, used in trial.usage.items()}
        return replace(trial, usage=expected)

    def advance(trials: Sequence[Trial[Built]]) -> float | None:
        last = trials[-1]
        repeated = any(trial.assignment == last.assignment for trial in trials[:-1])
        if repeated or DRAFT_ENDS[0] <= last.worst <= DRAFT_ENDS[1]:
            return None
        return next_loss(trials, effort.aim.at)

    drafts = walk(propose, measure, advance, allowance, MAX_DRAFTS)
    if not drafts:
        return None
    return replace(drafts[-1], allowance=advance(drafts) or drafts[-1].allowance)
