"""Race and scores of a converted network."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.data.data import Data
from converter.evaluation.compare import Conditions
from converter.evaluation.notes import same_data
from converter.job import Job
from converter.report.verify import ConvertedModel, Scoring, Verified, verify
from converter.runtime.ort import OnnxRuntime
from converter.search.int8 import quantize

MORE_INPUTS = 4  # factor by which more inputs are scored at the end than in the search


def measure(job: Job, converted: ConvertedModel) -> Verified:
    """Race and score the original and the converted network."""
    source, options = job.source, job.options
    conditions = Conditions(
        OnnxRuntime.of(options.timing),
        source.shapes,
        source.more_shapes,
        options.timing.batch_size,
        decide=(options.budget.target_speedup,) if options.budget.target_speedup else (),
    )
    data, unseen, held_out = scored_data(job)
    scoring = Scoring(
        data=data,
        evaluate=job.evaluate,
        tasks=job.tasks,
        warnings=job.warnings,
        calibrated=source.calib is not None,
        unseen=unseen,
        held_out=held_out,
    )

    def original_int8() -> ir.Model:
        limit = converted.search.limit
        usage = None if limit is None else limit.usage
        return quantize(source.network, source, options, job.tasks, usage).network

    return verify(source.original, converted, scoring, conditions, job.resources, original_int8)


def scored_data(job: Job) -> tuple[Data | None, bool, bool]:
    """Choose the inputs that the networks are scored on.

    Returns:
        The inputs, or None; whether no layer was fit to them and no training saw them; and whether
        those on which the search estimated the loss are among them.
    """
    source, data, training = job.source, job.options.data, job.options.training
    trained = None
    if training.trains:
        trained = data.calib if training.train is None else training.train
    if source.eval is not None:
        seen = same_data(data.eval, data.calib) or same_data(data.eval, trained)
        return source.eval, not seen, False
    unused, held_out = source.unused_calib, job.problem.holdout.count
    if unused is not None and unused.count >= held_out:
        count = min(unused.count, MORE_INPUTS * held_out)
        return unused.take(np.arange(count)), not same_data(data.calib, trained), True
    return source.calib and job.problem.holdout, False, False
