"""Errors of an output channel by channel, each in its own unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from converter.data.data import Arrays

MIN_SHARE_OF_SIZE = 1e-3  # least standard deviation of a channel, relative to its size (RMS)
MIN_SHARE_OF_GROUP = 1e-2  # least variance of a channel, relative to the mean of its group
MIN_SHARE_OF_OUTPUT = 1e-8  # least variance of a channel, relative to the median of all
FEW_VALUES = 8  # the last axis holds channels if it has at most so many values and axis 1 has more
MAX_VALUES = 2**22  # of an example that are looked at together
MUCH_SHORTER = 4  # or if it is so many times shorter than axis 1


@dataclass(frozen=True)
class Channels:
    """Where an output has its examples and channels, and which channels share a unit.

    Attributes:
        axis: Axis of the channels; None if there is one channel.
        batch_axis: Axis of the examples.
        groups: Indices of the channels that share a unit; a channel in no group stands alone.
    """

    axis: int | None
    batch_axis: int = 0
    groups: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, shape: tuple[int, ...], batch_axis: int = 0) -> Channels:
        """Guess the channels of an output from its shape; each stands alone."""
        return cls(channel_axis(shape, batch_axis), batch_axis)

    def arranged(self, output: np.ndarray) -> np.ndarray:
        """Return an output as (n, channels, positions)."""
        if output.ndim == 0:
            return output.reshape(1, 1, 1)
        rows = np.moveaxis(output, self.batch_axis, 0)
        if self.axis is None:
            return rows.reshape(len(rows), 1, -1)
        axis = self.axis + (self.axis < self.batch_axis)
        return np.moveaxis(rows, axis, 1).reshape(len(rows), rows.shape[axis], -1)


def channel_axis(shape: tuple[int, ...], batch_axis: int = 0) -> int | None:
    """Guess the axis of the channels.

    It is axis 1, or the last where that one is short, as in (N, anchors, 4), or where the others
    are those of a square image.
    """
    axes = [axis for axis in range(len(shape)) if axis != batch_axis]
    if not axes:
        return None
    first, last = axes[0], axes[-1]
    short = shape[last] <= FEW_VALUES < shape[first] or MUCH_SHORTER * shape[last] <= shape[first]
    if len(axes) == 3:
        return last if shape[axes[0]] == shape[axes[1]] != shape[last] else first
    return last if len(axes) == 2 and short else first


@dataclass(frozen=True)
class Moments:
    """Sums over examples, from which the variances of channels come.

    Attributes:
        count: Number of examples.
        shift: (C, positions) values near the mean, so that squares do not cancel.
        sums: (C, positions) sums of values - shift; of some positions where there are many.
        squares: (C,) sums of (values - shift)², averaged over the positions.
        sizes: (C,) sums of values², averaged over the positions.
    """

    count: int
    shift: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Sum over the examples of values (n, C, positions)."""
        shift = _some_positions(rows[:1])[0]
        zeros = np.zeros(len(shift))
        return cls(0, shift, np.zeros(shift.shape), zeros, zeros).plus(rows)

    def plus(self, rows: np.ndarray) -> Moments:
        """Add the examples of values (n, C, positions)."""
        sums, squares, sizes = self.sums, self.squares, self.sizes
        for part in _parts(rows):
            values = _some_positions(part)
            moved = values - self.shift
            sums = sums + moved.sum(0)
            squares = squares + np.square(moved).mean(-1).sum(0)
            sizes = sizes + np.square(values).mean(-1).sum(0)
        return Moments(self.count + len(rows), self.shift, sums, squares, sizes)

    def variances(self, groups: Sequence[Sequence[int]] = ()) -> np.ndarray:
        """Return the variance of each channel (C,), by which its errors are measured.

        It is the variance over the examples at each position, averaged over the positions: what is
        the same in all examples, such as a mean face or a grid of anchors, is no size to measure
        an error by. With one example it is the variance over the positions.

        A channel that hardly varies is given the largest of: a hundredth of the mean variance of
        its group, (a thousandth of its own size)², 1e-8 of the median variance of the output.

        Args:
            groups: Indices of channels that share a unit; a channel in no group stands alone.
        """
        if self.count > 1:
            means = np.square(self.sums / self.count).mean(-1)
            variances = np.maximum(self.squares / self.count - means, 0)
        else:
            variances = self.shift.var(-1)
        varying = variances[variances > 0]
        least = MIN_SHARE_OF_OUTPUT * np.median(varying) if len(varying) else 0.0
        floors = np.maximum(MIN_SHARE_OF_SIZE**2 * self.sizes / self.count, least)
        for group in groups:
            indices = list(group)
            mean = MIN_SHARE_OF_GROUP * variances[indices].mean()
            floors[indices] = np.maximum(floors[indices], mean)
        raised = np.maximum(variances, floors)
        return np.where(raised > 0, raised, 1.0)


@dataclass(frozen=True)
class ChannelErrors:
    """Relative errors of the channels of a network's outputs, as sums over batches.

    Attributes:
        channels: Where the channels are, by output name; guessed from the shape of other outputs.
        moments: Of the original's values, by output name.
        squares: Sums over examples of the squared errors (C,), by output name.
        broken: Whether a shape differed or a value was not finite.
    """

    channels: Mapping[str, Channels] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    squares: Mapping[str, np.ndarray] = field(default_factory=dict)
    broken: bool = False

    def plus(self, before: Arrays, after: Arrays) -> ChannelErrors:
        """Add a batch of the original's outputs and of another network's, by name."""
        shapes_differ = any(after[name].shape != a.shape for name, a in before.items())
        if self.broken or shapes_differ or not all(np.isfinite(b).all() for b in after.values()):
            return replace(self, broken=True)
        moments, squares = dict(self.moments), dict(self.squares)
        for name, a in before.items():
            channels = self._channels(name, a)
            rows = channels.arranged(a)
            moments[name] = moments[name].plus(rows) if name in moments else Moments.of(rows)
            errors = squared_errors(a, after[name], channels).sum(0)
            squares[name] = squares[name] + errors if name in squares else errors
        return replace(self, moments=moments, squares=squares)

    def by_channel(self) -> dict[str, np.ndarray]:
        """Return RMS error / standard deviation of each channel (C,), by output name."""
        errors = {}
        for name, moments in self.moments.items():
            groups = self.channels[name].groups if name in self.channels else ()
            squares = self.squares[name] / moments.count / moments.variances(groups)
            errors[name] = np.sqrt(squares)
        return errors

    def worst(self) -> float:
        """Return the error of the worst channel of all outputs; infinite if anything is broken."""
        if self.broken:
            return inf
        return max((float(errors.max()) for errors in self.by_channel().values()), default=0.0)

    def _channels(self, name: str, output: np.ndarray) -> Channels:
        return self.channels.get(name) or Channels.of(output.shape)


def channel_errors(
    before: Iterable[Arrays], after: Iterable[Arrays], channels: Mapping[str, Channels]
) -> float:
    """Return RMS error / standard deviation of the worst channel of all outputs.

    Args:
        before: The original's outputs by name, batch by batch.
        after: Those of another network.
        channels: Where the channels are, by output name; guessed from the shape of other outputs.

    Returns:
        The error; infinite if shapes differ or ``after`` has values that are not finite.
    """
    errors = ChannelErrors(channels)
    for a, b in zip(before, after):
        errors = errors.plus(a, b)
    return errors.worst()


def squared_errors(before: np.ndarray, after: np.ndarray, channels: Channels) -> np.ndarray:
    """Return mean squared errors (n, C) of the channels of examples."""
    pairs = zip(_parts(channels.arranged(before)), _parts(channels.arranged(after)))
    return np.concatenate([np.square(b.astype(np.float64) - a).mean(-1) for a, b in pairs])


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Split values (n, C, positions) into parts of whole examples that fit in memory."""
    size = max(MAX_VALUES // max(rows[0].size, 1), 1)
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _some_positions(rows: np.ndarray) -> np.ndarray:
    """Return values (n, C, positions) at evenly spaced positions, ``MAX_VALUES`` an example."""
    return rows[:, :, :: max(-(-rows[0].size // MAX_VALUES), 1)].astype(np.float64)
