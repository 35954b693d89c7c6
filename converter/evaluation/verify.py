"""The proof of a conversion: race, scores, budgets, and what the user should know."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from torch import nn

from converter.evaluation.compare import Comparison, Evaluate, Progress, compare_models, verdict
from converter.evaluation.loss import LossEstimator
from converter.graph.external import release_mapped
from converter.graph.network import inputs
from converter.models.source import Source
from converter.options import Options
from converter.quantization.int8 import calibration_data, quantize_within
from converter.report.report import LayerRow, Report
from converter.report.result import Result
from converter.search.plan import Plan

RANKING_EXAMPLES = 32  # on which layers are ranked by the error that int8 of each causes


def as_int8(
    network: ir.Model,
    source: Source,
    options: Options,
    usage: Callable[[ir.Model], float] | None = None,
) -> ir.Model:
    """Quantize a version of a network with the sample inputs of ``source``.

    Raises:
        ConverterError: When onnxruntime cannot quantize the network.
    """
    samples = source.calib or source.train
    assert samples is not None
    data = calibration_data(network, samples, options.resources.seed)
    count = min(max(RANKING_EXAMPLES, inputs(network)[0].shape[0] or 1), data.count)

    @functools.cache
    def estimator() -> LossEstimator:
        return LossEstimator.of(network, data.take(np.arange(count)), 1)

    return quantize_within(
        network,
        data,
        usage=usage,
        output_error=lambda model: estimator().loss(model).output_error,
    )


@dataclass(frozen=True)
class Conversion:
    """A converted network before it is measured.

    Attributes:
        plan: What was done to each layer.
        rows: The same, with its cost.
        network: The converted network.
        module: The converted torch model, or None for an ONNX input.
        problem: The sentence of a check that was missed, or None.
        missed: The sentence of a budget that the search could not keep, or None.
        budget: What was asked for, by option.
        predicted_speedup: By the table of layer times, or None without one.
        frontier: Networks for other budgets, by name.
        unproven: The sentence to tell where nothing measures what of accuracy is lost, or None.
        int8: The converted network, quantized, if that was asked for.
        lost: Says what a network loses, as a share of what it may lose; None where nothing limits
            that.
    """

    plan: Plan
    rows: tuple[LayerRow, ...]
    network: ir.Model
    module: nn.Module | None
    problem: str | None = None
    missed: str | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    predicted_speedup: float | None = None
    frontier: Mapping[str, ir.Model] = field(default_factory=dict)
    unproven: str | None = None
    int8: ir.Model | None = None
    lost: Callable[[ir.Model], float] | None = None


def prove(
    source: Source,
    conversion: Conversion,
    options: Options,
    evaluate: Evaluate | None,
    command: str,
    progress: Progress,
) -> Result:
    """Race original and converted, score them on ``--eval`` (else the sample inputs), report.

    With int8, the race is of four, and the budget that of the last; what it is held against is the
    int8 of the original, with steps in floating point where the budget needs that.
    """
    release_mapped(source.original.graph.initializers.values())
    networks = {"original": source.original, "converted": conversion.network}
    if conversion.int8 is not None:
        networks |= {
            "original, int8": as_int8(source.network, source, options, conversion.lost),
            "converted, int8": conversion.int8,
        }
    comparison = compare_models(
        networks,
        data=source.eval or source.calib,
        evaluate=evaluate,
        shapes=source.shapes,
        more_shapes=source.more_shapes,
        threads=options.timing.threads,
        provider=options.timing.provider,
        batch_size=options.timing.batch_size,
        seed=options.resources.seed,
        progress=progress,
    )
    frontier = None
    if conversion.frontier:
        frontier = compare_models(
            {"original": source.original, **conversion.frontier},
            data=source.eval or source.calib,
            evaluate=evaluate,
            shapes=source.shapes,
            threads=options.timing.threads,
            provider=options.timing.provider,
            batch_size=options.timing.batch_size,
            seed=options.resources.seed,
            progress=lambda stage, done: progress(f"frontier: {stage}", done),
        )
    problem = conversion.problem or conversion.missed
    problem = problem or missed(comparison, conversion.budget, options.budget.drop_type)
    if comparison.networks[-1].drop_points is None:
        problem = problem or conversion.unproven
    told = notice(comparison, conversion.plan, source.calib is not None)
    if problem and told and not conversion.plan.chosen():
        problem = f"{problem} {told}"
    report = Report(
        comparison=comparison,
        layers=conversion.rows,
        plan=conversion.plan,
        met=problem is None,
        reason=problem or told,
        budget=conversion.budget,
        predicted_speedup=conversion.predicted_speedup,
        seed=options.resources.seed,
        command=command,
        frontier=frontier,
    )
    return Result(
        model=ir.to_proto(conversion.network) if conversion.module is None else conversion.module,
        plan=conversion.plan,
        comparison=comparison,
        report=report,
        original=source.original,
        converted=conversion.network,
        int8=tuple(networks.values())[2:],
        origin=source.origin,
    )


def missed(comparison: Comparison, budget: Mapping[str, float], drop_type: str) -> str | None:
    """Say which part of a budget the measured network misses, and by how much; None if none."""
    before, after = comparison.networks[0], comparison.networks[-1]
    drop = after.drop_points.median / 100 if after.drop_points else None
    if drop is not None and drop_type == "relative" and before.accuracy:
        drop /= before.accuracy
    macs, speedup = after.macs / (before.macs or 1), after.speedup.median
    said = {
        "max_drop": (drop, f"it loses {drop:.4f} of accuracy" if drop is not None else ""),
        "max_error": (after.rel_output_error, f"its output errs by {after.rel_output_error:.3g}"),
        "max_macs": (macs, f"{macs:.3f} of the MACs are left"),
        "target_speedup": (speedup, f"it is {speedup:.2f}x as fast"),
    }
    for name, limit in budget.items():
        measured, words = said[name]
        off = measured is not None and (
            measured < limit if name == "target_speedup" else measured > limit
        )
        if off:
            option = name.replace("_", "-")
            return f"--{option} {limit:g} is missed on {comparison.data}: {words}."
    return None


def notice(comparison: Comparison, plan: Plan, sampled: bool) -> str | None:
    """Say what the user should know: nothing converted, slower by their own choice, no data."""
    if not plan.chosen():
        reasons = sorted({c.reason for c in plan.choices if c.reason})
        return (
            "No layer was converted: " + ("; ".join(reasons[:3]) or "there is no convolution") + "."
        )
    _, converted, *int8 = comparison.networks
    if comparison.gain.low <= 1:
        slow, than = verdict(comparison.gain), " than the original's int8" if int8 else ""
        return (
            f"The network is not faster in onnxruntime{than} ({slow}); the chosen forms were kept."
        )
    if int8 and int8[1].speedup.high < converted.speedup.low:
        return (
            f"In int8 the converted network is slower here ({int8[1].speedup.median:.2f} times as "
            f"fast as the original) than in floating point ({converted.speedup.median:.2f} times); "
            "take model.onnx."
        )
    if not sampled:
        return "Layers were solved for their weights alone; give sample inputs with --calib."
    return None
