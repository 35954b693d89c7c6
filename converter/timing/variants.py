"""Variants of a network that have each layer in all the forms and ranks to be timed."""

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
from converter.runtime.timer import PREFIX
from converter.timing.latency import geometry

# Operators that onnxruntime fuses into a layer, which then may have the name of their output.
FUSED = (
    "Relu Add Sum Clip LeakyRelu Sigmoid Tanh HardSigmoid PRelu BatchNormalization Mul HardSwish"
).split()


@dataclass(frozen=True)
class Variants:
    """A network, and by layer the forms and ranks to be timed.

    Attributes:
        network: The network as it is.
        layers: Its layers that are nodes of the main graph.
        options: Forms and ranks, by layer.
    """

    network: ir.Model
    layers: tuple[Layer, ...]
    options: tuple[Sequence[tuple[str, Rank]], ...]

    @classmethod
    def of(cls, network: ir.Model, layers: Sequence[Layer]) -> Variants:
        """Take a network and its survey, with nothing to be timed but the layers as they are."""
        nodes = tuple(layer for layer in layers if layer.output)
        return cls(network, nodes, ((),) * len(nodes))

    def with_grid(self, block: int) -> Variants:
        """Time all forms that suit a layer, at ranks in blocks of ``block`` channels."""
        grids = (
            () if layer.conv is None else tuple(rank_grid(layer.conv, layer.size, block))
            for layer in self.layers
        )
        return replace(self, options=tuple(grids))

    def with_chosen(self, chosen: Mapping[str, tuple[str, Rank]]) -> Variants:
        """Time one form and rank of some layers, by name."""
        given = ([chosen[layer.name]] if layer.name in chosen else () for layer in self.layers)
        return replace(self, options=tuple(given))

    def without_weights(self) -> Variants:
        """Put zeros, which compress well, in the place of the layers' weights."""
        copy = self.network.clone()
        weights = (copy.graph.initializers.get(layer.weight) for layer in self.layers)
        for value in weights:
            if value is not None and value.const_value is not None:
                tensor = value.const_value
                zeros = np.zeros(tuple(tensor.shape.numpy()), tensor.dtype.numpy())
                value.const_value = ir.tensor(zeros, tensor.dtype, name=tensor.name)
        return replace(self, network=ir.external_data.load_to_model(copy))

    def __len__(self) -> int:
        """Count the variants; the first is the network as it is."""
        return 1 + max(map(len, self.options), default=0)

    def variant(self, number: int) -> ir.Model:
        """Write variant ``number``, in which layers have their option of this number, from 1 on.

        The names of a layer's nodes begin with ``PREFIX`` and its index.
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
        for node in model.graph:
            node.name = names.get(str(node.outputs[0].name), node.name)
        return model

    def manifest(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Describe the inputs, the variants and the layers for ``timer.time_layers``.

        Args:
            shapes: Of the inputs, by name, batch included.
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
                    "options": [{"form": form, "rank": list(rank)} for form, rank in options],
                }
                for layer, options in zip(self.layers, self.options)
            ],
        }


def _fused_outputs(value: ir.Value) -> list[str]:
    """Name the output of a layer, and the outputs of what may be fused into it."""
    names = [str(value.name)]
    while len(uses := list(value.uses())) == 1 and uses[0].node.op_type in FUSED:
        value = uses[0].node.outputs[0]
        names.append(str(value.name))
    return names
