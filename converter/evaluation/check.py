"""Whether a rewritten network computes what its chains say, and where it began to differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

# Relative difference of two computations of the same network, by the type of what they give.
TOLERANCE = {"float32": 1e-3, "float64": 1e-6, "float16": 3e-2}
# Whole numbers come of rounding or of an argmax, where a hair decides: a percent may differ.
WHOLE_TOLERANCE = 1e-2


def check(
    original: ir.Model,
    converted: ir.Model,
    layers: Sequence[Layer],
    chains: Mapping[str, Chain],
    samples: Mapping[str, Arrays],
) -> str | None:
    """Hold a rewritten network against the original with each chain's dense kernel in its place.

    Args:
        original: The network before.
        converted: The network after.
        layers: The layers of the original, in graph order.
        chains: What replaced them, by layer name.
        samples: Inputs, by the words that say what they are.

    Returns:
        The sentence that names the layer where the two first differ, or None.
    """
    problem = check_graph(converted)
    if problem:
        return problem
    replaced = [layer for layer in layers if layer.name in chains]
    outputs = [str(value.name) for value in original.graph.outputs]
    places = {layer.output: f"layer {layer.name}" for layer in replaced}
    names = [*places, *(name for name in outputs if name not in places)]
    wanted = list(compute_values(_dense(original, replaced, chains), names, samples.values()))
    found = compute_values(converted, names, samples.values())
    for what, expected in zip(samples, wanted):
        try:
            got = next(found)
        except ConverterError as failure:
            return f"The rewritten network does not run on {what}: {failure}"
        for name in (n for n in names if _numeric(expected[n])):
            error = difference(expected[name], got[name])
            if not error <= tolerance(expected[name]):
                return (
                    f"The rewritten network differs from its own dense kernels by {error:.1e} on "
                    f"{what}, beginning at {places.get(name, f'output {name}')}."
                )
    return None


def _dense(original: ir.Model, replaced: Sequence[Layer], chains: Mapping[str, Chain]) -> ir.Model:
    """Put each chain's dense kernel in the place of its layer."""
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
    """Hold a network in normal form against what it was made of, by outputs of fixed shape.

    Returns:
        The sentence that says by how much they differ, or None.
    """
    unstable = data_dependent_shapes(original)
    for what, feeds in samples.items():
        expected, got = (run(open_session(model), feeds) for model in (original, network))
        for name in (n for n in expected if n not in unstable and _numeric(expected[n])):
            error = difference(expected[name], got[name])
            if not error <= tolerance(expected[name]):
                return (
                    f"The network as it was read differs from the file by {error:.1e} on {what}, "
                    f"at output {name}."
                )
    return None


def check_graph(model: ir.Model) -> str | None:
    """Run ONNX's checker with full shape inference; return what it found, or None.

    Weights in files of their own are checked as inputs of their types and shapes.
    """
    try:
        onnx.checker.check_model(ir.to_proto(externals_as_inputs(model)), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"The rewritten network is not valid ONNX: {first_line(error)}"
    return None


def _numeric(value: object) -> bool:
    """Tell an array of numbers from strings, sequences and maps."""
    return isinstance(value, np.ndarray) and value.dtype.kind not in "OSU"


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """Relative difference |got - expected| / |expected|; infinite where shapes differ.

    Of whole numbers, if it is less, the share that differs, one of them let pass: class indices
    say nothing by their distance.
    """
    if expected.shape != got.shape:
        return float("inf")
    a, b = expected.astype(np.float64), got.astype(np.float64)
    relative = float(np.linalg.norm(b - a)) / (float(np.linalg.norm(a)) or 1.0)
    if expected.dtype.kind in "biu":
        return min(relative, max(int(np.count_nonzero(a != b)) - 1, 0) / max(a.size, 1))
    return relative


def tolerance(array: np.ndarray) -> float:
    """Say how large the relative difference from ``array`` may be."""
    return TOLERANCE.get(array.dtype.name, WHOLE_TOLERANCE)


def check_torch_vs_onnx(
    module: nn.Module, network: ir.Model, samples: Mapping[str, Arrays]
) -> str | None:
    """Hold the converted torch model against the converted ONNX network.

    Returns:
        The sentence that says by how much they differ, or None.
    """
    session = open_session(network)
    for what, feeds in samples.items():
        outputs = flat_outputs(forward(module, feeds))
        for (name, got), expected in zip(run(session, feeds).items(), outputs):
            error = difference(expected.numpy(), got)
            if not error <= tolerance(got):
                return (
                    f"The converted torch model and its ONNX twin differ by {error:.1e} on {what}, "
                    f"at output {name}."
                )
    return None
