"""Labels that are classes: which are read as such, and which do not fit a network."""

from __future__ import annotations

import numpy as np

from converter.errors import ConverterError

IGNORED = 255  # the label of what has no class, in masks and in data sets made from them


def are_classes(labels: np.ndarray, count: int, source: str) -> bool:
    """Whether the labels of ``count`` examples are classes: one integer each.

    Raises:
        ConverterError: When they are not numbers, or not as many as there are examples.
    """
    if labels.dtype.kind not in "fiub" or not labels.ndim or len(labels) != count:
        raise ConverterError(
            f"The labels y of {source} must be numbers for each of {count} examples, not "
            f"{labels.dtype} of shape {labels.shape}."
        )
    return labels.ndim == 1 and labels.dtype.kind in "iu"


def as_classes(labels: np.ndarray) -> np.ndarray | None:
    """Return labels as integers (N,): also of shape (N, 1), whole floats, booleans and one-hot.

    Labels (N, C) are one-hot if each row holds a single 1 and zeros.

    Returns:
        The classes, or None if the labels are not one class an example.
    """
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = np.isin(labels, (0, 1)).all() and (np.count_nonzero(labels, axis=1) == 1).all()
        return np.asarray(labels.argmax(1)) if one_hot else None
    column = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if column.ndim != 1 or (column.dtype.kind == "f" and not np.isfinite(column).all()):
        return None
    classes = column.astype(np.int64)
    return classes if np.array_equal(classes, column) else None


def name_class(labels: np.ndarray, classes: int) -> np.ndarray:
    """Tell which labels (N,) name a class; below 0, and 255 of a network of at most 255, do not."""
    return np.asarray((labels >= 0) & ((labels != IGNORED) | (classes > IGNORED)))


def misfit(labels: np.ndarray, classes: int, source: str) -> str | None:
    """Say in a sentence why labels (N,) are not those of a network with ``classes`` classes.

    Returns:
        The sentence, or None if all labels that name a class are below ``classes``.
    """
    named = labels[name_class(labels, classes)]
    run = f"The labels y of {source} run from {labels.min()} to {labels.max()}"
    has = f"the network has {classes} classes, 0 to {classes - 1}"
    if classes == 2 and set(np.unique(labels)) == {-1, 1}:
        return f"{run}; {has}. Give 0 for -1."
    if not len(named):
        return f"{run}, and none of them names a class; {has}."
    if named.max() < classes:
        return None
    if (named.min(), named.max()) == (1, classes):
        return f"{run}; {has}. Subtract 1 from the labels."
    return f"{run}; {has}. Give labels of this network, or leave them out."
