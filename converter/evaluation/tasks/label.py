"""The task ``label``: a class per position, as texts or as masks."""

from __future__ import annotations

import numpy as np

from converter.evaluation.tasks.class_scores import ClassScores
from converter.evaluation.tasks.masks import Masks
from converter.evaluation.tasks.texts import Texts, find_blank, text_temperature

MAX_TEXT = 32  # positions of a text without blanks; longer sequences are masks


def label_of(name: str, output: np.ndarray, scores: ClassScores, ctc: bool = True) -> Masks | Texts:
    """Describe an output with a class per position by the original's values for sample inputs.

    A sequence with a blank as in CTC, and one of at most ``MAX_TEXT`` positions, is a text, which
    changes as a whole. Anything else is a mask: images, volumes, and long sequences, for which the
    original's probability of the whole would be near 0.

    Args:
        name: The name of the output.
        output: Scores or classes, as described by ``scores``.
        scores: How to read it.
        ctc: Whether it may be an output of CTC.
    """
    masks = Masks.of(name, output, scores)
    steps = int(np.prod(masks.positions))
    sequence = sum(size > 1 for size in masks.positions) <= 1
    if not sequence or (scores.independent and scores.classes > 1):
        return masks
    rows = scores.arranged(output)
    paths = rows if scores.whole else rows.argmax(1)
    blank = find_blank(paths, scores.classes) if ctc else None
    if blank is None and steps > MAX_TEXT:
        return masks
    temperature = text_temperature(scores, output)
    return Texts((name,), scores, steps, masks.shares, blank, temperature)
