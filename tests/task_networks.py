"""Networks of a layer or two, the tasks of their outputs, and outputs with a class a position."""

import numpy as np
import onnx_ir as ir
from networks import from_text, noise

from converter.evaluation.tasks.class_scores import ClassScores
from converter.evaluation.tasks.find import find_tasks
from converter.evaluation.tasks.label import label_of
from converter.graph.network import inputs, open_session
from converter.graph.outputs import comparison_outputs, with_outputs
from converter.runtime.ort import run


def network(text, metadata=None, **weights):
    model = ir.from_proto(from_text(text, **weights))
    model.metadata_props.update(metadata or {})
    return model


def vector(tail, width=10, name="y", metadata=None):
    """A linear layer; ``tail`` computes the output from ``z`` (N, width)."""
    text = f"g (float[N, 6] x) => (float[N, K] {name}) {{ z = MatMul (x, w) {tail} }}"
    return network(text, metadata, w=noise(6, width), two=np.float32(2))


def image(tail, channels=4, dtype="float"):
    """A convolution; ``tail`` computes the output from ``z`` (N, channels, 8, 8)."""
    text = f"g (float[N, 3, 8, 8] x) => ({dtype} y) {{ z = Conv (x, w) {tail} }}"
    return network(text, w=noise(channels, 3, 1, 1))


def outputs_of(model, feeds):
    return run(open_session(with_outputs(model, comparison_outputs(model))), feeds)


def tasks_of(model, labels=None, count=16, requested=None, **feeds):
    for item in inputs(model):
        shape = [count, *(size or 8 for size in item.shape[1:])]
        feeds.setdefault(item.name, noise(*shape).astype(item.dtype))
    shapes = {name: (1, *array.shape[1:]) for name, array in feeds.items()}
    return find_tasks(model, outputs_of(model, feeds), shapes, labels, requested or {})


def names_of(tasks):
    return [(task.name, task.outputs) for task in tasks]


def task_of(output, ctc=True, **reading):
    return label_of("y", output, ClassScores.of("y", output, **reading), ctc)


def judged(task, before, after, labels=None):
    return task.judge(task.compare({"y": before}, {"y": after}, labels))


def scores_for(classes, count, sure=20.0):
    """Logits (N, C, ...) of a network that is sure of ``classes`` (N, ...)."""
    return sure * np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, 1)
