"""Checks that two versions of a network compute the same values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx
import onnx_ir as ir
from torch import nn

from converter.data.data import Arrays
from converter.decomposition.conv import Chain
from converter.errors import ConverterError, first_line
from converter.graph.differences import difference, differences, tolerance
from converter.graph.external import externals_as_inputs
from converter.graph.network import compute_values, open_session
from converter.graph.outputs import data_dependent_shapes, random_values, with_seeds
from converter.graph.rewrite import replace_weights
from converter.graph.survey import Layer
from converter.models.export import flat_outputs, forward
from converter.runtime.ort import run


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
        compute_values(with_seeds(_dense(original, replaced, chains)), names, samples.values())
    )
    converted_batches = compute_values(with_seeds(converted), names, samples.values())
    for description, expected in zip(samples, expected_batches):
        try:
            actual = next(converted_batches)
        except ConverterError as error:
            return f"The rewritten network does not run on {description}: {error}"
        for name, distance in differences(expected, actual, names):
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
        expected, actual = (
            run(open_session(with_seeds(model)), feeds) for model in (original, network)
        )
        stable = [name for name in expected if name not in unstable]
        for name, distance in differences(expected, actual, stable):
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


def check_torch_vs_onnx(
    module: nn.Module, network: ir.Model, samples: Mapping[str, Arrays]
) -> str | None:
    """Compare a torch model with the ONNX network of the same weights.

    Outputs that depend on random numbers are not compared.

    Returns:
        A sentence that says by how much they differ, or None.
    """
    session, drawn = open_session(network), random_values(network)
    for description, feeds in samples.items():
        outputs = flat_outputs(forward(module, feeds))
        for (name, actual), expected in zip(run(session, feeds).items(), outputs):
            distance = difference(expected.numpy(), actual)
            if name not in drawn and not distance <= tolerance(actual):
                return (
                    f"The converted torch model and its ONNX network differ by {distance:.1e} on "
                    f"{description}, at output {name}."
                )
    return None
