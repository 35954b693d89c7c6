"""The verification of a conversion: race, scores, budgets, and notes to the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from torch import nn

from converter.data.data import Data
from converter.evaluation.compare import Conditions, Evaluate, compare_models
from converter.evaluation.comparison import Comparison, verdict
from converter.evaluation.status import Status, status_of
from converter.evaluation.tasks.task import Task
from converter.evaluation.verdict import Estimate, Unseen, Verdict, combined, estimate
from converter.processes import Resources
from converter.quantization.int8 import Int8
from converter.report.layers import LayerRow
from converter.search.budgets import Budget
from converter.search.misses import missed_sentence, undecided_sentence, verdict_of
from converter.search.plan import Plan
from converter.search.result import SearchResult


@dataclass(frozen=True)
class ConvertedModel:
    """A converted network before it is measured.

    Attributes:
        search: The plan, and the tables it was chosen by.
        network: The converted network.
        module: The converted torch model, or None for an ONNX input.
        rows: Every layer before and after.
        int8: The converted network in int8, or None.
        status: Status of the checks, the search and the training.
        proven: Whether the held-out training inputs show that ``--max-drop`` is kept.
    """

    search: SearchResult
    network: ir.Model
    module: nn.Module | None
    rows: tuple[LayerRow, ...]
    int8: Int8 | None = None
    status: Status = field(default_factory=Status)
    proven: bool = False

    @property
    def plan(self) -> Plan:
        """Form and rank of each layer."""
        return self.search.plan


@dataclass(frozen=True)
class Verified:
    """A converted network and its measurements.

    Attributes:
        converted: The converted network.
        comparison: Comparison of the original and the converted network, and of both in int8 if
            requested.
        int8: The original and the converted network in int8; empty if not requested.
        frontier: Comparison of networks for other budgets, or None.
        unseen: The loss of the network that ships, from all inputs that no layer was fit to.
        verdict: Whether the budgets are kept; None without budgets.
        warnings: Sentences on the inputs and the measurements that the user should read.
        status: Whether every check and budget was met, or a note to the user.
    """

    converted: ConvertedModel
    comparison: Comparison
    int8: tuple[ir.Model, ...]
    frontier: Comparison | None
    unseen: Unseen
    verdict: Verdict | None
    warnings: tuple[str, ...]
    status: Status


@dataclass(frozen=True)
class Scoring:
    """The data and the measure by which networks are scored.

    Attributes:
        data: Inputs, labelled for accuracy; None for random inputs.
        evaluate: The user's own measure, or None.
        tasks: What the outputs mean.
        warnings: Sentences on the inputs that the user should read.
        calibrated: Whether layers were solved for sample inputs.
        unseen: Whether no layer was fit to ``data``, and no training saw them.
        held_out: Whether ``data`` contain the inputs on which the search estimated the loss.
    """

    data: Data | None
    evaluate: Evaluate | None
    tasks: tuple[Task, ...]
    warnings: tuple[str, ...]
    calibrated: bool
    unseen: bool
    held_out: bool


def verify(
    original: ir.Model,
    converted: ConvertedModel,
    scoring: Scoring,
    conditions: Conditions,
    resources: Resources,
    original_int8: Callable[[], ir.Model],
) -> Verified:
    """Race the original and the converted network, and score them.

    With int8, four networks race, and the budgets hold for the last. The original in int8 is the
    baseline; it has layers in floating point if the budget needs them.

    Args:
        original: The network from the user, or exported from the torch model.
        converted: The converted network.
        scoring: Data or the user's measure.
        conditions: Runtime and input shapes.
        resources: Seed and progress.
        original_int8: Quantizes the original; called if the converted network is quantized.
    """
    networks = {"original": original, "converted": converted.network}
    if converted.int8 is not None:
        networks |= {"original, int8": original_int8(), "converted, int8": converted.int8.network}
    data, evaluate = scoring.data, scoring.evaluate
    comparison = compare_models(networks, conditions, resources, data, evaluate, scoring.tasks)
    frontier = None
    if converted.search.frontier:
        points = {"original": original, **converted.search.frontier}
        at_first_shape = Conditions(
            conditions.runtime, conditions.shapes, batch_size=conditions.batch_size
        )
        frontier = compare_models(points, at_first_shape, resources, data, evaluate, scoring.tasks)
    unseen = unseen_loss(converted, comparison, scoring)
    table = converted.search.table
    converted = replace(converted, status=_before_race(converted, comparison, unseen))
    status = _status(converted, comparison, unseen, scoring.calibrated)
    return Verified(
        converted=converted,
        comparison=comparison,
        int8=tuple(networks.values())[2:],
        frontier=frontier,
        unseen=unseen,
        verdict=_verdict(converted, status, comparison, unseen),
        warnings=(
            *scoring.warnings,
            *(table.warnings if table else ()),
            *(converted.int8.notes if converted.int8 else ()),
        ),
        status=status,
    )


def unseen_loss(converted: ConvertedModel, comparison: Comparison, scoring: Scoring) -> Unseen:
    """Estimate the loss of the network that ships, only from inputs that no layer was fit to."""
    shipped, accuracy = comparison.shipped, converted.search.accuracy
    if not converted.plan.chosen() and converted.int8 is None:
        return Unseen(Estimate(0.0, 0.0, comparison.examples), 0.0, accuracy)
    searched = converted.search.loss
    scored = None
    if scoring.data is not None and scoring.unseen:  # random numbers say nothing
        scored = estimate(shipped.judgement, comparison.examples)
    error = searched.output_error if searched else None
    if scored is not None:
        error = shipped.rel_output_error
    if scoring.evaluate is not None:
        scored = Estimate(shipped.drop_points.median / 100, 0.0, comparison.examples)
        return Unseen(scored, error, accuracy)
    if searched is None or (scored is not None and scoring.held_out):
        return Unseen(scored, error, accuracy)
    if scored is None:
        return Unseen(searched.estimate, error, accuracy)
    both = (scored, searched.estimate)
    # Of several outputs, the two may be about different ones.
    one_loss = len(scoring.tasks) == 1
    lost = combined(both) if one_loss else max(both, key=lambda each: each.high)
    return Unseen(lost, error, accuracy)


def _before_race(converted: ConvertedModel, comparison: Comparison, unseen: Unseen) -> Status:
    """Return the status of checks, search and training; a miss is forgiven if nothing changed.

    The search says which budget its best network misses. If all of its layers were reverted, the
    original ships, and only what is measured of that counts.
    """
    status, budgets = converted.status, measured_budgets(converted, unseen)
    if status.code == "missed" and not converted.plan.chosen() and converted.int8 is None:
        measured = verdict_of(budgets, comparison.original, comparison.shipped, unseen)
        return Status("met", status.sentence) if measured == "kept" else status
    return status


def _verdict(
    converted: ConvertedModel, status: Status, comparison: Comparison, unseen: Unseen
) -> Verdict | None:
    """Return the verdict on the budgets; a failed check misses them."""
    if status.code in ("unsound", "missed"):
        return "missed"
    budgets = measured_budgets(converted, unseen)
    verdict = verdict_of(budgets, comparison.original, comparison.shipped, unseen)
    if verdict is None and converted.search.budgets:
        verdict = "kept"  # the held-out training inputs say so
    return "undecided" if verdict == "kept" and status.code == "unproven" else verdict


def measured_budgets(converted: ConvertedModel, unseen: Unseen) -> list[Budget]:
    """Return the budgets that the measurements decide: all, or all but what training has proven."""
    skip = unseen.lost is None and converted.proven
    return [b for b in converted.search.budgets if not (skip and b.option == "max_drop")]


def _status(
    converted: ConvertedModel, comparison: Comparison, unseen: Unseen, calibrated: bool
) -> Status:
    """Combine checks, budgets and the note to the user; the most severe comes first."""
    budgets = measured_budgets(converted, unseen)
    missed = missed_sentence(
        budgets, comparison.original, comparison.shipped, unseen, comparison.data
    )
    note = notice(comparison, converted.plan, calibrated)
    undecided = undecided_sentence(budgets, comparison.original, comparison.shipped, unseen)
    status = converted.status
    found = status.sentence if status.met else None
    note = " ".join(filter(None, (found, undecided, note))) or None
    if (
        status.code == "unproven" and unseen.lost is not None
    ):  # a measured loss replaces the estimate
        status = status_of("missed", missed)
    else:
        status = status.then(status_of("missed", missed))
    if not status.met and note and not converted.plan.chosen():
        return Status(status.code, f"{status.sentence} {note}")
    return status if not status.met else Status("met", note)


def notice(comparison: Comparison, plan: Plan, calibrated: bool) -> str | None:
    """Note that no layer was converted, that the result is not faster, or that data is missing."""
    if not plan.chosen():
        reasons = sorted({c.reason for c in plan.choices if c.reason})
        why = "; ".join(reasons[:3]) or "there is no convolution"
        return f"No layer was converted: {why}."
    before_int8, after_int8 = comparison.original_int8, comparison.converted_int8
    if comparison.gain.low <= 1:
        baseline = " than the original's int8" if before_int8 else ""
        return (
            f"The network is not faster in onnxruntime{baseline} ({verdict(comparison.gain)}); the "
            "chosen forms were kept."
        )
    in_float = comparison.converted.speedup
    if after_int8 is not None and after_int8.speedup.high < in_float.low:
        return (
            f"In int8 the converted network is slower here ({after_int8.speedup.median:.2f} times "
            f"as fast as the original) than in floating point ({in_float.median:.2f} times); "
            "take model.onnx."
        )
    if not calibrated:
        return "Layers were solved for their weights alone; give sample inputs with --calib."
    return None


def is_slower(verified: Verified) -> bool:
    """Tell whether a sound network with converted layers is not measurably faster."""
    converted = verified.converted
    sound = converted.status.code != "unsound"
    return bool(converted.plan.chosen()) and sound and verified.comparison.gain.low <= 1
