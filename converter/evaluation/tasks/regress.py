"""``Regress``: numbers, such as landmarks, images and heat maps, and anything unknown."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np

from converter.data.data import Arrays
from converter.errors import ConverterError
from converter.evaluation.tasks.channels import Channels, Moments, squared_errors
from converter.evaluation.tasks.class_scores import valid_examples
from converter.evaluation.tasks.task import Judgement, jackknife

MAX_JUDGED = 1024  # channels that are judged one by one; of more, neighbours are averaged
MIN_IMAGE = 8  # height and width of an image
IMAGE_CHANNELS = (1, 3, 4)
USUAL_PEAKS = (1.0, 255.0)
MIN_SQUARED_ERROR = 1e-10  # relative to the squared peak, for a PSNR of at most 100 dB


@dataclass(frozen=True)
class Regress:
    """Numbers, channel by channel, each in its own unit.

    A point is a hundredth of the variance of a channel, that of the worst channel: lost = 1 - R²
    of the converted network's values against the original's. With labels it is R² against the
    labels, with the variance of the original's values for that of the labels.

    Attributes:
        outputs: The name of the output.
        shape: The shape of the output for sample inputs.
        channels: Where its channels are.
        variances: Variance of each channel of the original.
        peak: The largest value of an image, for the PSNR; None for anything else.
        assumed: Whether nobody said that the output holds numbers.
    """

    name: ClassVar[str] = "regress"
    unit: ClassVar[str] = "variance of the worst channel"
    outputs: tuple[str, ...]
    shape: tuple[int, ...]
    channels: Channels
    variances: tuple[float, ...]
    peak: float | None = None
    assumed: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        output: np.ndarray,
        channels: Channels | None = None,
        assumed: bool = False,
    ) -> Regress:
        """Describe an output by the original's values for sample inputs.

        Args:
            name: The name of the output.
            output: Values of any shape, of all sample inputs there are.
            channels: Where its channels are; guessed from the shape if left out.
            assumed: Whether nobody said that the output holds numbers.

        Raises:
            ConverterError: When the output does not hold numbers.
        """
        if output.dtype.kind not in "fiub":
            raise ConverterError(f"Output {name!r} holds {output.dtype}, not numbers.")
        channels = channels or Channels.of(output.shape)
        moments = Moments.of(channels.arranged(output))
        peak = _peak(output) if _is_image(output, channels) else None
        variances = tuple(moments.variances(channels.groups).tolist())
        return cls((name,), output.shape, channels, variances, peak, assumed)

    @property
    def doubt(self) -> str | None:
        """A sentence on what else the output may hold; None if it is clear."""
        if not self.assumed or self.peak in USUAL_PEAKS or len(self.variances) < 2:
            return None
        kind, what = "classify", "class scores"
        if len(self.shape) > 2:
            kind, what = "label", "scores of a class for each position"
        sizes = ", ".join(map(str, self.shape[1:]))
        return (
            f"Output {self.outputs[0]!r} (N, {sizes}) is judged as numbers; if it holds {what}, "
            f"add --task {kind}."
        )

    def check_labels(self, labels: np.ndarray) -> str | None:
        """Say in a sentence why labels do not fit; None if they do."""
        shape = tuple(n for axis, n in enumerate(self.shape) if axis != self.channels.batch_axis)
        if labels.shape[1:] != shape and not (labels.ndim == 1 and shape == (1,)):
            expected = ", ".join(["N", *map(str, shape)])
            return (
                f"Labels of --task regress must be numbers of shape ({expected}), not "
                f"{labels.shape}."
            )
        if labels.dtype.kind not in "fiub" or not np.isfinite(labels).all():
            return "Labels of --task regress hold NaN or infinite values, or are not numbers."
        return None

    def compare(self, before: Arrays, after: Arrays, labels: np.ndarray | None) -> Arrays:
        """Return relative squared errors of the channels (n, C), and with labels theirs, too."""
        a, b = (np.atleast_1d(arrays[self.outputs[0]]) for arrays in (before, after))
        valid = valid_examples(a, b, self.channels.batch_axis)
        b = b if valid.all() else a
        errors = self._errors(a, b)
        rows = {"valid": valid, "errors": _judged(errors)}
        if self.peak is not None:
            rows["squared"] = (errors * self.variances).mean(1) / self.peak**2
        if labels is not None:
            axis = self.channels.batch_axis
            shape = np.moveaxis(a, axis, 0).shape
            target = np.moveaxis(labels.reshape(shape), 0, axis)
            for key, values in (("before", a), ("after", b)):
                rows[key] = _judged(self._errors(target, values))
        return rows

    def judge(self, rows: Arrays) -> Judgement:
        """Judge the loss of R² of the worst channel."""
        errors = rows["errors"].mean(0)
        worst = int(errors.argmax())
        details = {
            "worst_channel": float(worst * len(self.variances) // len(errors)),
            "worst_channel_rel_error": float(np.sqrt(errors[worst])),
            "mean_rel_error": float(np.sqrt(errors.mean())),
        }
        if not rows["valid"].all():
            return Judgement(inf, 0.0)
        if "squared" in rows:
            details["psnr_db"] = _psnr(rows["squared"])
        if "before" not in rows:
            return Judgement(*_worst(rows["errors"]), details=details)
        change = rows["after"] - rows["before"]
        channel = int(change.mean(0).argmax())
        before, after = (1 - float(rows[key][:, channel].mean()) for key in ("before", "after"))
        return Judgement(*_worst(change), before, after, details)

    def surrogate(self, before: Arrays, after: Arrays) -> np.ndarray:
        """Return the squared error (n,): the mean over the channels, each in its own unit."""
        a, b = (np.atleast_1d(arrays[self.outputs[0]]) for arrays in (before, after))
        valid = valid_examples(a, b, self.channels.batch_axis)
        if not valid.any():
            return np.full(len(valid), inf)
        return np.where(valid, self._errors(a, b).mean(1), inf)

    def _errors(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return squared_errors(a, b, self.channels) / self.variances


def _judged(errors: np.ndarray) -> np.ndarray:
    """Average the errors (n, C) of neighbouring channels where there are too many."""
    count = errors.shape[1]
    if count <= MAX_JUDGED:
        return errors
    edges = np.linspace(0, count, MAX_JUDGED + 1).astype(int)
    return np.asarray(np.add.reduceat(errors, edges[:-1], axis=1) / np.diff(edges))


def _worst(errors: np.ndarray) -> tuple[float, float]:
    """Return the largest mean over examples of the columns (N, C), and its standard error."""
    rows = np.hstack([errors, np.ones((len(errors), 1))])
    return jackknife(rows, lambda sums: (sums[..., :-1] / sums[..., -1:]).max(-1))


def _psnr(squared: np.ndarray) -> float:
    """Return the mean PSNR in dB of squared errors (N,), relative to the squared peak."""
    return float(-10 * np.log10(np.maximum(squared, MIN_SQUARED_ERROR)).mean())


def _is_image(output: np.ndarray, channels: Channels) -> bool:
    if output.ndim != 4 or channels.axis is None:
        return False
    sizes = [size for axis, size in enumerate(output.shape) if axis not in (0, channels.axis)]
    return output.shape[channels.axis] in IMAGE_CHANNELS and min(sizes) >= MIN_IMAGE


def _peak(image: np.ndarray) -> float:
    """Return the peak of an image: 1 or 255 where its range says so, else its range."""
    low, high = float(image.min()), float(image.max())
    for peak in USUAL_PEAKS:
        if low >= -peak / 4 and peak / 4 < high <= 1.25 * peak:
            return peak
    return high - low or 1.0
