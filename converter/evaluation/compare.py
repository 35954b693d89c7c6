"""Two or more ONNX networks side by side: speed, accuracy, cost, size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays, Data, conform, random_data
from converter.data.inputs import Input
from converter.errors import ConverterError, root_line
from converter.evaluation.comparison import Comparison, Figures, Shapes, Timing, versions
from converter.evaluation.recognize import check_labels, recognize
from converter.evaluation.score import Score, drop_interval, fixed_batch, renamed, score
from converter.evaluation.tasks.task import Task
from converter.graph.canonicalize import canonicalize
from converter.graph.network import count_params, inputs, nbytes, open_session
from converter.graph.outputs import comparison_outputs, with_outputs
from converter.graph.survey import count_macs
from converter.models.input_shapes import choose_shapes
from converter.processes import Resources
from converter.runtime.ort import cpu_model, run
from converter.runtime.runtime import ExclusiveSession, Runtime, Session
from converter.timing.race import Interval, Race, race

# The user's measure of a network, given a function from inputs to outputs; higher is better.
Evaluate = Callable[[Callable[[Arrays], Arrays]], float]
SCORING_BATCH = 100
MAX_OPEN_BYTES = 2 * 10**9  # of all networks that are open at the same time
RANDOM_EXAMPLES = 16


@dataclass(frozen=True)
class Conditions:
    """The conditions of a comparison.

    Attributes:
        runtime: Runs the networks.
        shapes: Input shapes for timing, by name; those of the data or the network if left out.
        more_shapes: Further input shapes for timing.
        batch_size: Examples per call when timing; the first axis of ``shapes`` if left out.
        decide: Speedups that no interval should contain; the race goes on until none does.
    """

    runtime: Runtime
    shapes: Shapes = field(default_factory=dict)
    more_shapes: Sequence[Shapes] = ()
    batch_size: int | None = None
    decide: tuple[float, ...] = ()


def compare_models(
    models: Mapping[str, ir.Model],
    conditions: Conditions,
    resources: Resources,
    data: Data | None = None,
    evaluate: Evaluate | None = None,
    tasks: Sequence[Task] | Mapping[str, str] = MappingProxyType({}),
) -> Comparison:
    """Race networks in a runtime and score them on the same data.

    Args:
        models: At least two networks by name; the first is the reference.
        conditions: Runtime and input shapes.
        resources: Seed of random inputs, and progress.
        data: Inputs, with labels for accuracy; random inputs if left out.
        evaluate: Measures networks instead of the accuracy on ``data``.
        tasks: What the outputs mean; or names of tasks by output, for those that are not to be
            found from the first network.

    Raises:
        ConverterError: When the networks' inputs or outputs differ, or the data does not fit.
    """
    spec = _shared_inputs(models)
    shapes = choose_shapes(spec, conditions.shapes, data)
    dtypes = {item.name: item.dtype for item in spec}
    sessions = _open_all(models, conditions.runtime)
    required_batch = next((b for s in sessions.values() if (b := fixed_batch(s))), None)
    batch_size = required_batch or conditions.batch_size or next(iter(shapes.values()))[0]
    noise = random_data(shapes, dtypes, max(RANDOM_EXAMPLES, batch_size), resources.seed)
    examples = noise if data is None else conform(data, shapes, dtypes)
    examples = _whole_batches(examples, required_batch)
    feeds = examples.read(np.arange(batch_size) % examples.count)
    raced = _race_all(sessions, feeds, resources.stage("timing"), conditions.decide)
    timings = [
        _time_at(sessions, choose_shapes(spec, shape, None), dtypes, batch_size, resources)
        for shape in conditions.more_shapes
    ]
    if isinstance(tasks, Mapping):
        tasks = recognize(next(iter(models.values())), examples, tasks)
        check_labels(examples, tasks)
    scores, compared = _score_all(models, sessions, examples, tasks, conditions.runtime, resources)
    measured = None
    if evaluate is not None:
        measured = {name: evaluated(evaluate, session) for name, session in sessions.items()}
    sessions.clear()  # counting opens other sessions, and a network may be large
    smallest_batch = noise.read(np.arange(required_batch or 1))
    return Comparison(
        networks=_figures(models, smallest_batch, raced, scores, measured),
        tasks={", ".join(task.outputs): task.name for task in tasks},
        unit="your measure" if evaluate else next(reversed(scores.values())).unit,
        gain=raced.gain,
        further=tuple(timings),
        data=examples.source,
        preprocessing=examples.preprocessing,
        examples=examples.count,
        rounds=raced.rounds,
        threads=conditions.runtime.threads,
        provider=conditions.runtime.provider,
        batch_size=batch_size,
        input_shapes={name: (batch_size, *shape[1:]) for name, shape in shapes.items()},
        cpu=cpu_model(),
        versions=versions(),
        compared=compared,
    )


def _figures(
    models: Mapping[str, ir.Model],
    feeds: Arrays,
    raced: Race,
    scores: Mapping[str, Score],
    measured: Mapping[str, float] | None,
) -> dict[str, Figures]:
    """Collect the measurements of each network; the user's own ones replace the score."""
    figures = {}
    for number, (name, model) in enumerate(models.items()):
        score = scores[name]
        accuracy, drop = score.judgement.score_after, drop_interval(score.judgement)
        if measured is not None:
            accuracy = measured[name]
            points = 100 * (next(iter(measured.values())) - accuracy)
            drop = Interval(points, points, points)
        figures[name] = Figures(
            name=name,
            params=count_params(model),
            macs=_macs(model, feeds),
            bytes=nbytes(model),
            latency_ms=raced.latency_ms[number],
            accuracy=accuracy,
            speedup=raced.speedup[number],
            drop_points=drop,
            agreement=score.judgement.details.get("agreement"),
            rel_output_error=score.output_error,
            judgement=score.judgement,
            by_output=score.by_output,
        )
    return figures


def _shared_inputs(models: Mapping[str, ir.Model]) -> tuple[Input, ...]:
    """Return the inputs of the first network, and check that all others take them."""
    specs = {name: inputs(model) for name, model in models.items()}
    first, reference = next(iter(specs.items()))
    for name, spec in specs.items():
        if len(spec) != len(reference) or any(
            a.dtype.kind != b.dtype.kind or not _compatible(a.shape, b.shape)
            for a, b in zip(spec, reference)
        ):
            raise ConverterError(f"{name} takes other inputs than {first}.")
    counts = {name: len(model.graph.outputs) for name, model in models.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ConverterError(f"The networks differ in the number of their outputs: {said}.")
    return reference


def _compatible(first: Sequence[int | None], second: Sequence[int | None]) -> bool:
    """Tell whether two shapes agree where both are fixed."""
    return len(first) == len(second) and all(
        a == b or a is None or b is None for a, b in zip(first, second)
    )


def _open_all(models: Mapping[str, ir.Model], runtime: Runtime) -> dict[str, Session]:
    """Open networks together, or one at a time if together they take too much memory.

    A network with several names is opened once.
    """
    distinct = {id(model): model for model in models.values()}
    openers = {key: partial(open_session, m, runtime=runtime) for key, m in distinct.items()}
    opened: dict[int, Session]
    if len(distinct) == 1 or _fit_together(models):
        opened = {key: opener() for key, opener in openers.items()}
    else:
        open_now: dict[int, Session] = {}
        opened = {key: ExclusiveSession(opener, open_now) for key, opener in openers.items()}
    return {name: opened[id(model)] for name, model in models.items()}


def _whole_batches(examples: Data, required_batch: int | None) -> Data:
    """Repeat or leave out examples, so that they fill batches of a fixed size."""
    if required_batch and examples.count < required_batch:
        return examples.take(np.arange(required_batch) % examples.count)
    return examples.take(np.arange(examples.count - examples.count % (required_batch or 1)))


def _fit_together(models: Mapping[str, ir.Model], copies: int = 1) -> bool:
    """Tell whether all networks may be open at once, each ``copies`` times."""
    distinct = {id(model): model for model in models.values()}
    return copies * sum(map(nbytes, distinct.values())) < MAX_OPEN_BYTES


def _race_all(
    sessions: Mapping[str, Session],
    feeds: Arrays,
    progress: Callable[[float], None],
    decide: Sequence[float] = (),
) -> Race:
    networks = list(sessions.values())
    return race(
        networks, [renamed(feeds, session) for session in networks], progress, decide=decide
    )


def _time_at(
    sessions: Mapping[str, Session],
    shapes: Shapes,
    dtypes: Mapping[str, np.dtype],
    batch_size: int,
    resources: Resources,
) -> Timing:
    noise = random_data(shapes, dtypes, batch_size, resources.seed)
    raced = _race_all(sessions, noise.read(np.arange(batch_size)), resources.stage("other shapes"))
    return Timing(
        {name: (batch_size, *shape[1:]) for name, shape in shapes.items()},
        dict(zip(sessions, raced.latency_ms, strict=True)),
        dict(zip(sessions, raced.speedup, strict=True)),
    )


def _score_all(
    models: Mapping[str, ir.Model],
    sessions: Mapping[str, Session],
    examples: Data,
    tasks: Sequence[Task],
    runtime: Runtime,
    resources: Resources,
) -> tuple[dict[str, Score], tuple[str, ...]]:
    """Score networks by their outputs, or by inner values where an output's shape varies.

    They run on all cores, if they can be open beside the sessions that raced.
    """
    first = next(iter(models.values()))
    names = comparison_outputs(first)
    compared: tuple[str, ...] = ()
    if names != [str(value.name) for value in first.graph.outputs]:
        compared = tuple(names)
        distinct = {id(model): with_outputs(model, names) for model in models.values()}
        models = {name: distinct[id(model)] for name, model in models.items()}
    if compared or _fit_together(models, copies=2):
        sessions = _open_all(models, runtime.with_threads(max(runtime.threads, resources.threads)))
    networks = list(sessions.values())
    batch = next((b for s in networks if (b := fixed_batch(s))), SCORING_BATCH)
    scores = score(networks, examples, tasks, batch, resources.stage("scoring"))
    return dict(zip(models, scores, strict=True)), compared


def _macs(model: ir.Model, feeds: Arrays) -> int:
    """Count the MACs of a network in canonical form, as a conversion does.

    A network of an operator set too old for that is counted as it is.
    """
    feeds = {item.name: x.astype(item.dtype) for item, x in zip(inputs(model), feeds.values())}
    try:
        return count_macs(canonicalize(model), feeds)
    except ConverterError:
        return count_macs(model, feeds)


def evaluated(evaluate: Evaluate, session: Session) -> float:
    """Call the user's measure on a network.

    Raises:
        ConverterError: When it fails, or does not return a finite number.
    """
    name = getattr(evaluate, "__qualname__", type(evaluate).__name__)
    try:
        value = float(evaluate(partial(run, session)))
    except ConverterError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise ConverterError(f"Evaluation {name} failed: {root_line(error)}") from None
    if not math.isfinite(value):
        raise ConverterError(f"Evaluation {name} returned {value}, not a finite number.")
    return value
