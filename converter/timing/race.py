"""Racing onnxruntime sessions fairly, and scoring networks on data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from scipy.stats import quantile_test

from converter.data.data import Arrays, Data
from converter.errors import ConverterError
from converter.runtime.ort import ExclusiveSession, Session, run

CONFIDENCE = 0.99
# A sleeping block lets the other session's threads stop spinning; a block is long against the
# clock and short against the drift of a shared machine.
PAUSE_S, BLOCK_S, BUDGET_S = 0.02, 0.03, 4.0
FEWEST_ROUNDS, MOST_ROUNDS = 15, 60
FEWEST_TURNS = 5  # of networks that are opened for each
FLOATS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
TURN_BYTES = 2**27  # of inputs and outputs of a turn; those of two turns are held


@dataclass(frozen=True)
class Interval:
    """A median with its 99 % confidence interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Interval:
        """Take median and interval from order statistics (no assumption on the distribution)."""
        test = quantile_test(values, q=0, p=0.5)
        found = test.confidence_interval(confidence_level=CONFIDENCE)
        # Below 8 values no order statistic is wide enough: the whole range, then.
        low = float(np.min(values)) if math.isnan(found.low) else float(found.low)
        high = float(np.max(values)) if math.isnan(found.high) else float(found.high)
        return cls(float(np.median(values)), low, high)


@dataclass(frozen=True)
class Race:
    """Latencies of several sessions, and their speedups over the first, both per session.

    Attributes:
        gain: Speedup of the last session over the one before it.
    """

    latency_ms: tuple[Interval, ...]
    speedup: tuple[Interval, ...]
    gain: Interval
    rounds: int


def race(
    sessions: Sequence[Session],
    feeds: Sequence[Mapping[str, np.ndarray]],
    progress: Callable[[float], None] = lambda done: None,
    budget_s: float | None = None,
) -> Race:
    """Time sessions against one another in short blocks, in turn, with a pause between blocks.

    Every round gives each session one block of calls, its first call not counted, in an order
    that rotates; a speedup is a ratio of two blocks of the same round.

    Args:
        sessions: At least one.
        feeds: Inputs of each session.
        progress: Called with the share done.
        budget_s: Seconds for each session, if not the usual; there are rounds enough for an
            interval in any case.
    """
    outputs = [[output.name for output in session.get_outputs()] for session in sessions]

    def block(n: int, calls: int) -> float:
        session, feed, names = sessions[n], dict(feeds[n]), outputs[n]
        session.run(names, feed)
        start = time.perf_counter()
        for _ in range(calls):
            session.run(names, feed)
        return (time.perf_counter() - start) / calls

    first = [min(block(n, 1) for _ in range(2)) for n in range(len(sessions))]
    calls = [max(1, round(BLOCK_S / seconds)) for seconds in first]
    round_s = sum((c + 1) * s + PAUSE_S for c, s in zip(calls, first))
    budget_s = BUDGET_S if budget_s is None else budget_s
    fewest = (
        FEWEST_TURNS if any(isinstance(s, ExclusiveSession) for s in sessions) else FEWEST_ROUNDS
    )
    rounds = int(np.clip(budget_s * len(sessions) / round_s, fewest, MOST_ROUNDS))
    order = list(range(len(sessions)))
    times = np.zeros((rounds, len(sessions)))
    for number in range(rounds):
        shift = number % len(order)
        for n in order[shift:] + order[:shift]:
            time.sleep(PAUSE_S)
            times[number, n] = block(n, calls[n]) * 1e3
        progress((number + 1) / rounds)
    ratios = times[:, :1] / times
    return Race(
        latency_ms=tuple(Interval.of(column) for column in times.T),
        speedup=tuple(Interval.of(column) for column in ratios.T),
        gain=Interval.of(times[:, -2:][:, 0] / times[:, -1]),
        rounds=rounds,
    )


@dataclass(frozen=True)
class Score:
    """What a network gives on data, beside the first network of the comparison.

    Attributes:
        hits: (N,) whether each example's label was the largest output, or None without labels.
        agreement: Share of examples whose largest output is the first network's; None where
            the output is no vector per example.
        rel_output_error: |output - first| / |first| over all data, of the worst output.
    """

    hits: np.ndarray | None
    agreement: float | None
    rel_output_error: float

    @property
    def accuracy(self) -> float | None:
        """Share of hits."""
        return None if self.hits is None else float(self.hits.mean())


def score(
    sessions: Sequence[Session],
    data: Data,
    batch_size: int,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Score, ...]:
    """Run every session over ``data`` and compare each with the first.

    Args:
        sessions: At least one; all take the same inputs.
        data: With labels for accuracy.
        batch_size: Examples a call.
        progress: Called with the share done.

    Raises:
        ConverterError: When the outputs differ in shape, or none are numbers.
    """
    hits: list[list[np.ndarray]] = [[] for _ in sessions]
    same: list[list[np.ndarray]] = [[] for _ in sessions]
    squares: list[Any] = [0.0 for _ in sessions]
    power: Any = 0.0
    for indices, outputs in _answers(sessions, data, batch_size):
        if any([a.shape for a in arrays] != [a.shape for a in outputs[0]] for arrays in outputs):
            raise ConverterError("The networks' outputs differ in shape; they cannot be compared.")
        if not outputs[0]:
            raise ConverterError("The networks give no arrays of numbers that could be compared.")
        power = power + np.array([_square(array) for array in outputs[0]])
        for n, arrays in enumerate(outputs):
            pairs = zip(_floats(arrays), _floats(outputs[0]))
            squares[n] = squares[n] + np.array([_square(a - b) for a, b in pairs])
            if arrays[0].ndim == 2 and len(arrays[0]) == len(indices):
                choice = arrays[0].argmax(1)
                same[n].append(choice == outputs[0][0].argmax(1))
                if data.labels is not None:
                    hits[n].append(choice == data.labels[indices])
        progress((int(indices[-1]) + 1) / data.count)
    tiny = np.finfo(np.float64).tiny
    return tuple(
        Score(
            hits=np.concatenate(hits[n]) if hits[n] else None,
            agreement=float(np.concatenate(same[n]).mean()) if same[n] else None,
            rel_output_error=float(np.sqrt(squares[n] / np.maximum(power, tiny)).max()),
        )
        for n in range(len(sessions))
    )


def _answers(
    sessions: Sequence[Session], data: Data, batch_size: int
) -> Iterator[tuple[np.ndarray, list[list[np.ndarray]]]]:
    """Give the indices of each batch, and what each session gives for it.

    Sessions that take turns run as many batches at a turn as ``TURN_BYTES`` hold.
    """
    batches, at_a_turn = data.batches(batch_size), 1
    while turn := list(islice(batches, at_a_turn)):
        found = [[_numbers(run(s, renamed(f, s))) for _, f in turn] for s in sessions]
        if any(isinstance(session, ExclusiveSession) for session in sessions):
            held = sum(array.nbytes for answers in found for arrays in answers for array in arrays)
            held += sum(array.nbytes for _, feeds in turn for array in feeds.values())
            at_a_turn = max(TURN_BYTES * len(turn) // max(held, 1), 1)
        for (indices, _), *outputs in zip(turn, *found):
            yield indices, outputs


def drop_interval(before: np.ndarray, after: np.ndarray) -> Interval:
    """Drop of accuracy in percentage points, with a paired 99 % interval.

    The examples are the same for both, so only those that changed count (McNemar); normal
    approximation of their mean.

    Args:
        before: (N,) hits of the original.
        after: (N,) hits of the other network.
    """
    change = before.astype(np.float64) - after.astype(np.float64)
    mean = 100 * float(change.mean())
    half = 2.576 * 100 * float(change.std()) / math.sqrt(len(change))
    return Interval(mean, mean - half, mean + half)


def fixed_batch(session: Session) -> int | None:
    """Return the batch size that a network insists on, or None if it takes any."""
    sizes = [i.shape[0] for i in session.get_inputs() if i.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def renamed(feeds: Mapping[str, np.ndarray], session: Session) -> Arrays:
    """Give a session its inputs: by name, else in order; floats in the precision it takes."""
    taken = session.get_inputs()
    by_name = all(item.name in feeds for item in taken)
    arrays = [feeds[item.name] for item in taken] if by_name else list(feeds.values())
    return {
        item.name: array.astype(FLOATS.get(item.type, array.dtype), copy=False)
        for item, array in zip(taken, arrays)
    }


def _numbers(outputs: Arrays) -> list[np.ndarray]:
    """Leave out strings, sequences and maps."""
    return [a for a in outputs.values() if isinstance(a, np.ndarray) and a.dtype.kind in "fiub"]


def _floats(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def _square(array: np.ndarray) -> float:
    return float(np.sum(array.astype(np.float64) ** 2))
