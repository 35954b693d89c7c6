"""Variants of a network: together they have each layer in every form and rank to be timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.decomposition.form import Rank, skeleton
from converter.decomposition.forms import find_form
from converter.decomposition.ranks import rank_grid
from converter.graph.network import inputs
from converter.graph.rewrite import rewrite
from converter.graph.survey import Layer
from converter.runtime.attribution import PREFIX
from converter.timing.latency import geometry

# Operators that onnxruntime may fuse into a layer, whose node is then named after their output.
FUSED = (
    "Relu Add Sum Clip LeakyRelu Sigmoid Tanh HardSigmoid PRelu BatchNormalization Mul HardSwish"
).split()


@dataclass(frozen=True)
class Variants:
    """A network, and the forms and ranks in which each layer is timed.

    Attributes:
        network: The unchanged network.
        layers: Layers that are nodes of the main graph.
        options: Forms and ranks of each layer.
    """

    network: ir.Model
    layers: tuple[Layer, ...]
    options: tuple[Sequence[tuple[str, Rank]], ...]

    @classmethod
    def of(cls, network: ir.Model, layers: Sequence[Layer]) -> Variants:
        """Take a network and its survey; only the unchanged layers are timed."""
        nodes = tuple(layer for layer in layers if layer.output)
        return cls(network, nodes, ((),) * len(nodes))

    def with_grid(self, block: int) -> Variants:
        """Return variants with all forms that a layer can take, at ranks in blocks of channels."""
        grids = (
            () if layer.conv is None else tuple(rank_grid(layer.conv, layer.size, block))
            for layer in self.layers
        )
        return replace(self, options=tuple(grids))

    def with_chosen(self, chosen: Mapping[str, tuple[str, Rank]]) -> Variants:
        """Return variants with one form and rank for some layers, by layer name."""
        options = ([chosen[layer.name]] if layer.name in chosen else () for layer in self.layers)
        return replace(self, options=tuple(options))

    def without_weights(self) -> Variants:
        """Return variants with zeros for the layers' weights: zeros compress well."""
        copy = self.network.clone()
        weights = (copy.graph.initializers.get(layer.weight) for layer in self.layers)
        for value in weights:
            if value is not None and value.const_value is not None:
                tensor = value.const_value
                zeros = np.zeros(tuple(tensor.shape.numpy()), tensor.dtype.numpy())
                value.const_value = ir.tensor(zeros, tensor.dtype, name=tensor.name)
        return replace(self, network=ir.external_data.load_to_model(copy))

    def __len__(self) -> int:
        """Count the variants; the first is the unchanged network."""
        return 1 + max(map(len, self.options), default=0)

    def variant(self, number: int) -> ir.Model:
        """Build variant ``number``: each layer has its option of this number (from 1), if any.

        The names of all nodes begin with ``PREFIX``, and the index of the layer follows if a node
        belongs to one.
        """
        chains, names = {}, {}
        for index, (layer, options) in enumerate(zip(self.layers, self.options)):
            if 0 < number <= len(options) and layer.conv is not None:
                form, rank = options[number - 1]
                chain = skeleton(layer.conv, find_form(form), rank)
                chains[layer.output] = (f"{PREFIX}{index}", chain)
            else:
                names[layer.output] = f"{PREFIX}{index}"
        model = rewrite(self.network, chains)
        kept = {str(node.outputs[0].name) for node in self.network.graph} - set(chains)
        for node in model.graph:
            output = str(node.outputs[0].name)
            if output in kept:
                node.name = names.get(output, f"{PREFIX}other_{output}")
        return model

    def manifest(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Describe the inputs, the variants and the layers for ``time_layers``.

        Args:
            shapes: Input shapes by name, batch included.
        """
        values = {str(value.name): value for node in self.network.graph for value in node.outputs}
        return {
            "inputs": {
                item.name: {"shape": list(shapes[item.name]), "dtype": item.dtype.name}
                for item in inputs(self.network)
            },
            "networks": [f"variant_{number}.onnx" for number in range(len(self))],
            "layers": [
                {
                    "name": layer.name,
                    "output": layer.output,
                    "kernel": list(layer.conv.kernel.shape) if layer.conv else [],
                    "geometry": list(geometry(layer.conv)) if layer.conv else [],
                    "ends": _fused_outputs(values[layer.output]),
                    "source": layer.source,
                    "weight": layer.weight,
                    "macs": layer.macs,
                    "options": [{"form": form, "rank": list(rank)} for form, rank in options],
                }
                for layer, options in zip(self.layers, self.options)
            ],
        }


def _fused_outputs(value: ir.Value) -> list[str]:
    """Name the output of a layer, and the outputs of the operators that may be fused into it."""
    names = [str(value.name)]
    while len(uses := list(value.uses())) == 1 and uses[0].node.op_type in FUSED:
        value = uses[0].node.outputs[0]
        names.append(str(value.name))
    return names
