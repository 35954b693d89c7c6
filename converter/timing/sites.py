"""Where the layers of an ONNX file stand, and the file with some of them in other forms.

Needs onnxruntime and numpy alone, as ``profile`` does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.decomposition.conv import Conv
from converter.decomposition.form import Rank, skeleton
from converter.decomposition.forms import find_form
from converter.errors import ConverterError
from converter.graph import onnx_proto as light
from converter.graph.nodes import (
    CONVOLUTIONS,
    PRODUCTS,
    GraphFragment,
    chain_nodes,
    read_conv,
    read_linear,
)
from converter.runtime.ort import open_file, run

PREFIX = "flatconv_"  # of the names that layers get
FUSED = (
    "Relu",
    "Add",
    "Sum",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "PRelu",
    "BatchNormalization",
    "Mul",
    "HardSwish",
)


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer in a file.

    Attributes:
        output: Name of the tensor that it gives.
        source: Name of the tensor that it takes.
        conv: With zeros for weights; None where it has to stay.
        kernel: Shape of its kernel.
        size: Spatial size of its input.
        matrix: Whether its input has two axes.
        ends: Names that the runtime may give it: of its output, and of what is fused into it.
    """

    output: str
    source: str
    conv: Conv | None
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    matrix: bool
    ends: tuple[str, ...]

    @property
    def geometry(self) -> tuple[int, ...]:
        """Stride, dilation and groups, in a row; nothing where the layer has to stay."""
        return geometry(self.conv) if self.conv else ()


def geometry(conv: Conv) -> tuple[int, ...]:
    """Give stride, dilation and groups of a convolution, in a row."""
    return (*conv.stride, *conv.dilation, conv.groups)


def find_sites(
    model: light.Message, feeds: Mapping[str, np.ndarray], weights: Path | None = None
) -> list[Site]:
    """List the convolutions and linear layers of a network whose weights are constants.

    Args:
        model: The network.
        feeds: Its inputs by name; it is run once for the shapes of what its layers take.
        weights: Folder of the files that hold weights, or None where ``model`` has them all.

    Raises:
        ConverterError: When the network cannot be run.
    """
    tensors = light.weights(model)
    nodes = [node for node in model.graph.node if _is_layer(node, tensors)]
    sizes = _shapes(model, [node.input[0] for node in nodes], feeds, weights)
    followers: dict[str, list[light.Message]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            followers[name].append(node)
    sites = []
    for node in nodes:
        shape = sizes[node.input[0]]
        conv = _read(node, tensors, shape)
        ends = [node.output[0]]
        while len(after := followers[ends[-1]]) == 1 and after[0].op_type in FUSED:
            ends.append(after[0].output[0])
        linear = conv is not None and not conv.k
        sites.append(
            Site(
                output=node.output[0],
                source=node.input[0],
                conv=conv,
                kernel=conv.kernel.shape if conv else tuple(tensors[node.input[1]].dims),
                size=(math.prod(shape[1:-1]),) if linear else tuple(shape[2:]),
                matrix=len(shape) == 2,
                ends=tuple(ends),
            )
        )
    return sites


def _shapes(
    model: light.Message,
    names: Sequence[str],
    feeds: Mapping[str, np.ndarray],
    weights: Path | None,
) -> dict[str, tuple[int, ...]]:
    """Run a network once for the shapes of tensors."""
    copy = light.MESSAGES["ModelProto"]()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    wanted = list(dict.fromkeys(names))
    for number, name in enumerate(wanted):
        node = copy.graph.node.add(op_type="Shape", name=f"{PREFIX}shape_{number}")
        node.input.append(name)
        node.output.append(node.name)
        copy.graph.output.add(name=node.name).type.tensor_type.elem_type = 7
    if not wanted:
        return {}
    found = run(open_file(copy.SerializeToString(), weights=weights), feeds)
    return dict(zip(wanted, (tuple(map(int, shape)) for shape in found.values())))


def _is_layer(node: light.Message, tensors: Mapping[str, light.Message]) -> bool:
    """Tell a layer with constant weights from a product of two things that are computed."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type not in (*CONVOLUTIONS, *PRODUCTS) or node.input[0] in tensors:
        return False
    weight = tensors.get(node.input[1])
    return weight is not None and weight.data_type in light.FLOATS and len(weight.dims) > 1


def _read(
    node: light.Message, tensors: Mapping[str, light.Message], shape: Sequence[int]
) -> Conv | None:
    """Read a node with zeros for weights; None where it has to stay."""
    if any(name and name not in tensors for name in node.input[1:3]):
        return None
    weight, *biases = (
        np.broadcast_to(light.TYPES[tensors[n].data_type](0), tuple(tensors[n].dims))
        for n in node.input[1:3]
        if n
    )
    bias = biases[0] if biases else None
    try:
        if node.op_type in PRODUCTS:
            return read_linear(light.attributes(node), weight, bias)
        return read_conv(node.op_type, light.attributes(node), weight, bias, shape[2:])
    except ConverterError:
        return None


def written(
    model: light.Message, sites: Sequence[Site], variant: Mapping[int, tuple[str, Rank]]
) -> bytes:
    """Write a network with some layers in other forms, all layers named for the profile.

    Args:
        model: The network, left as it is.
        sites: Its layers.
        variant: Form and rank of those that change, by number of the site.
    """
    pieces: dict[str, GraphFragment] = {}
    names = {}
    for n, site in enumerate(sites):
        if n in variant and site.conv is not None:
            form, rank = variant[n]
            chain = skeleton(site.conv, find_form(form), rank)
            pieces[site.output] = chain_nodes(chain, site.source, f"{PREFIX}{n}", site.matrix)
        else:
            names[site.output] = f"{PREFIX}{n}"
    return light.replaced(model, pieces, names)
