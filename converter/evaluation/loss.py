"""The loss of a converted network against the original, on examples that no layer was fit to."""

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

BATCH_SIZE = 16
Z_95 = 1.645  # standard errors from the mean to a one-sided 95 % bound
NEIGHBOURS = 64  # examples of similar margin whose errors each example is also given
MAX_TEMPERATURE, TINY = 5.0, 1e-12


@dataclass(frozen=True)
class Loss:
    """The loss of a network against the original.

    Attributes:
        drop: Expected loss of accuracy, a fraction; None without classes.
        drop_high: Upper bound of ``drop`` at 95 % confidence, which is wider with fewer examples.
        output_error: |output - original| / |original|, of the worst output.
    """

    drop: float | None
    drop_high: float | None
    output_error: float


@dataclass(frozen=True)
class LossEstimator:
    """Estimates the loss of networks on examples, from the original's outputs for them.

    The loss of accuracy is its expectation under the original's probabilities: if the two networks
    disagree, each class is right with the probability that the original gives it. Labels are only
    used for the temperature: sample inputs are often training inputs, whose labels the network has
    memorised.

    Attributes:
        batches: Inputs by name, batch by batch.
        outputs: The original's outputs by name, batch by batch.
        threads: Threads of onnxruntime.
        temperature: Temperature of the original's probabilities.
    """

    batches: tuple[Arrays, ...]
    outputs: tuple[Arrays, ...]
    threads: int
    temperature: float = 1.0

    @classmethod
    def of(cls, network: ir.Model, data: Data, threads: int) -> LossEstimator:
        """Run the original on ``data``.

        A network with a fixed batch size is run on whole batches. An output whose shape depends on
        the data is replaced by the values it is computed from.

        Args:
            network: The original network.
            data: Examples that no layer is fit to.
            threads: Threads of onnxruntime.

        Raises:
            ConverterError: When the outputs of the original have NaN or infinite values.
        """
        session = open_session(with_outputs(network, comparison_outputs(network)), threads)
        batch_size = inputs(network)[0].shape[0]
        data = data.whole_batches(batch_size)
        batches = tuple(feeds for _, feeds in data.batches(batch_size or BATCH_SIZE))
        estimator = cls(batches, tuple(run(session, feeds) for feeds in batches), threads)
        for outputs in estimator.outputs:
            for name, output in outputs.items():
                if not np.isfinite(output).all():
                    raise ConverterError(
                        f"The network gives NaN or infinite values for {data.source} (output "
                        f"{name}), so no other network can be compared; give finite "
                        "sample inputs with --calib."
                    )
        if data.labels is None or not estimator.classes:
            return estimator
        return replace(
            estimator, temperature=temperature_of(estimator._first_output(), data.labels)
        )

    @property
    def names(self) -> list[str]:
        """Names of the compared values."""
        return list(self.outputs[0])

    @property
    def classes(self) -> bool:
        """Whether the first output is (N, C): one vector of class scores for each example."""
        examples = len(next(iter(self.batches[0].values())))
        first = next(iter(self.outputs[0].values()))
        return first.ndim == 2 and first.shape[0] == examples and first.shape[1] > 1

    @property
    def accuracy(self) -> float:
        """Expected accuracy of the original, a fraction."""
        return accuracy(self._first_output(), self.temperature)

    def loss(self, network: ir.Model) -> Loss:
        """Run a version of the original that has values of the same names, and compare."""
        session = open_session(with_outputs(network, self.names), self.threads)
        return self.loss_of(lambda feeds: run(session, feeds))

    def loss_of(self, predict: Callable[[Arrays], Arrays]) -> Loss:
        """Compare the results of ``predict``, which returns the values ``names`` of a batch."""
        results = [predict(feeds) for feeds in self.batches]
        errors = [
            relative_error(
                [arrays[name] for arrays in results], [arrays[name] for arrays in self.outputs]
            )
            for name in self.names
        ]
        if not self.classes:
            return Loss(None, None, max(errors))
        after = np.concatenate([next(iter(arrays.values())) for arrays in results])
        drop, drop_high = expected_drop(self._first_output(), after, self.temperature)
        return Loss(drop, drop_high, max(errors))

    def _first_output(self) -> np.ndarray:
        """Return the original's first output on all examples."""
        return np.concatenate([next(iter(outputs.values())) for outputs in self.outputs])


def expected_drop(before: np.ndarray, after: np.ndarray, temperature: float) -> tuple[float, float]:
    """Estimate the loss of accuracy, and its upper bound at 95 % confidence.

    Few examples change their class, so a count of them has a large variance. Each example is
    therefore also given the errors of the examples with a similar margin between the two best
    classes, with classes in the order of their scores. Each pair of an example and an error
    counts as one observation.

    Args:
        before: The original's logits or probabilities (N, C).
        after: Those of the other network.
        temperature: Temperature of the original's probabilities.
    """
    if not np.isfinite(after).all():
        return 1.0, 1.0
    before, after, count = logits(before), logits(after), len(before)
    order = np.argsort(-before, axis=1)
    ranked = np.take_along_axis(before, order, 1)
    probabilities = softmax(ranked / temperature, axis=1)
    errors = np.take_along_axis(after, order, 1) - ranked
    by_margin = np.argsort(ranked[:, 0] - ranked[:, 1])
    near = min(NEIGHBOURS, count)
    first = np.clip(np.arange(count) - near // 2, 0, count - near)
    by_example, by_error = np.zeros(count), np.zeros(count)  # sums over their pairs
    for number in range(near):
        others = by_margin[first + number]
        winner = (ranked[by_margin] + errors[others]).argmax(1)
        drops = (probabilities[by_margin, 0] - probabilities[by_margin, winner]) / near
        by_example[by_margin] += drops
        np.add.at(by_error, others, drops)
    drop = float(by_example.mean())
    standard_error = float((by_example + by_error).std() / math.sqrt(count))
    return drop, drop + Z_95 * standard_error


def accuracy(rows: np.ndarray, temperature: float) -> float:
    """Estimate the accuracy of a network from its own probabilities."""
    return float(_probabilities(rows, temperature).max(1).mean())


def relative_error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return |output - expected| / |expected| over all batches; not squared.

    It is infinite if shapes differ or values are not finite.
    """
    error = power = 0.0
    for a, b in zip(outputs, expected):
        if a.shape != b.shape or not np.isfinite(a).all():
            return math.inf
        error += float(np.square(a.astype(np.float64) - b).sum())
        power += float(np.square(b.astype(np.float64)).sum())
    return math.sqrt(error / (power or 1.0))


def temperature_of(rows: np.ndarray, labels: np.ndarray) -> float:
    """Calibrate the temperature: the maximum likelihood of the labels (arXiv 1706.04599)."""
    numbers = np.arange(len(rows))

    def cross_entropy(log_temperature: float) -> float:
        right = _probabilities(rows, math.exp(log_temperature))[numbers, labels]
        return -float(np.log(np.maximum(right, TINY)).mean())

    bounds = (-math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE))
    return math.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x)


def _probabilities(rows: np.ndarray, temperature: float) -> np.ndarray:
    """Return class probabilities (N, C) of logits or probabilities."""
    return np.asarray(softmax(logits(rows) / temperature, axis=1))


def logits(rows: np.ndarray) -> np.ndarray:
    """Return logits (N, C) of probabilities, or logits as they are."""
    rows = rows.astype(np.float64)
    probabilities = rows.min() >= 0 and np.allclose(rows.sum(1), 1, atol=1e-3)
    return np.log(np.maximum(rows, TINY)) if probabilities else rows
