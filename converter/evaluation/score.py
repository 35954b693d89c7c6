"""Scores of networks on data: accuracy, agreement with the first, and error of the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from converter.data.data import Arrays, Data
from converter.errors import ConverterError
from converter.runtime.ort import run
from converter.runtime.runtime import ExclusiveSession, Session
from converter.timing.race import Interval

FLOATS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
Z_99 = 2.576  # standard errors from the mean to a two-sided 99 % bound
MAX_GROUP_BYTES = 2**27  # of the inputs and outputs of batches that one session runs in a row


@dataclass(frozen=True)
class Score:
    """A network's outputs on data, compared with those of the first network.

    Attributes:
        hits: (N,) whether each example's label is the largest output; None without labels.
        agreement: Share of examples with the same largest output; None if the output is not (N, C).
        rel_output_error: |output - first| / |first| over all data, of the worst output.
    """

    hits: np.ndarray | None
    agreement: float | None
    rel_output_error: float

    @property
    def accuracy(self) -> float | None:
        """Share of hits; None without labels."""
        return None if self.hits is None else float(self.hits.mean())


def score(
    sessions: Sequence[Session],
    data: Data,
    batch_size: int,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Score, ...]:
    """Run every session over ``data`` and compare each with the first.

    Args:
        sessions: At least one session; all take the same inputs.
        data: Inputs, with labels for accuracy.
        batch_size: Examples per call.
        progress: Called with the fraction that is done.

    Raises:
        ConverterError: When the outputs differ in shape, or none are numbers.
    """
    hits: list[list[np.ndarray]] = [[] for _ in sessions]
    same: list[list[np.ndarray]] = [[] for _ in sessions]
    squares: list[Any] = [0.0 for _ in sessions]
    power: Any = 0.0
    for indices, outputs in _outputs(sessions, data, batch_size):
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


def _outputs(
    sessions: Sequence[Session], data: Data, batch_size: int
) -> Iterator[tuple[np.ndarray, list[list[np.ndarray]]]]:
    """Iterate over batches: their indices, and the outputs of each session for them.

    Exclusive sessions run groups of batches, of up to ``MAX_GROUP_BYTES``, so that they are opened
    less often.
    """
    batches, group_size = data.batches(batch_size), 1
    while group := list(islice(batches, group_size)):
        results = [[_numbers(run(s, renamed(f, s))) for _, f in group] for s in sessions]
        if any(isinstance(session, ExclusiveSession) for session in sessions):
            size = sum(a.nbytes for outputs in results for arrays in outputs for a in arrays)
            size += sum(array.nbytes for _, feeds in group for array in feeds.values())
            group_size = max(MAX_GROUP_BYTES * len(group) // max(size, 1), 1)
        for (indices, _), *outputs in zip(group, *results):
            yield indices, outputs


def drop_interval(before: np.ndarray, after: np.ndarray) -> Interval:
    """Estimate the drop of accuracy in percentage points, with a 99 % interval.

    The samples are paired: only examples whose hit changes contribute, as in McNemar's test. The
    interval is the normal approximation for the mean change.

    Args:
        before: (N,) hits of the original.
        after: (N,) hits of the other network.
    """
    change = before.astype(np.float64) - after.astype(np.float64)
    mean = 100 * float(change.mean())
    margin = Z_99 * 100 * float(change.std()) / math.sqrt(len(change))
    return Interval(mean, mean - margin, mean + margin)


def fixed_batch(session: Session) -> int | None:
    """Return the fixed batch size of a network, or None if it takes any."""
    sizes = [i.shape[0] for i in session.get_inputs() if i.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def renamed(feeds: Mapping[str, np.ndarray], session: Session) -> Arrays:
    """Rename inputs to a session's names, in order, and cast floats to its precision.

    Inputs whose names all match are assigned by name instead.
    """
    inputs = session.get_inputs()
    by_name = all(item.name in feeds for item in inputs)
    arrays = [feeds[item.name] for item in inputs] if by_name else list(feeds.values())
    return {
        item.name: array.astype(FLOATS.get(item.type, array.dtype), copy=False)
        for item, array in zip(inputs, arrays)
    }


def _numbers(outputs: Arrays) -> list[np.ndarray]:
    """Leave out strings, sequences and maps."""
    return [a for a in outputs.values() if isinstance(a, np.ndarray) and a.dtype.kind in "fiub"]


def _floats(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def _square(array: np.ndarray) -> float:
    return float(np.sum(array.astype(np.float64) ** 2))
