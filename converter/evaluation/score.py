"""Scores of networks on data: accuracy, agreement with the first, and error of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from converter.data.data import Arrays, Data
from converter.errors import ConverterError
from converter.evaluation.loss import channels_of, numbers
from converter.evaluation.tasks.channels import ChannelErrors
from converter.evaluation.tasks.task import Judgement, Task, concatenated
from converter.runtime.ort import run
from converter.runtime.runtime import Session
from converter.timing.race import Interval

FLOATS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
Z_99 = 2.576  # standard errors from the mean to a two-sided 99 % bound
MAX_GROUP_BYTES = 2**27  # of the inputs and outputs of batches that one session runs in a row


@dataclass(frozen=True)
class Score:
    """A network's outputs on data, compared with those of the first network.

    Attributes:
        judgement: The loss by the task that loses most.
        unit: What a point of ``judgement`` is a hundredth of.
        by_output: The loss by every task, by the names of its outputs.
        output_error: RMS error over standard deviation, of the worst channel of the outputs.
    """

    judgement: Judgement
    unit: str
    by_output: Mapping[str, Judgement]
    output_error: float


def score(
    sessions: Sequence[Session],
    data: Data,
    tasks: Sequence[Task],
    batch_size: int,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Score, ...]:
    """Run every session over ``data`` and compare each with the first.

    Args:
        sessions: At least one session; all take the same inputs.
        data: Inputs, with labels for a score against them.
        tasks: What the outputs of the first session mean.
        batch_size: Examples per call.
        progress: Called with the fraction that is done.

    Raises:
        ConverterError: When the outputs differ in shape, or none are numbers.
    """
    rows: list[list[list[Arrays]]] = [[[] for _ in tasks] for _ in sessions]
    errors = [ChannelErrors(channels_of(tasks)) for _ in sessions]
    for indices, labels, outputs in _outputs(sessions, data, batch_size):
        first = outputs[0]
        if not first:
            raise ConverterError("The networks give no arrays of numbers that could be compared.")
        for number, (name, array) in enumerate(first.items()):
            shapes = {o[name].shape if name in o else None for o in outputs} | {array.shape}
            if len(shapes) > 1:
                raise ConverterError(
                    f"Output {name!r}, number {number + 1}, has another shape in another network "
                    f"({', '.join(sorted(map(str, shapes)))}); compare networks with the same "
                    "outputs."
                )
        labelled = None if labels is None else _labelled_task(tasks, labels)
        for session, after in enumerate(outputs):
            errors[session] = errors[session].plus(first, after)
            for number, task in enumerate(tasks):
                given = labels if number == labelled else None
                rows[session][number].append(task.compare(first, after, given))
        progress((int(indices[-1]) + 1) / data.count)
    return tuple(
        _score([task.judge(concatenated(r)) for task, r in zip(tasks, batches)], tasks, error)
        for batches, error in zip(rows, errors)
    )


def _score(judgements: Sequence[Judgement], tasks: Sequence[Task], errors: ChannelErrors) -> Score:
    """Take the task with labels, or the one that loses most."""
    pairs = list(zip(tasks, judgements))
    labelled = [pair for pair in pairs if pair[1].score_before is not None]
    task, worst = max(
        labelled or pairs, key=lambda pair: pair[1].lost + Z_99 * pair[1].standard_error
    )
    return Score(
        judgement=worst,
        unit=task.unit,
        by_output={", ".join(task.outputs): judgement for task, judgement in pairs},
        output_error=errors.worst(),
    )


def _labelled_task(tasks: Sequence[Task], labels: np.ndarray) -> int | None:
    """Return the number of the first task that the labels fit, or None."""
    fitting = (number for number, task in enumerate(tasks) if task.check_labels(labels) is None)
    return next(fitting, None)


def _outputs(
    sessions: Sequence[Session], data: Data, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None, list[Arrays]]]:
    """Iterate over batches: indices, labels, and each session's outputs by the first's names.

    Sessions run groups of batches, of up to ``MAX_GROUP_BYTES``: exclusive ones are opened less
    often, and the threads of the others, which spin for a while after each run, disturb less.
    """
    batches = ((indices, *data.batch(indices)) for indices in data.batch_indices(batch_size))
    group_size = 1
    while group := list(islice(batches, group_size)):
        results = [[numbers(run(s, renamed(f, s))) for _, f, _ in group] for s in sessions]
        size = sum(a.nbytes for batches in results for o in batches for a in o.values())
        size += sum(array.nbytes for _, feeds, _ in group for array in feeds.values())
        group_size = max(MAX_GROUP_BYTES * len(group) // max(size, 1), 1)
        for (indices, _, labels), *outputs in zip(group, *results):
            yield indices, labels, [_named_as(outputs[0], o) for o in outputs]


def _named_as(first: Arrays, outputs: Arrays) -> Arrays:
    """Name outputs as those of the first network, in order; by name if all names match."""
    if first.keys() == outputs.keys():
        return {name: outputs[name] for name in first}
    return dict(zip(first, outputs.values()))


def drop_interval(judgement: Judgement) -> Interval:
    """Return a loss in percentage points, with a 99 % interval."""
    points, margin = 100 * judgement.lost, 100 * Z_99 * judgement.standard_error
    return Interval(points, points - margin, points + margin)


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
