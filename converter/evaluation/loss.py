"""What a network loses beside the original, on examples that nothing was fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from converter.data.data import Arrays, Data
from converter.errors import ConverterError
from converter.graph.network import inputs, open_session
from converter.graph.outputs import comparison_outputs, with_outputs
from converter.runtime.ort import run

BATCH = 16
ONE_SIDED = 1.645  # standard errors to the 95 % bound
NEIGHBOURS = 64  # whose errors an example could have had as well
HOTTEST, TINY = 5.0, 1e-12


@dataclass(frozen=True)
class Loss:
    """What a network loses.

    Attributes:
        drop: Expected loss of accuracy, a fraction; None where there are no classes.
        drop_high: Its upper bound at 95 % confidence, for how few examples it was seen on.
        output_error: |output - original| / |original|, of the worst output.
    """

    drop: float | None
    drop_high: float | None
    output_error: float


@dataclass(frozen=True)
class LossEstimator:
    """Examples, and what the original gives on them.

    The expected loss of accuracy is that under the original's own probabilities: where the two
    disagree, the original's class is right with its probability, and the other with its. Labels
    would say less: sample inputs are often those that the network was trained on, whose labels
    it knows by heart.

    Attributes:
        batches: Inputs.
        outputs: The original's outputs, batch by batch.
        threads: Of onnxruntime.
        temperature: Of the original's probabilities.
    """

    batches: tuple[Arrays, ...]
    outputs: tuple[Arrays, ...]
    threads: int
    temperature: float = 1.0

    @classmethod
    def of(cls, network: ir.Model, data: Data, threads: int) -> LossEstimator:
        """Run the original on ``data``; where it insists on a batch size, the rest is left out.

        Outputs whose shape depends on the data are judged by what they are made of.

        Raises:
            ConverterError: When the original gives NaN or infinite values.
        """
        session = open_session(with_outputs(network, comparison_outputs(network)), threads)
        insisted = inputs(network)[0].shape[0]
        batch_size, whole = insisted or BATCH, data.count
        if insisted:
            data = data.filled(insisted)
            whole = data.count - data.count % insisted
        data = data.take(np.arange(whole))
        batches = tuple(feeds for _, feeds in data.batches(batch_size))
        judge = cls(batches, tuple(run(session, feeds) for feeds in batches), threads)
        for outputs in judge.outputs:
            for name, output in outputs.items():
                if not np.isfinite(output).all():
                    raise ConverterError(
                        f"The network gives NaN or infinite values for {data.source} (output "
                        f"{name}), beside which no other can be judged; give it sound inputs "
                        "with --calib."
                    )
        if data.labels is None or not judge.classes:
            return judge
        return replace(judge, temperature=temperature_of(judge._first(), data.labels))

    @property
    def names(self) -> list[str]:
        """The values that are judged."""
        return list(self.outputs[0])

    @property
    def classes(self) -> bool:
        """Whether the first output is a vector of classes."""
        examples = len(next(iter(self.batches[0].values())))
        first = next(iter(self.outputs[0].values()))
        return first.ndim == 2 and first.shape[0] == examples and first.shape[1] > 1

    @property
    def accuracy(self) -> float:
        """Share of examples that the original is expected to have right."""
        return accuracy(self._first(), self.temperature)

    def loss(self, network: ir.Model) -> Loss:
        """Run a version of the original, with values of the same names, beside it."""
        session = open_session(with_outputs(network, self.names), self.threads)
        return self.lost(lambda feeds: run(session, feeds))

    def lost(self, predict: Callable[[Arrays], Arrays]) -> Loss:
        """Say what ``predict`` loses; it gives the values ``names`` for a batch."""
        seen = [predict(feeds) for feeds in self.batches]
        errors = [
            relative_error(
                [arrays[name] for arrays in seen], [arrays[name] for arrays in self.outputs]
            )
            for name in self.names
        ]
        if not self.classes:
            return Loss(None, None, max(errors))
        after = np.concatenate([next(iter(a.values())) for a in seen])
        drop, drop_high = expected_drop(self._first(), after, self.temperature)
        return Loss(drop, drop_high, max(errors))

    def _first(self) -> np.ndarray:
        """The original's first output on all examples."""
        return np.concatenate([next(iter(outputs.values())) for outputs in self.outputs])


def expected_drop(before: np.ndarray, after: np.ndarray, temperature: float) -> tuple[float, float]:
    """Expect what accuracy is lost, and its upper bound at 95 % confidence.

    Few examples change their class, and few of those are seen: a count of them says little. So
    each example is also given the errors of those that the original is about as sure of, classes
    put in its own order; each pair of an example and an error then counts as one that was seen.

    Args:
        before: The original's logits or probabilities (N, C).
        after: The other network's.
        temperature: Of the original's probabilities.
    """
    if not np.isfinite(after).all():
        return 1.0, 1.0
    before, after, count = logits(before), logits(after), len(before)
    order = np.argsort(-before, axis=1)
    ranked = np.take_along_axis(before, order, 1)
    sure = softmax(ranked / temperature, axis=1)
    moved = np.take_along_axis(after, order, 1) - ranked
    by_margin = np.argsort(ranked[:, 0] - ranked[:, 1])
    near = min(NEIGHBOURS, count)
    first = np.clip(np.arange(count) - near // 2, 0, count - near)
    as_example, as_error = np.zeros(count), np.zeros(count)
    for number in range(near):
        others = by_margin[first + number]
        winner = (ranked[by_margin] + moved[others]).argmax(1)
        lost = (sure[by_margin, 0] - sure[by_margin, winner]) / near
        as_example[by_margin] += lost
        np.add.at(as_error, others, lost)
    drop, off = float(as_example.mean()), float((as_example + as_error).std() / math.sqrt(count))
    return drop, drop + ONE_SIDED * off


def accuracy(rows: np.ndarray, temperature: float) -> float:
    """Expect the accuracy of a network under its own probabilities."""
    return float(_probabilities(rows, temperature).max(1).mean())


def relative_error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """|output - expected| / |expected| over all batches; infinite for other shapes or values."""
    off = power = 0.0
    for a, b in zip(outputs, expected):
        if a.shape != b.shape or not np.isfinite(a).all():
            return math.inf
        off += float(np.square(a.astype(np.float64) - b).sum())
        power += float(np.square(b.astype(np.float64)).sum())
    return math.sqrt(off / (power or 1.0))


def temperature_of(rows: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature at which the labels are likeliest."""
    here = np.arange(len(rows))

    def surprise(log: float) -> float:
        right = _probabilities(rows, math.exp(log))[here, labels]
        return -float(np.log(np.maximum(right, TINY)).mean())

    bounds = (-math.log(HOTTEST), math.log(HOTTEST))
    return math.exp(minimize_scalar(surprise, bounds=bounds, method="bounded").x)


def _probabilities(rows: np.ndarray, temperature: float) -> np.ndarray:
    """Class probabilities (N, C) of logits, or of what is one already."""
    return np.asarray(softmax(logits(rows) / temperature, axis=1))


def logits(rows: np.ndarray) -> np.ndarray:
    """Logits (N, C) of probabilities, or what is some already."""
    rows = rows.astype(np.float64)
    already = rows.min() >= 0 and np.allclose(rows.sum(1), 1, atol=1e-3)
    return np.log(np.maximum(rows, TINY)) if already else rows
