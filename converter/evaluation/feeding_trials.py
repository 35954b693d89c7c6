"""Try the original on the same images, prepared in other ways."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from converter.data.data import Arrays, Data
from converter.errors import ConverterError
from converter.evaluation.feeding import Images, reordered
from converter.evaluation.information import information, varying_share
from converter.evaluation.tasks.classify import Classify
from converter.evaluation.tasks.regress import Regress
from converter.options import ImageOptions
from converter.runtime.ort import run
from converter.runtime.runtime import Session

MIN_EXAMPLES, MAX_EXAMPLES, BATCH_SIZE, SEED = 16, 256, 16, 0
MAX_MACS = 4e11  # multiply-accumulates for all examples: some 20 s on one core
MAX_BYTES = 2**27  # of inputs and outputs that are held in memory
Z_BETTER = 3.5  # standard errors; up to 20 ways are tried
# What another way must gain. In accuracy; in nats without labels: networks that were fed rightly
# gained nothing by others, and those without their normalisation 0.65 nats and more by it.
MIN_GAIN, MIN_NATS = 0.03, 0.3
MIN_SHARE, SURE_SHARE = 0.5, 0.9  # of the scores that must vary, for classes and unknown vectors


@dataclass(frozen=True)
class Examples:
    """Examples that the original was run on.

    Attributes:
        sizes: Number of examples of each batch.
        batches: Inputs by name.
        outputs: The original's outputs by name.
        labels: Labels (N, ...), or None.
        source: Name of the data.
    """

    sizes: tuple[int, ...]
    batches: tuple[Arrays, ...]
    outputs: tuple[Arrays, ...]
    labels: np.ndarray | None
    source: str

    @classmethod
    def of(cls, session: Session, data: Data, batch_size: int | None, macs: int) -> Examples:
        """Run the original on up to 256 random examples.

        Args:
            session: The original.
            data: Inputs, labelled if possible.
            batch_size: The batch size that the network has fixed, or None.
            macs: Multiply-accumulates of the network for one example.
        """
        size = batch_size or min(BATCH_SIZE, data.count)
        first = data.read(np.arange(size) % data.count)
        arrays = [*first.values(), *run(session, first).values()]
        nbytes = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) // size
        affordable = max(min(MAX_BYTES // max(nbytes, 1), int(MAX_MACS / max(macs, 1))), 1)
        count = min(data.count, MAX_EXAMPLES, max(affordable, MIN_EXAMPLES))
        chosen = np.random.default_rng(SEED).permutation(data.count)[:count]
        if batch_size is not None:
            chosen = np.resize(chosen, max(count // size, 1) * size)
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        read = [data.batch(part) for part in parts]
        batches = tuple(feeds for feeds, _ in read)
        labels = [part for _, part in read if part is not None]
        outputs = tuple(run(session, feeds) for feeds in batches)
        joined = np.concatenate(labels) if labels else None
        return cls(tuple(map(len, parts)), batches, outputs, joined, data.source)

    @property
    def count(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    def input(self, name: str) -> np.ndarray | None:
        """Return an input of all examples (N, ...); None if it has no axis of examples."""
        return self._joined([feeds[name] for feeds in self.batches])

    def output(self, name: str) -> np.ndarray | None:
        """Return an output of all examples (N, ...); None if it has no axis of examples."""
        return self._joined([arrays[name] for arrays in self.outputs])

    def _joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
        same = len({array.shape[1:] for array in arrays}) == 1
        if not same or tuple(array.shape[:1] for array in arrays) != tuple(zip(self.sizes)):
            return None
        return np.concatenate(arrays)


@dataclass(frozen=True)
class Better:
    """A way to prepare the images that suits the original better.

    Attributes:
        options: The options of images.
        before: Accuracy as the images are fed now; nats of information without labels.
        after: The same with ``options``.
    """

    options: ImageOptions
    before: float
    after: float


@dataclass(frozen=True)
class Trials:
    """The original and the examples to try it on.

    Attributes:
        session: The original.
        task: Its classes, or a vector that may be class scores.
        examples: The examples as they are fed now; ``labels`` are classes (N,), or None.
        name: The input that takes images.
        images: The images behind it.
    """

    session: Session
    task: Classify | Regress
    examples: Examples
    name: str
    images: Images

    def better(self, rescaled: bool) -> Better | None:
        """Return the best other way to prepare the images, if it is better for sure.

        The ways are compared on half of the examples, and the best on all of them.

        Args:
            rescaled: Whether to try other means and standard deviations, too.
        """
        fed, labelled = self.images.fed, self.examples.labels is not None
        half = -(-self.examples.count // 2)
        before = self._merits(self._scores(self.examples.outputs))
        merits = {fed: before[:half].mean()}

        def screen(ways: Iterable[ImageOptions]) -> ImageOptions:
            for options in ways:
                if options not in merits:
                    merits[options] = self._merits(self._attempt(options, half)).mean()
            return max(merits, key=lambda options: float(merits[options]))

        best = screen(self.images.normalisations() if rescaled else ())
        if labelled or best != fed:
            best = screen([*reordered(fed), *reordered(best)])
        if best == fed:
            return None
        scores = self._attempt(best, self.examples.count)
        after = self._merits(scores)
        least = MIN_SHARE if isinstance(self.task, Classify) else SURE_SHARE
        if not labelled and varying_share(scores) < least:
            return None
        if not significant(after - before, MIN_GAIN if labelled else MIN_NATS):
            return None
        return Better(best, float(before.mean()), float(after.mean()))

    def _attempt(self, options: ImageOptions, count: int) -> np.ndarray:
        """Return the scores (n, C) of the first ``count`` examples, NaN if they do not fit."""
        batches, start = [], 0
        for feeds, size in zip(self.examples.batches, self.examples.sizes):
            if start >= count:
                break
            part = self.images.fed_with(options, slice(start, start + size))
            batches.append(feeds | {self.name: part.astype(feeds[self.name].dtype)})
            start += size
        try:
            return self._scores([run(self.session, feeds) for feeds in batches])
        except ConverterError:  # another layout has another shape
            return np.full((start, 2), np.nan)

    def _scores(self, outputs: Iterable[Arrays]) -> np.ndarray:
        """Return the class scores (n, C) among outputs."""
        rows = np.concatenate([arrays[self.task.outputs[0]] for arrays in outputs])
        return self.task.logits(rows) if isinstance(self.task, Classify) else rows

    def _merits(self, scores: np.ndarray) -> np.ndarray:
        """Return for each example how well the scores (n, C) fit it: hits, or information."""
        labels = self.examples.labels
        if not np.isfinite(scores).all():
            return np.full(len(scores), -np.inf)
        if labels is None:
            return information(scores)
        return np.asarray(scores.argmax(1) == labels[: len(scores)], np.float64)


def significant(gain: np.ndarray, least: float) -> bool:
    """Whether the mean gain (N,) of paired examples is above 0 for sure, and at least ``least``."""
    mean, error = float(gain.mean()), float(gain.std()) / math.sqrt(len(gain))
    return mean >= least and mean > Z_BETTER * error
