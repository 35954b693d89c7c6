"""Networks that say they take any batch but take one example at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from converter.errors import ConverterError
from converter.graph.differences import difference
from converter.graph.network import inputs, open_session
from converter.graph.outputs import data_dependent_shapes, random_values
from converter.runtime.ort import run

# Relative difference of an example's outputs in a batch and alone; dynamic quantization makes 0.01.
MIXED = 0.05


def takes_batches(network: ir.Model, feeds: Mapping[str, np.ndarray]) -> bool:
    """Whether a network with a free batch axis gives two examples what it gives each alone.

    Outputs that depend on random numbers, or whose shape depends on the data, are not compared.

    Args:
        network: The network.
        feeds: Two examples, (2, ...) by input name.
    """
    first = [item.shape[0] if item.shape else 1 for item in inputs(network)]
    if any(size is not None for size in first):
        return True
    session = open_session(network)
    alone = [run(session, {n: a[i : i + 1] for n, a in feeds.items()}) for i in range(2)]
    try:
        together = run(session, feeds)
    except ConverterError:
        return False
    unstable = data_dependent_shapes(network) | random_values(network)
    return not any(
        _mixed(np.asarray(array), [np.asarray(outputs[name]) for outputs in alone])
        for name, array in together.items()
        if name not in unstable and isinstance(array, np.ndarray) and array.dtype.kind == "f"
    )


def _mixed(together: np.ndarray, alone: list[np.ndarray]) -> bool:
    """Whether an output for two examples is not that of both alone, along one axis."""
    shape = alone[0].shape
    if alone[1].shape != shape or together.ndim != len(shape):
        return False
    axes = [axis for axis, size in enumerate(together.shape) if size != shape[axis]]
    if len(axes) != 1 or together.shape[axes[0]] != 2 * shape[axes[0]]:
        return False
    distance = difference(np.concatenate(alone, axes[0]), together)
    return not distance <= MIXED  # also true of NaN


def with_fixed_batch(network: ir.Model, size: int) -> ir.Model:
    """Return a copy whose inputs, and the values with the same free first axis, have one batch."""
    copy = network.clone()
    shapes = [v.shape for v in copy.graph.inputs if v.shape is not None and len(v.shape)]
    symbols = {shape[0].value for shape in shapes if not isinstance(shape[0], int)} - {None}
    for value in [*copy.graph.inputs, *(v for node in copy.graph for v in node.outputs)]:
        if value.shape is not None:
            fed = value.is_graph_input() and not value.is_initializer()
            value.shape = ir.Shape(
                [
                    size
                    if isinstance(dim, ir.SymbolicDim)
                    and (dim.value in symbols or (fed and axis == 0))
                    else dim
                    for axis, dim in enumerate(value.shape)
                ]
            )
    return copy
