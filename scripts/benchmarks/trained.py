"""Networks that others trained, each with its inputs, its task and how its loss is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from scripts.benchmarks import boxes, task_losses, trained_inputs
from scripts.benchmarks.suite import Figures
from scripts.benchmarks.task_losses import Measure
from scripts.benchmarks.trained_inputs import Example, Materials

BATCH = 16
FIT_SEED, FRESH_SEED = 1, 2
Arrays: TypeAlias = Mapping[str, np.ndarray]
Run: TypeAlias = Callable[[onnxruntime.InferenceSession, Arrays], list[np.ndarray]]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network of data/networks.

    Attributes:
        name: Name of its file, without the ending.
        title: What it is, for tables.
        task: The name for ``--task``.
        make: Makes one example, or several of one source, with the label ``y`` if there is one.
        measure: How its loss is measured.
        examples: Numbers of examples to convert with, and to judge on.
        batch_axes: Axis of the examples of inputs and outputs where it is not the first, by name.
        scalars: Inputs that are the same for all examples.
        batch: Examples that it takes in one call.
    """

    name: str
    title: str
    task: str
    make: Callable[[np.random.Generator, Materials], Example | Iterator[Example]]
    measure: Measure
    examples: tuple[int, int] = (512, 1024)
    batch_axes: Mapping[str, int] = field(default_factory=dict)
    scalars: Arrays = field(default_factory=dict)
    batch: int = BATCH

    def path(self, folder: Path) -> Path:
        """Give the network's file.

        Raises:
            RuntimeError: When it was not fetched.
        """
        path = folder / f"{self.name}.onnx"
        if not path.exists():
            raise RuntimeError(f"{path} does not exist; run scripts/fetch_networks.py.")
        return path

    def make_examples(self, folder: Path, fresh: bool, seed: int) -> Iterator[Example]:
        """Make examples without end, the same for the same seed."""
        rng, materials = np.random.default_rng(seed), Materials(folder, fresh)
        while True:
            made = self.make(rng, materials)
            yield from [made] if isinstance(made, dict) else made

    def batches(
        self, folder: Path, count: int, fresh: bool, seed: int, size: int = 0
    ) -> Iterator[Arrays]:
        """Make arrays of ``size`` examples (as many as the network takes if 0), by input name."""
        examples = islice(self.make_examples(folder, fresh, seed), count)
        while batch := list(islice(examples, size or self.batch)):
            yield self.stacked(batch)

    def stacked(self, examples: Iterable[Example]) -> dict[str, np.ndarray]:
        """Stack examples along the axis of the examples."""
        rows = list(examples)
        return {
            name: np.stack([row[name] for row in rows], self.batch_axes.get(name, 0))
            for name in rows[0]
        }

    def write(self, path: Path, folder: Path, count: int, fresh: bool, seed: int) -> Path:
        """Write ``count`` examples without labels as .npz, unless they are there."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            (arrays,) = self.batches(folder, count, fresh, seed, count)
            inputs: dict[str, Any] = {n: a for n, a in arrays.items() if n != "y"}
            scratch = path.with_suffix(".partial.npz")
            np.savez(scratch, **(inputs | dict(self.scalars)))
            scratch.replace(path)
        return path

    def run(self, session: onnxruntime.InferenceSession, arrays: Arrays) -> list[np.ndarray]:
        """Run the network on a batch; outputs with the examples first."""
        feeds = {name: array for name, array in arrays.items() if name != "y"} | dict(self.scalars)
        names = [output.name for output in session.get_outputs()]
        outputs = session.run(names, feeds)
        axes = [self.batch_axes.get(name, 0) for name in names]
        return [np.moveaxis(output, axis, 0) for output, axis in zip(outputs, axes)]


def fresh_losses(
    measure: Measure, paths: Mapping[str, Path], batches: Iterable[Arrays], run: Run
) -> dict[str, Figures]:
    """Measure what networks lose against the first of them.

    Args:
        measure: How losses are measured.
        paths: Networks by name.
        batches: Inputs by name, labels as ``y``.
        run: Runs a network on a batch.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    sessions = [onnxruntime.InferenceSession(path, options) for path in paths.values()]
    rows: list[list[np.ndarray]] = [[] for _ in sessions]
    for arrays in batches:
        outputs = [run(session, arrays) for session in sessions]
        for part, after in zip(rows, outputs):
            part.append(measure.rows(outputs[0], after, arrays.get("y")))
    return {name: measure.figures(np.concatenate(part)) for name, part in zip(paths, rows)}


NETWORKS = {
    network.name: network
    for network in (
        TrainedNetwork(
            "opennsfw",
            "OpenNSFW, photographs (ResNet)",
            "classify",
            trained_inputs.opennsfw,
            task_losses.CLASSES,
        ),
        TrainedNetwork(
            "orientation",
            "orientation of pages (PP-LCNet)",
            "classify",
            trained_inputs.orientation,
            task_losses.CLASSES,
        ),
        TrainedNetwork(
            "text_recognition",
            "PP-OCRv4, reads lines (CTC)",
            "label",
            trained_inputs.text_recognition,
            task_losses.read_texts(0, 6624),
        ),
        TrainedNetwork(
            "text_mask",
            "PP-OCRv4, finds text (mask)",
            "label",
            trained_inputs.text_mask,
            task_losses.MASKS,
            (256, 512),
        ),
        TrainedNetwork(
            "captcha",
            "ddddocr, reads short texts (CTC)",
            "label",
            trained_inputs.captcha,
            task_losses.read_texts(0),
            batch_axes={"387": 1},
            batch=1,
        ),
        TrainedNetwork(
            "text_boxes",
            "ddddocr, finds text (YOLOX)",
            "detect",
            trained_inputs.text_boxes,
            task_losses.boxes(boxes.yolox),
            (256, 512),
            batch=1,
        ),
        TrainedNetwork(
            "nudenet",
            "NudeNet, finds people (YOLOv8)",
            "detect",
            trained_inputs.nudenet,
            task_losses.boxes(boxes.yolov8),
            (256, 512),
        ),
        TrainedNetwork(
            "speech_embedding",
            "openWakeWord, embeds speech",
            "embed",
            trained_inputs.speech_embedding,
            task_losses.EMBEDDINGS,
        ),
        TrainedNetwork(
            "speech_quality",
            "DNSMOS, quality of speech",
            "regress",
            trained_inputs.speech_quality,
            task_losses.NUMBERS,
            (256, 512),
        ),
        TrainedNetwork(
            "voice_activity",
            "Silero, finds speech (recurrent)",
            "classify",
            trained_inputs.voice_activity,
            task_losses.SPEECH,
            batch_axes={"state": 1, "stateN": 1},
            scalars={"sr": np.array(16_000)},
        ),
        TrainedNetwork(
            "notes",
            "Basic Pitch, finds notes",
            "label",
            trained_inputs.notes,
            task_losses.NOTES,
            (256, 512),
        ),
        TrainedNetwork(
            "pitch",
            "SwiftF0, pitch of speech and notes",
            "regress",
            trained_inputs.pitch,
            task_losses.PITCHES,
            scalars={"fmin": np.array(46.875, np.float32), "fmax": np.array(2093.75, np.float32)},
            batch=1,
        ),
    )
}
