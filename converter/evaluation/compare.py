"""Two or more ONNX networks side by side: speed, accuracy, cost, size."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays, Data, conform, random_data
from converter.errors import ConverterError, root_line
from converter.graph.canonicalize import canonicalize
from converter.graph.network import count_params, inputs, nbytes, open_session
from converter.graph.outputs import comparison_outputs, with_outputs
from converter.graph.survey import count_macs
from converter.models.source import example_shapes
from converter.runtime.ort import ExclusiveSession, Session, cpu_model, run
from converter.timing.race import (
    Interval,
    Score,
    drop_interval,
    fixed_batch,
    race,
    renamed,
    score,
)

Evaluate = Callable[[Callable[[Arrays], Arrays]], float]
Progress = Callable[[str, float], None]
SCORING_BATCH = 100
TOGETHER_BYTES = 2 * 10**9  # of networks that are open at once
RANDOM_EXAMPLES = 16


@dataclass(frozen=True)
class Figures:
    """What was measured of one network; the last four are beside the first network.

    Attributes:
        name: File or role.
        params: Weights, in floating point or quantized.
        macs: Multiply-accumulates for one example.
        bytes: Size of the file.
        latency_ms: Time of one call.
        accuracy: Share of correct labels, or what ``evaluate`` returned; None without either.
        speedup: Latency of the first over this one's.
        drop_points: Percentage points of accuracy lost.
        agreement: Share of examples with the same largest output.
        rel_output_error: |output - first| / |first|.
    """

    name: str
    params: int
    macs: int
    bytes: int
    latency_ms: Interval
    accuracy: float | None
    speedup: Interval
    drop_points: Interval | None
    agreement: float | None
    rel_output_error: float

    @property
    def verdict(self) -> str:
        """Say whether it is faster than the first."""
        return verdict(self.speedup)


def verdict(speedup: Interval) -> str:
    """Say what a speedup means, as far as the interval allows."""
    if speedup.low > 1:
        return f"{speedup.median:.2f}x faster"
    if speedup.high < 1:
        return f"{1 / speedup.median:.2f}x slower"
    return "no difference"


@dataclass(frozen=True)
class Timing:
    """Latencies and speedups, one a network, at a further input shape."""

    input_shapes: Mapping[str, tuple[int, ...]]
    latency_ms: tuple[Interval, ...]
    speedup: tuple[Interval, ...]


@dataclass(frozen=True)
class Comparison:
    """Figures of several networks, and the conditions they were measured under.

    ``gain`` is the speedup of the last network over the one before it. ``compared`` names the inner
    values that were held against one another in place of outputs whose shape depends on the data.
    """

    networks: tuple[Figures, ...]
    gain: Interval
    further: tuple[Timing, ...]
    data: str
    examples: int
    rounds: int
    threads: int
    provider: str
    batch_size: int
    input_shapes: Mapping[str, tuple[int, ...]]
    cpu: str
    versions: Mapping[str, str]
    compared: tuple[str, ...] = ()


def compare_models(
    models: Mapping[str, ir.Model],
    *,
    data: Data | None = None,
    evaluate: Evaluate | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    more_shapes: Sequence[Mapping[str, tuple[int, ...]]] = (),
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done: None,
) -> Comparison:
    """Race networks in onnxruntime and score them on the same data.

    Args:
        models: By name, at least two; the first is what the others are held against.
        data: Inputs, with labels for accuracy; random numbers without.
        evaluate: Higher is better; takes the place of the accuracy on ``data``.
        shapes: Input shapes for timing, by name.
        more_shapes: Further input shapes that are timed.
        threads: Threads of onnxruntime.
        provider: Its execution provider.
        batch_size: Examples a call when timing; the first axis of ``shapes`` if left out.
        seed: Of random inputs.
        progress: Called with a stage and the share of it that is done.

    Raises:
        ConverterError: When the networks' inputs or outputs differ, or the data does not fit.
    """
    specs = {name: inputs(model) for name, model in models.items()}
    reference = next(iter(specs.values()))
    for name, spec in specs.items():
        if len(spec) != len(reference) or any(
            a.dtype.kind != b.dtype.kind or not _alike(a.shape, b.shape)
            for a, b in zip(spec, reference)
        ):
            raise ConverterError(f"{name} takes other inputs than {next(iter(specs))}.")
    if len({len(model.graph.outputs) for model in models.values()}) > 1:
        raise ConverterError("The networks differ in the number of their outputs.")
    shapes = example_shapes(reference, shapes or {}, data)
    dtypes = {i.name: i.dtype for i in reference}
    distinct = {id(model): model for model in models.values()}
    opened = _opened(distinct, threads, provider)
    sessions = [opened[id(model)] for model in models.values()]
    insisted = next((b for s in sessions if (b := fixed_batch(s))), None)
    batch_size = insisted or batch_size or next(iter(shapes.values()))[0]
    noise = random_data(shapes, dtypes, max(RANDOM_EXAMPLES, batch_size), seed)
    examples = noise if data is None else conform(data, shapes, dtypes)
    if insisted and examples.count < insisted:
        examples = examples.take(np.arange(insisted) % examples.count)
    if insisted and examples.count % insisted:
        examples = examples.take(np.arange(examples.count - examples.count % insisted))
    feeds = examples.read(np.arange(batch_size) % examples.count)
    outcome = race(
        sessions, [renamed(feeds, s) for s in sessions], lambda done: progress("timing", done)
    )
    further = []
    for number, other in enumerate(more_shapes):
        full = example_shapes(reference, other, None)
        noisy = random_data(full, dtypes, batch_size, seed).read(np.arange(batch_size))
        timed = race(sessions, [renamed(noisy, s) for s in sessions])
        sized = {name: (batch_size, *shape[1:]) for name, shape in full.items()}
        further.append(Timing(sized, timed.latency_ms, timed.speedup))
        progress("other shapes", (number + 1) / len(more_shapes))
    first = next(iter(models.values()))
    names, scored = comparison_outputs(first), sessions
    compared = () if names == [str(value.name) for value in first.graph.outputs] else tuple(names)
    if compared:
        inner = {key: with_outputs(model, names) for key, model in distinct.items()}
        others = _opened(inner, threads, provider)
        scored = [others[id(model)] for model in models.values()]
    scores = score(
        scored, examples, insisted or SCORING_BATCH, lambda done: progress("scoring", done)
    )
    accuracies = [s.accuracy for s in scores]
    if evaluate is not None:
        accuracies = [evaluated(evaluate, session) for session in sessions]
    del opened, sessions, scored  # what counts opens others, and a network may be large
    single = noise.read(np.arange(insisted or 1))
    figures = [
        Figures(
            name=name,
            params=count_params(model),
            macs=_macs(
                model, {i.name: x.astype(i.dtype) for i, x in zip(specs[name], single.values())}
            ),
            bytes=nbytes(model),
            latency_ms=outcome.latency_ms[n],
            accuracy=accuracies[n],
            speedup=outcome.speedup[n],
            drop_points=_drop(scores[0], scores[n], accuracies[0], accuracies[n], evaluate),
            agreement=scores[n].agreement,
            rel_output_error=scores[n].rel_output_error,
        )
        for n, (name, model) in enumerate(models.items())
    ]
    return Comparison(
        networks=tuple(figures),
        gain=outcome.gain,
        further=tuple(further),
        data=examples.source,
        examples=examples.count,
        rounds=outcome.rounds,
        threads=threads,
        provider=provider,
        batch_size=batch_size,
        input_shapes={name: (batch_size, *shape[1:]) for name, shape in shapes.items()},
        cpu=cpu_model(),
        versions=versions(),
        compared=compared,
    )


def _opened(models: Mapping[int, ir.Model], threads: int, provider: str) -> dict[int, Session]:
    """Open networks together, or in turns if that would take too much memory."""
    openers = {key: partial(open_session, m, threads, provider) for key, m in models.items()}
    if len(models) == 1 or sum(map(nbytes, models.values())) < TOGETHER_BYTES:
        return {key: opener() for key, opener in openers.items()}
    open_now: dict[int, Any] = {}
    return {key: ExclusiveSession(opener, open_now) for key, opener in openers.items()}


def _alike(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Tell whether two shapes agree where both are fixed."""
    return len(one) == len(other) and all(
        a == b or a is None or b is None for a, b in zip(one, other)
    )


def _macs(model: ir.Model, feeds: Arrays) -> int:
    """Count MACs as a conversion would; of an operator set too old for that, as it stands."""
    try:
        return count_macs(canonicalize(model), feeds)
    except ConverterError:
        return count_macs(model, feeds)


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    packages = ("flatconv", "onnxruntime", "onnx", "torch", "tensorly", "numpy")
    return {"python": platform.python_version(), **{name: version_of(name) for name in packages}}


def version_of(package: str) -> str:
    """Version of a package, which flatconv's own source tree need not be installed as."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def evaluated(evaluate: Evaluate, session: Session) -> float:
    """Call the user's function on one network."""
    try:
        value = float(evaluate(partial(run, session)))
    except ConverterError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise ConverterError(f"evaluate failed: {root_line(error)}") from None
    if not math.isfinite(value):
        raise ConverterError(f"evaluate returned {value}; it must return a finite number.")
    return value


def _drop(
    first: Score,
    other: Score,
    accuracy_before: float | None,
    accuracy_after: float | None,
    evaluate: Evaluate | None,
) -> Interval | None:
    if evaluate is None and first.hits is not None and other.hits is not None:
        return drop_interval(first.hits, other.hits)
    if accuracy_before is None or accuracy_after is None:
        return None
    points = 100 * (accuracy_before - accuracy_after)
    return Interval(points, points, points)
