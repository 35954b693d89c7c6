"""Checks that two versions of a network compute the same values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
from torch import nn

from converter.data.data import Arrays
from converter.decomposition.conv import Chain
from converter.errors import ConverterError, first_line
from converter.graph.external import externals_as_inputs
from converter.graph.network import compute_values, open_session
from converter.graph.outputs import data_dependent_shapes
from converter.graph.rewrite import replace_weights
from converter.graph.survey import Layer
from converter.models.export import flat_outputs, forward
from converter.runtime.ort import run

# Relative difference between two computations of the same network, by the type of the output.
TOLERANCE = {"float32": 1e-3, "float64": 1e-6, "float16": 3e-2}
# Integers come from rounding or argmax, where rounding errors decide ties: 1 % may differ.
INTEGER_TOLERANCE = 1e-2


def check(
    original: ir.Model,
    converted: ir.Model,
    layers: Sequence[Layer],
    chains: Mapping[str, Chain],
    samples: Mapping[str, Arrays],
) -> str | None:
    """Compare a rewritten network with the original that has the chains' dense kernels.

    Args:
        original: The network before.
        converted: The network after.
        layers: The layers of the original, in graph order.
        chains: The chains in place of layers, by layer name.
        samples: Inputs by name, by a description of them.

    Returns:
        A sentence that names the first layer where the networks differ, or None.
    """
    problem = check_graph(converted)
    if problem:
        return problem
    replaced = [layer for layer in layers if layer.name in chains]
    outputs = [str(value.name) for value in original.graph.outputs]
    titles = {layer.output: f"layer {layer.name}" for layer in replaced}
    names = [*titles, *(name for name in outputs if name not in titles)]
    expected_batches = list(
        compute_values(_dense(original, replaced, chains), names, samples.values())
    )
    converted_batches = compute_values(converted, names, samples.values())
    for description, expected in zip(samples, expected_batches):
        try:
            actual = next(converted_batches)
        except ConverterError as error:
            return f"The rewritten network does not run on {description}: {error}"
        for name, distance in _differences(expected, actual, names):
            return (
                f"The rewritten network differs from its own dense kernels by {distance:.1e} on "
                f"{description}, beginning at {titles.get(name, f'output {name}')}."
            )
    return None


def _dense(original: ir.Model, replaced: Sequence[Layer], chains: Mapping[str, Chain]) -> ir.Model:
    """Return the original with the dense kernel of each chain in its layer."""
    dense = {
        layer.output: replace(
            layer.conv,
            kernel=chains[layer.name]
            .dense()
            .kernel.reshape(layer.conv.kernel.shape)
            .astype(layer.conv.kernel.dtype),
            bias=chains[layer.name].steps[-1].bias,
        )
        for layer in replaced
        if layer.conv is not None
    }
    return replace_weights(original, dense)


def check_same(original: ir.Model, network: ir.Model, samples: Mapping[str, Arrays]) -> str | None:
    """Compare a canonical network with the network in the file, by outputs of fixed shape.

    Returns:
        A sentence that says by how much they differ, or None.
    """
    unstable = data_dependent_shapes(original)
    for description, feeds in samples.items():
        expected, actual = (run(open_session(model), feeds) for model in (original, network))
        stable = [name for name in expected if name not in unstable]
        for name, distance in _differences(expected, actual, stable):
            return (
                f"The network as it was read differs from the file by {distance:.1e} on "
                f"{description}, at output {name}."
            )
    return None


def check_graph(model: ir.Model) -> str | None:
    """Run ONNX's checker with full shape inference; return a sentence, or None if it passes.

    External weights are checked as inputs of their types and shapes.
    """
    try:
        onnx.checker.check_model(ir.to_proto(externals_as_inputs(model)), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"The rewritten network is not valid ONNX: {first_line(error)}"
    return None


def _differences(
    expected: Arrays, actual: Arrays, names: Iterable[str]
) -> Iterator[tuple[str, float]]:
    """Iterate over the arrays that differ by more than their tolerance: name and difference.

    Strings, sequences and maps are not compared.
    """
    for name in names:
        array: object = expected[name]
        if isinstance(array, np.ndarray) and array.dtype.kind not in "OSU":
            distance = difference(array, actual[name])
            if not distance <= tolerance(array):  # also true of NaN
                yield name, distance


def difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the relative difference |actual - expected| / |expected|; infinite if shapes differ.

    For integers, the share of elements that differ counts if it is less, because the distance
    between class indices has no meaning. One differing element is ignored.
    """
    if expected.shape != actual.shape:
        return float("inf")
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    relative = float(np.linalg.norm(b - a)) / (float(np.linalg.norm(a)) or 1.0)
    if expected.dtype.kind in "biu":
        return min(relative, max(int(np.count_nonzero(a != b)) - 1, 0) / max(a.size, 1))
    return relative


def tolerance(array: np.ndarray) -> float:
    """Return the largest relative difference from ``array`` that passes."""
    return TOLERANCE.get(array.dtype.name, INTEGER_TOLERANCE)


def check_torch_vs_onnx(
    module: nn.Module, network: ir.Model, samples: Mapping[str, Arrays]
) -> str | None:
    """Compare a torch model with the ONNX network of the same weights.

    Returns:
        A sentence that says by how much they differ, or None.
    """
    session = open_session(network)
    for description, feeds in samples.items():
        outputs = flat_outputs(forward(module, feeds))
        for (name, actual), expected in zip(run(session, feeds).items(), outputs):
            distance = difference(expected.numpy(), actual)
            if not distance <= tolerance(actual):
                return (
                    f"The converted torch model and its ONNX network differ by {distance:.1e} on "
                    f"{description}, at output {name}."
                )
    return None
