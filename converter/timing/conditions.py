"""The conditions of timing: inputs, machine, and a network without its weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.data.data import Arrays, random_data
from converter.models.problem import Problem
from converter.options import Options
from converter.runtime.ort import OnnxRuntime, cpu_model

WEIGHT_FIELDS = ("raw_data", "float_data", "double_data", "int32_data", "external_data")


def timed_shapes(problem: Problem, options: Options) -> dict[str, tuple[int, ...]]:
    """Return the input shapes for timing, by input name, with the batch size ``--batch-size``."""
    batch = problem.inputs[0].shape[0] or options.timing.batch_size
    return {name: (batch or shape[0], *shape[1:]) for name, shape in problem.shapes.items()}


def timed_feeds(problem: Problem, options: Options) -> Arrays:
    """Return the inputs for timing: sample inputs, or random ones where these have other sizes."""
    shapes = timed_shapes(problem, options)
    batch = next(iter(shapes.values()))[0]
    if problem.calib is not None:
        feeds = problem.calib.read(np.arange(batch) % problem.calib.count)
        if {name: x.shape for name, x in feeds.items()} == shapes:
            return feeds
    dtypes = {item.name: item.dtype for item in problem.inputs}
    return random_data(shapes, dtypes, batch, options.resources.seed).read(np.arange(batch))


def conditions(problem: Problem, options: Options) -> list[object]:
    """List everything that the time of a network depends on.

    Signed integers among the inputs may be lengths or indices; other numbers hardly change it.
    """
    runtime = OnnxRuntime.of(options.timing)
    feeds = timed_feeds(problem, options)
    return [
        architecture(problem.network),
        [(name, *x.shape) for name, x in sorted(feeds.items())],
        [x for _, x in sorted(feeds.items()) if x.dtype.kind in "ib"],
        cpu_model(),
        runtime.version,
        runtime.threads,
        runtime.provider,
        options.search.int8,
    ]


def architecture(network: ir.Model) -> bytes:
    """Serialize a network without its weights; networks with the same bytes have the same times.

    Notes of the exporter, such as paths of source files, are left out, too.
    """
    model = ir.to_proto(network)
    nodes = model.graph.node
    values = [a.t for n in nodes if n.op_type == "Constant" for a in n.attribute if a.HasField("t")]
    for tensor in [*model.graph.initializer, *values]:
        for field in WEIGHT_FIELDS:
            tensor.ClearField(field)
    for node in nodes:
        for field in ("doc_string", "metadata_props"):
            node.ClearField(field)
    return bytes(model.SerializeToString(deterministic=True))
