"""Sample, training and evaluation data, as dictionaries of arrays by input name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter.data.casting import cast, shape_advice
from converter.data.labels import are_classes, as_classes
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
        source: Name of the data in messages.
        augment: The same as ``read``, with random changes drawn from a generator; None if no
            random changes are known that keep the label of an example.
        load_batch: Indices (n,) and a generator (None for no random changes) -> inputs and labels
            (n, ...). It is set if labels are read together with the inputs, or are not classes.
        named_classes: How many classes the data name, such as folders of images; None if unknown.
        preprocessing: What is done to images, in words; None if arrays are taken as they are.
        notes: Sentences on the data that the user should read.
    """

    count: int
    read: Callable[[np.ndarray], Arrays]
    labels: np.ndarray | None
    source: str
    augment: Callable[[np.ndarray, np.random.Generator], Arrays] | None = None
    load_batch: LoadBatch | None = None
    named_classes: int | None = None
    preprocessing: str | None = None
    notes: tuple[str, ...] = ()

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """Read inputs (n, ...) and their labels; with ``rng``, augmented if that is possible."""
        if self.load_batch is not None:
            return self.load_batch(indices, rng)
        if rng is None or self.augment is None:
            feeds = self.read(indices)
        else:
            feeds = self.augment(indices, rng)
        return feeds, None if self.labels is None else self.labels[indices]

    def augmented(self, seed: int) -> Data:
        """Return data with every read augmented; the same indices always give the same arrays."""

        def load_batch(indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
            return self.batch(indices, np.random.default_rng((seed, int(indices[0]))))

        return replace(
            self, read=lambda indices: load_batch(indices, None)[0], load_batch=load_batch
        )

    def without_augmentation(self) -> Data:
        """Return the same data without random changes."""
        load_batch = self.load_batch
        plain = None if load_batch is None else lambda indices, rng: load_batch(indices, None)
        return replace(self, augment=None, load_batch=plain)

    def unlabelled(self) -> Data:
        """Return the same data without labels."""
        return replace(self, labels=None, load_batch=None)

    def labelled(self, labels: np.ndarray) -> Data:
        """Add labels (N, ...). Without classes, ``batch`` never augments.

        Whole numbers, one an example, become ``labels`` in any type and also of shape (N, 1), but
        ``batch`` gives them as they are.

        Raises:
            ConverterError: When they are not numbers, or not as many as there are examples.
        """
        if are_classes(labels, self.count, self.source):
            return replace(self, labels=labels)
        return replace(
            self,
            labels=as_classes(labels),
            load_batch=lambda indices, rng: (self.read(indices), labels[indices]),
        )

    def with_classes(self) -> Data:
        """Return the same data, whose batches give ``labels`` if they are known."""
        labels, batch = self.labels, self.batch
        if labels is None or self.load_batch is None:
            return self
        return replace(
            self, load_batch=lambda indices, rng: (batch(indices, rng)[0], labels[indices])
        )

    def noted(self, *notes: str) -> Data:
        """Add sentences to the notes."""
        return replace(self, notes=(*self.notes, *notes))

    def batch_indices(self, size: int) -> Iterator[np.ndarray]:
        """Iterate over the indices of batches, in order; the last may have fewer than ``size``."""
        for start in range(0, self.count, size):
            yield np.arange(start, min(start + size, self.count))

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Iterate over (indices, arrays), in order."""
        for indices in self.batch_indices(size):
            yield indices, self.read(indices)

    def sample(self, count: int, seed: int) -> Data:
        """Choose ``count`` examples at random, or all if there are fewer."""
        return self.split_off(count, seed)[0]

    def split_off(self, count: int, seed: int) -> tuple[Data, Data | None]:
        """Split into ``count`` random examples and the rest; the rest is None if it is empty."""
        if count >= self.count:
            return self, None
        order = np.random.default_rng(seed).permutation(self.count)
        return self.take(np.sort(order[:count])), self.take(order[count:])

    def repeated_to(self, count: int) -> Data:
        """Repeat the examples until there are ``count``."""
        return self.take(np.arange(count) % self.count) if count > self.count else self

    def whole_batches(self, size: int | None) -> Data:
        """Repeat the examples to fill one batch, and drop an incomplete last batch.

        Args:
            size: The batch size that the network has fixed; None keeps all examples.
        """
        if size is None:
            return self
        data = self.repeated_to(size)
        return data.take(np.arange(data.count - data.count % size))

    def take(self, chosen: np.ndarray) -> Data:
        """Restrict to the examples with the indices ``chosen``."""
        labels = None if self.labels is None else self.labels[chosen]
        read, augment, load_batch = self.read, self.augment, self.load_batch
        return replace(
            self,
            count=len(chosen),
            labels=labels,
            read=lambda indices: read(chosen[indices]),
            augment=None if augment is None else lambda indices, rng: augment(chosen[indices], rng),
            load_batch=None
            if load_batch is None
            else lambda indices, rng: load_batch(chosen[indices], rng),
        )


def random_data(
    shapes: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, np.dtype],
    count: int,
    seed: int,
    positive: bool = False,
    whole: int = 1,
) -> Data:
    """Make ``count`` random examples.

    Args:
        shapes: By input name; the first axis, the batch, is not used.
        dtypes: By input name.
        count: Number of examples.
        seed: Seed of the random numbers.
        positive: Whether floats are uniform in 0..1 instead of normal.
        whole: The value of integers, which may be lengths or indices; bytes are uniform.
    """

    def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if dtype == np.uint8:
            return rng.integers(0, 256, shape, np.uint8)
        if dtype.kind in "iub":
            return np.full(shape, whole).astype(dtype)
        return (rng.random(shape) if positive else rng.standard_normal(shape)).astype(dtype)

    def read(indices: np.ndarray) -> Arrays:
        rows = [np.random.default_rng((seed, int(index))) for index in indices]
        return {
            name: np.stack([values(rng, tuple(shape[1:]), dtypes[name]) for rng in rows])
            for name, shape in shapes.items()
        }

    return Data(count, read, None, "random numbers")


def conform(
    data: Data, shapes: Mapping[str, Sequence[int | None]], dtypes: Mapping[str, np.dtype]
) -> Data:
    """Check data against the inputs of a network and cast it to their types.

    Args:
        data: The data as it was read.
        shapes: By input name; None for a free size. The first axis is the batch axis.
        dtypes: By input name.

    Raises:
        ConverterError: When the shape of an input does not fit. The data raise it when read
            if they hold NaN or infinite values, or values that the type of an input cannot hold.
    """
    first = data.read(np.arange(1))
    for name, shape in shapes.items():
        if name not in first:
            raise ConverterError(f"Data {data.source} lacks the network's input {name!r}.")
        sizes = first[name].shape[1:]
        if len(sizes) != len(shape) - 1 or any(
            size not in (None, n) for size, n in zip(shape[1:], sizes)
        ):
            expected = ",".join("?" if n is None else str(n) for n in shape[1:])
            raise ConverterError(
                f"Data {data.source} has examples of shape {','.join(map(str, sizes))} for input "
                f"{name!r}; the network takes {expected}.{shape_advice(sizes, tuple(shape[1:]))}"
            )
    read, augment, load_batch = data.read, data.augment, data.load_batch

    def checked(arrays: Arrays) -> Arrays:
        if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays.values()):
            raise ConverterError(f"Data {data.source} holds NaN or infinite values.")
        return {name: cast(a, dtypes[name], name, data.source) for name, a in arrays.items()}

    def cast_batch(indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
        assert load_batch is not None
        feeds, labels = load_batch(indices, rng)
        return checked(feeds), labels

    return replace(
        data,
        read=lambda indices: checked(read(indices)),
        augment=None if augment is None else lambda indices, rng: checked(augment(indices, rng)),
        load_batch=None if load_batch is None else cast_batch,
    )


def from_arrays(
    arrays: Mapping[str, np.ndarray], source: str, names: Sequence[str] | None = None
) -> Data:
    """Wrap arrays (N, ...) by input name; ``y``, unless it is an input, holds the labels.

    Args:
        arrays: By input name.
        source: A description for messages.
        names: The network's inputs; the names of ``arrays`` if left out.

    Raises:
        ConverterError: When an input is missing or unknown, or the arrays do not fit together.
    """
    inputs = {name: np.asarray(array) for name, array in arrays.items()}
    labels = inputs.pop("y", None) if "y" not in (names or ()) else None
    names = list(inputs) if names is None else names
    if not inputs or set(inputs) != set(names):
        raise ConverterError(
            f"{source} must have the network's inputs {', '.join(names)}, not "
            f"{', '.join(sorted(inputs)) or 'none'}."
        )
    inputs = {name: inputs[name] for name in names}
    check_arrays(inputs, source)
    count = len(inputs[names[0]])
    data = Data(count, lambda indices: {n: a[indices] for n, a in inputs.items()}, None, source)
    return data if labels is None else data.labelled(labels)


def check_arrays(arrays: Mapping[str, np.ndarray], source: object) -> None:
    """Check arrays (N, ...) by input name.

    Raises:
        ConverterError: When an array does not hold numbers, or their numbers of examples differ.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ConverterError(f"Array {name!r} of {source} holds {array.dtype}, not numbers.")
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise ConverterError(f"{source} must hold the same number of examples, above 0, per input.")
