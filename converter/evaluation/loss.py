"""The loss of a converted network against the original, on examples that no layer was fit to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays, Data
from converter.errors import ConverterError
from converter.evaluation.tasks.channels import Channels, channel_errors
from converter.evaluation.tasks.classify import Classify
from converter.evaluation.tasks.regress import Regress
from converter.evaluation.tasks.task import Judgement, Task, concatenated
from converter.evaluation.verdict import Estimate, estimate
from converter.graph.network import inputs, open_session
from converter.graph.outputs import comparison_outputs, with_outputs
from converter.runtime.ort import run

BATCH_SIZE = 16


@dataclass(frozen=True)
class Loss:
    """The loss of a network against the original.

    Attributes:
        estimate: Loss by the task that loses most: of the accuracy for classes.
        output_error: RMS error over standard deviation, of the worst channel of the outputs.
        surrogate: Smooth stand-in for the loss, in the unit of a squared relative error.
    """

    estimate: Estimate
    output_error: float
    surrogate: float


@dataclass(frozen=True)
class LossEstimator:
    """Estimates the loss of networks on examples, from the original's outputs for them.

    Labels are not used: sample inputs are often training inputs, whose labels the network has
    memorised.

    Attributes:
        batches: Inputs by name, batch by batch.
        outputs: The original's outputs by name, batch by batch.
        threads: Threads of onnxruntime.
        tasks: What the outputs mean.
    """

    batches: tuple[Arrays, ...]
    outputs: tuple[Arrays, ...]
    threads: int
    tasks: tuple[Task, ...]

    @classmethod
    def of(
        cls, network: ir.Model, data: Data, threads: int, tasks: Sequence[Task]
    ) -> LossEstimator:
        """Run the original on ``data``.

        A network with a fixed batch size is run on whole batches. An output whose shape depends on
        the data is replaced by the values it is computed from.

        Args:
            network: The original network.
            data: Examples that no layer is fit to.
            threads: Threads of onnxruntime.
            tasks: What the outputs mean.

        Raises:
            ConverterError: When the outputs of the original have NaN or infinite values.
        """
        batches, outputs = run_original(network, data, threads)
        for arrays in outputs:
            for name, output in arrays.items():
                if not np.isfinite(output).all():
                    raise ConverterError(
                        f"The network gives NaN or infinite values for {data.source} (output "
                        f"{name}), so no other network can be compared; give finite "
                        "sample inputs with --calib."
                    )
        return cls(batches, outputs, threads, tuple(tasks))

    @property
    def names(self) -> list[str]:
        """Names of the compared values."""
        return list(self.outputs[0])

    @property
    def accuracy(self) -> float:
        """Expected accuracy of the original, a fraction; 1 for tasks without classes."""
        return original_accuracy(self.tasks, all_outputs(self.outputs))

    def loss(self, network: ir.Model) -> Loss:
        """Run a version of the original that has values of the same names, and compare."""
        session = open_session(with_outputs(network, self.names), self.threads)
        results = [run(session, feeds) for feeds in self.batches]
        return loss_between(self.tasks, self.outputs, results)


def run_original(
    network: ir.Model, data: Data, threads: int
) -> tuple[tuple[Arrays, ...], tuple[Arrays, ...]]:
    """Run the original on batches of ``data``; see ``LossEstimator.of``.

    Returns:
        The inputs and the outputs by name, batch by batch.
    """
    session = open_session(with_outputs(network, comparison_outputs(network)), threads)
    batch_size = inputs(network)[0].shape[0]
    data = data.whole_batches(batch_size)
    batches = tuple(feeds for _, feeds in data.batches(batch_size or BATCH_SIZE))
    outputs = tuple(numbers(run(session, feeds)) for feeds in batches)
    return batches, outputs


def numbers(outputs: Arrays) -> Arrays:
    """Leave out strings, sequences and maps."""
    return {
        name: array
        for name, array in outputs.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
    }


def loss_between(tasks: Sequence[Task], before: Sequence[Arrays], after: Sequence[Arrays]) -> Loss:
    """Compare two networks by their outputs, batch by batch.

    Without finite values, or with other shapes, everything is lost.
    """
    count = sum(len(next(iter(arrays.values()))) for arrays in before)
    error = channel_errors(before, after, channels_of(tasks))
    if not np.isfinite(error):
        return Loss(Estimate(1.0, 0.0, count), error, error)
    estimates = [estimate(judge_batches(task, before, after), count) for task in tasks]
    worst = max(estimates, key=lambda each: each.high, default=Estimate(0.0, 0.0, count))
    surrogates = [
        np.concatenate([task.surrogate(a, b) for a, b in zip(before, after)]).mean()
        for task in tasks
    ]
    return Loss(worst, error, float(sum(surrogates)))


def channels_of(tasks: Sequence[Task]) -> dict[str, Channels]:
    """Return where the channels of outputs are, by output name, for those that need no guess."""
    channels = {}
    for task in tasks:
        if isinstance(task, Regress):
            channels[task.outputs[0]] = task.channels
        elif isinstance(task, Classify) and task.classes > 2:  # all scores share a unit
            channels[task.outputs[0]] = Channels(1, groups=(tuple(range(task.classes)),))
    return channels


def judge_batches(task: Task, before: Sequence[Arrays], after: Sequence[Arrays]) -> Judgement:
    """Judge two networks by one task, without labels."""
    return task.judge(concatenated([task.compare(a, b, None) for a, b in zip(before, after)]))


def original_accuracy(tasks: Sequence[Task], outputs: Arrays) -> float:
    """Estimate the accuracy of a network from its own probabilities; 1 without classes."""
    classes = [task for task in tasks if isinstance(task, Classify)]
    return classes[0].accuracy(outputs[classes[0].outputs[0]]) if classes else 1.0


def all_outputs(batches: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Concatenate the outputs of batches by name."""
    return {name: np.concatenate([arrays[name] for arrays in batches]) for name in batches[0]}
