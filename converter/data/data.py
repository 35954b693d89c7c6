"""Sample, training and evaluation data, as dictionaries of arrays by input name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter.errors import ConverterError

Arrays = dict[str, np.ndarray]
Batch = tuple[Arrays, "np.ndarray | None"]
LoadBatch = Callable[[np.ndarray, "np.random.Generator | None"], Batch]


@dataclass(frozen=True)
class Data:
    """Inputs that are read when needed.

    Attributes:
        count: Number of examples.
        read: Indices (n,) -> arrays (n, ...) by input name, ready for the network.
        labels: Classes, (count,) integers, or None.
        source: What the user named.
        vary: As ``read``, of examples changed at random by a generator; None where there is no
            way to change them that keeps what they show.
        lessons: Indices (n,) and a generator, if they are to be changed at random -> inputs, and
            labels (n, ...) that are read with them or are no classes; None where none are.
    """

    count: int
    read: Callable[[np.ndarray], Arrays]
    labels: np.ndarray | None
    source: str
    vary: Callable[[np.ndarray, np.random.Generator], Arrays] | None = None
    lessons: LoadBatch | None = None

    def lesson(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """Read examples (n, ...), with ``rng`` changed at random where they can be; and labels."""
        if self.lessons is not None:
            return self.lessons(indices, rng)
        feeds = self.read(indices) if rng is None or self.vary is None else self.vary(indices, rng)
        return feeds, None if self.labels is None else self.labels[indices]

    def varied(self, seed: int) -> Data:
        """Change examples at random, the same way whenever the same are read together."""

        def lesson(indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
            return self.lesson(indices, np.random.default_rng((seed, int(indices[0]))))

        return replace(self, read=lambda indices: lesson(indices, None)[0], lessons=lesson)

    def still(self) -> Data:
        """Change nothing at random."""
        lessons = self.lessons
        unchanged = None if lessons is None else lambda indices, rng: lessons(indices, None)
        return replace(self, vary=None, lessons=unchanged)

    def unlabelled(self) -> Data:
        """Forget all labels."""
        return replace(self, labels=None, lessons=None)

    def labelled(self, labels: np.ndarray) -> Data:
        """Add labels (N, ...); only those that are classes hold of examples that are changed.

        Raises:
            ConverterError: When they are no numbers, or not as many as there are examples.
        """
        if are_classes(labels, self.count, self.source):
            return replace(self, labels=labels)
        return replace(self, lessons=lambda indices, rng: (self.read(indices), labels[indices]))

    def spans(self, size: int) -> Iterator[np.ndarray]:
        """Iterate over the indices of batches, in order; the last may have fewer than ``size``."""
        for start in range(0, self.count, size):
            yield np.arange(start, min(start + size, self.count))

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Iterate over (indices, arrays), in order."""
        for indices in self.spans(size):
            yield indices, self.read(indices)

    def sample(self, count: int, seed: int) -> Data:
        """Choose ``count`` examples at random, or all if there are fewer."""
        return self.split_off(count, seed)[0]

    def split_off(self, count: int, seed: int) -> tuple[Data, Data | None]:
        """Part off ``count`` examples at random; the second part is None where none is left."""
        if count >= self.count:
            return self, None
        order = np.random.default_rng(seed).permutation(self.count)
        return self.take(np.sort(order[:count])), self.take(order[count:])

    def filled(self, count: int) -> Data:
        """Repeat the examples until there are ``count``."""
        return self.take(np.arange(count) % self.count) if count > self.count else self

    def take(self, picked: np.ndarray) -> Data:
        """Restrict to the examples ``picked``."""
        labels = None if self.labels is None else self.labels[picked]
        read, vary, lessons = self.read, self.vary, self.lessons
        return replace(
            self,
            count=len(picked),
            labels=labels,
            read=lambda indices: read(picked[indices]),
            vary=None if vary is None else lambda indices, rng: vary(picked[indices], rng),
            lessons=None if lessons is None else lambda indices, rng: lessons(picked[indices], rng),
        )


def random_data(
    shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, np.dtype], count: int, seed: int
) -> Data:
    """Make ``count`` random examples: normal floats; zeros where the type is not a float.

    Args:
        shapes: By input name; the first axis is the batch's and not used.
        dtypes: By input name.
        count: Number of examples.
        seed: Of the numbers.
    """

    def read(indices: np.ndarray) -> Arrays:
        rows = [np.random.default_rng((seed, int(index))) for index in indices]
        return {
            name: np.stack(
                [
                    rng.standard_normal(tuple(shape[1:]))
                    if np.issubdtype(dtypes[name], np.floating)
                    else np.zeros(tuple(shape[1:]))
                    for rng in rows
                ]
            ).astype(dtypes[name])
            for name, shape in shapes.items()
        }

    return Data(count, read, None, "random numbers")


def conform(
    data: Data, shapes: Mapping[str, Sequence[int | None]], dtypes: Mapping[str, np.dtype]
) -> Data:
    """Check data against a network's inputs and cast it to their types.

    Args:
        data: What was read.
        shapes: By input name; None where a size is free. The first axis is the batch's.
        dtypes: By input name.

    Raises:
        ConverterError: When an input's shape does not fit.
    """
    first = data.read(np.arange(1))
    for name, shape in shapes.items():
        got = first[name].shape[1:]
        if len(got) != len(shape) - 1 or any(
            want not in (None, n) for want, n in zip(shape[1:], got)
        ):
            wanted = ",".join("?" if n is None else str(n) for n in shape[1:])
            raise ConverterError(
                f"Data {data.source} has examples of shape {','.join(map(str, got))} for input "
                f"{name!r}; the network takes {wanted}."
            )
    read, vary, lessons = data.read, data.vary, data.lessons

    def cast(arrays: Arrays) -> Arrays:
        if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays.values()):
            raise ConverterError(f"Data {data.source} holds NaN or infinite values.")
        return {name: array.astype(dtypes[name], copy=False) for name, array in arrays.items()}

    def lesson(indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
        assert lessons is not None
        feeds, labels = lessons(indices, rng)
        return cast(feeds), labels

    return replace(
        data,
        read=lambda indices: cast(read(indices)),
        vary=None if vary is None else lambda indices, rng: cast(vary(indices, rng)),
        lessons=None if lessons is None else lesson,
    )


def from_arrays(
    arrays: Mapping[str, np.ndarray], source: str, names: Sequence[str] | None = None
) -> Data:
    """Wrap arrays (N, ...) by input name; ``y``, if there and no input, is the labels.

    Args:
        arrays: By input name.
        source: Words that say what they are.
        names: The network's inputs; whatever is there if left out.

    Raises:
        ConverterError: When an input is missing or unknown, or the arrays do not fit together.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    labels = found.pop("y", None) if "y" not in (names or ()) else None
    names = list(found) if names is None else names
    if not found or set(found) != set(names):
        raise ConverterError(
            f"{source} must have the network's inputs {', '.join(names)}, not "
            f"{', '.join(sorted(found)) or 'none'}."
        )
    found = {name: found[name] for name in names}
    check_arrays(found, source)
    count = len(found[names[0]])
    data = Data(count, lambda indices: {n: a[indices] for n, a in found.items()}, None, source)
    return data if labels is None else data.labelled(labels)


def check_arrays(arrays: Mapping[str, np.ndarray], source: object) -> None:
    """Check arrays (N, ...) by input name.

    Raises:
        ConverterError: When one holds no numbers, or there are not as many examples of each.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ConverterError(f"Array {name!r} of {source} holds {array.dtype}, not numbers.")
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise ConverterError(f"{source} must hold the same number of examples, above 0, per input.")


def are_classes(labels: np.ndarray, count: int, source: str) -> bool:
    """Tell whether labels of ``count`` examples are one integer each.

    Raises:
        ConverterError: When they are no numbers, or not as many as there are examples.
    """
    if labels.dtype.kind not in "fiub" or not labels.ndim or len(labels) != count:
        raise ConverterError(
            f"The labels y of {source} must be numbers for each of {count} examples, not "
            f"{labels.dtype} of shape {labels.shape}."
        )
    return labels.ndim == 1 and labels.dtype.kind in "iu"
