"""Times of nodes added up to times of layers; this file also runs without flatconv.

onnxruntime renames nodes when it fuses them. Most new names begin with that of the layer's node,
such as ``name/MatMulAddFusion``; a convolution in the blocked layout (NCHWc) is named after its
output; and some names, such as ``Attention``, say nothing of the layers that the node computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from converter.runtime.ort_session import NodeTime

PREFIX = "flatconv_"  # of the names of all nodes; the number of the layer follows, if it is one
PRODUCTS = ("Conv", "Gemm", "MatMul", "Attention")  # parts of the operator types that run layers


@dataclass(frozen=True)
class LayerNodes:
    """What the nodes of a layer are known by.

    Attributes:
        ends: Tensors that they may be named after: the layer's output, and the outputs of the
            operators that are fused into it.
        source: Name of the layer's input.
        weight: Name of its weight.
        macs: Multiply-accumulates, by which layers in one node share its time.
    """

    ends: Sequence[str]
    source: str
    weight: str
    macs: float


def attribute(nodes: Sequence[NodeTime], layers: Sequence[LayerNodes]) -> np.ndarray:
    """Add up a profile by layer.

    Args:
        nodes: The profile of a network whose nodes are named by ``PREFIX``.
        layers: The layers, by number.

    Returns:
        Milliseconds (layers + 1,); the last entry is the time of all other nodes.
    """
    sums = np.zeros(len(layers) + 1)
    for node, owners in zip(nodes, owners_of(nodes, layers)):
        if not owners:
            sums[-1] += node.ms
        macs = [max(layers[owner].macs, 1) for owner in owners]
        for owner, share in zip(owners, macs):
            sums[owner] += node.ms * share / sum(macs)
    return sums


def fused_layers(nodes: Sequence[NodeTime], layers: Sequence[LayerNodes]) -> list[list[int]]:
    """List, for each layer, the numbers of the other layers that a node computes with it."""
    owners = owners_of(nodes, layers)
    return [
        sorted({other for numbers in owners if layer in numbers for other in numbers} - {layer})
        for layer in range(len(layers))
    ]


def owners_of(nodes: Sequence[NodeTime], layers: Sequence[LayerNodes]) -> list[list[int]]:
    """Find the layers that each node computes, by number; none for most nodes.

    Nodes whose names say nothing belong to the layers without a node, and a layer that computes the
    same as another one has the node of that layer.
    """
    steps = [_step(node.name) for node in nodes]
    owners = [[] if step is None else [step[0]] for step in steps]
    done = {step[0] for step in steps if step is not None and not step[1]}
    products = [
        index
        for index, node in enumerate(nodes)
        if not node.name.startswith(PREFIX) and any(part in node.operator for part in PRODUCTS)
    ]
    for index, owner in _by_output({i: nodes[i].name for i in products}, layers, done).items():
        owners[index] = [owner]
    attributed = {owner for numbers in owners for owner in numbers}
    nameless = [index for index in products if not owners[index]]
    for index, numbers in _without_names(nameless, attributed, layers).items():
        owners[index] = numbers
    attributed = {owner for numbers in owners for owner in numbers}
    return [[*numbers, *_twins(numbers, attributed, layers)] for numbers in owners]


def _step(name: str) -> tuple[int, str] | None:
    """Read the number of a layer, and that of a step of its chain, from the name of a node."""
    number, _, step = name.partition("/")[0].removeprefix(PREFIX).partition(".")
    return (int(number), step) if name.startswith(PREFIX) and number.isdigit() else None


def _by_output(
    names: Mapping[int, str], layers: Sequence[LayerNodes], done: Collection[int]
) -> dict[int, int]:
    """Find the layer of nodes that are named after outputs, by index of the node.

    The output may be that of an addition of two layers: the node then belongs to the layer for
    whose last step there is no other node.
    """
    by_end: dict[str, list[int]] = defaultdict(list)
    for number, layer in enumerate(layers):
        for end in layer.ends:
            by_end[end].append(number)
    owners: dict[int, int] = {}
    shared = [index for index, name in names.items() if name in by_end]
    for index in sorted(shared, key=lambda index: len(by_end[names[index]])):  # certain ones first
        candidates = by_end[names[index]]
        free = (layer for layer in candidates if layer not in {*done, *owners.values()})
        owners[index] = next(free, candidates[0])
    return owners


def _without_names(
    indices: Sequence[int], attributed: Collection[int], layers: Sequence[LayerNodes]
) -> dict[int, list[int]]:
    """Find the layers of nodes whose names say nothing, by index of the node.

    Layers of one input run in one node, as those of an attention do. Where these groups are not as
    many as the nodes, each node is one of all layers.
    """
    lost = [number for number in range(len(layers)) if number not in attributed]
    groups = [list(group) for _, group in groupby(lost, key=lambda n: layers[n].source)]
    if len(groups) != len(indices):
        groups = [lost] * len(indices)
    return dict(zip(indices, groups))


def _twins(
    numbers: Sequence[int], attributed: Collection[int], layers: Sequence[LayerNodes]
) -> list[int]:
    """List layers without a node that have input and weight of one of ``numbers``."""
    keys = {(layers[number].source, layers[number].weight) for number in numbers}
    return [
        number
        for number, layer in enumerate(layers)
        if number not in attributed and (layer.source, layer.weight) in keys
    ]
