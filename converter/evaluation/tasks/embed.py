"""``Embed``: a vector for each example, which is compared by its direction."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

import numpy as np

from converter.data.data import Arrays
from converter.errors import ConverterError
from converter.evaluation.tasks.class_scores import valid_examples, whole_numbers
from converter.evaluation.tasks.task import Judgement, jackknife

MIN_DISTANCE = 1e-4  # mean cosine distance of different examples below which it counts as this
CHUNK = 1024  # examples whose cosines to all others are computed together
TINY = 1e-12


@dataclass(frozen=True)
class Embed:
    """A vector for each example; its direction counts.

    A point is a hundredth of the mean cosine distance (1 - cosine) between different examples of
    the original: lost = (1 - mean cosine of the two networks' vectors of an example) / (1 - mean
    cosine of the original's vectors of different examples). With labels that name who or what an
    example shows, it is a hundredth of the examples whose nearest neighbour has the same label.

    Attributes:
        outputs: The name of the output (N, D).
        distance: Mean cosine distance between different examples of the original, for
            ``surrogate``.
    """

    name: ClassVar[str] = "embed"
    unit: ClassVar[str] = "mean distance between examples"
    outputs: tuple[str, ...]
    distance: float

    @classmethod
    def of(cls, name: str, output: np.ndarray) -> Embed:
        """Describe an output (N, D) by the original's vectors for sample inputs.

        Raises:
            ConverterError: When the output is not one vector an example.
        """
        if output.dtype.kind != "f" or output.ndim < 2 or output[0].size < 2:
            raise ConverterError(
                f"--task embed does not fit output {name!r} of shape {output.shape}: it is no "
                "vector an example."
            )
        vectors = directions(output)
        return cls((name,), float(mean_distance(vectors.sum(0), len(vectors))))

    def check_labels(self, labels: np.ndarray) -> str | None:
        """Say in a sentence why labels (N,) do not fit; None if they do."""
        if labels.ndim != 1 or not whole_numbers(labels):
            return (
                "Labels of --task embed must be whole numbers that name who or what an example "
                f"shows (N,), not {labels.dtype} of shape {labels.shape}."
            )
        if len(np.unique(labels)) in (1, len(labels)):
            return (
                "Labels of --task embed must have two examples or more of one label, and two "
                "labels or more."
            )
        return None

    def compare(self, before: Arrays, after: Arrays, labels: np.ndarray | None) -> Arrays:
        """Return cosines (n,) and directions (n, D), and labels (n,) where there are any."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        valid = valid_examples(a, b)
        first = directions(a)
        second = np.where(valid[:, None], directions(b if valid.any() else a), first)
        rows = {
            "valid": valid,
            "cosine": cosines(first, second),
            "before": first.astype(np.float32),
            "after": second.astype(np.float32),
        }
        return rows if labels is None else rows | {"label": labels}

    def judge(self, rows: Arrays) -> Judgement:
        """Judge the loss of direction, or of the right nearest neighbours."""
        cosine, before, after = rows["cosine"], rows["before"], rows["after"]
        details = {"mean_cosine": float(cosine.mean()), "lowest_cosine": float(cosine.min())}
        if not rows["valid"].all():
            return Judgement(inf, 0.0, details=details)
        count = len(cosine)
        if count > 1:
            nearest = nearest_neighbours(before), nearest_neighbours(after)
            details["same_neighbour"] = float((nearest[0] == nearest[1]).mean())
        if "label" in rows and count > 1:
            hits = [(rows["label"][n] == rows["label"]).astype(float) for n in nearest]
            change = hits[0] - hits[1]
            error = float(change.std()) / sqrt(count)
            scores = float(hits[0].mean()), float(hits[1].mean())
            return Judgement(float(change.mean()), error, *scores, details)
        columns = np.hstack([1 - cosine[:, None], np.ones((count, 1)), before])
        return Judgement(*jackknife(columns, _loss), details=details)

    def surrogate(self, before: Arrays, after: Arrays) -> np.ndarray:
        """Return the cosine distance (n,), relative to that between different examples."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        valid = valid_examples(a, b)
        if not valid.any():
            return np.full(len(valid), inf)
        return np.where(valid, (1 - cosines(directions(a), directions(b))) / self.distance, inf)


def directions(output: np.ndarray) -> np.ndarray:
    """Return vectors (N, ...) as (N, D), scaled to length 1; vectors of zeros stay."""
    vectors = output.reshape(len(output), -1).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, TINY))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosines (n,) of directions (n, D); 1 for two vectors of zeros."""
    return np.asarray(1 - np.square(a - b).sum(1) / 2)


def mean_distance(total: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Return the mean cosine distance of different examples.

    Args:
        total: (..., D) sum of their directions.
        count: (...) how many there are. Where there is one, the distance is 1, that of vectors at
            random.
    """
    pairs = np.asarray(count) * (np.asarray(count) - 1.0)
    cosine = (np.square(total).sum(-1) - count) / np.maximum(pairs, 1)
    return np.where(pairs > 0, np.maximum(1 - cosine, MIN_DISTANCE), 1.0)


def nearest_neighbours(vectors: np.ndarray) -> np.ndarray:
    """Return the index of the example with the largest cosine to each (N,), not itself."""
    nearest = []
    for start in range(0, len(vectors), CHUNK):
        cosines = vectors[start : start + CHUNK] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        nearest.append(cosines.argmax(1))
    return np.concatenate(nearest)


def _loss(sums: np.ndarray) -> np.ndarray:
    """Return the loss of sums (..., 2 + D): cosine distances, examples, directions."""
    return np.asarray(sums[..., 0] / sums[..., 1] / mean_distance(sums[..., 2:], sums[..., 1]))
