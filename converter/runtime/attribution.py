"""Times of nodes added up to times of layers; this file also runs without flatconv."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from converter.runtime.ort_session import NodeTime

PREFIX = "flatconv_"  # of the names of a layer's nodes; the layer's number follows


def attribute(nodes: Sequence[NodeTime], ends: Sequence[Sequence[str]]) -> np.ndarray:
    """Add up a profile by layer.

    Most nodes are named by ``PREFIX`` and the number of their layer. onnxruntime names a node in
    the blocked layout (NCHWc) after its output. This may be the output of an addition of two
    layers: the node then belongs to the layer for whose last step there is no other node.

    Args:
        nodes: The profile of a network whose layers' nodes are named by ``PREFIX``.
        ends: By layer, the tensors that its nodes may be named after: the layer's output, and the
            outputs of the operators that are fused into it.

    Returns:
        Milliseconds (layers + 1,); the last entry is the time of all other nodes.
    """
    sums = np.zeros(len(ends) + 1)
    layers_by_end: dict[str, list[int]] = defaultdict(list)
    for layer, names in enumerate(ends):
        for name in names:
            layers_by_end[name].append(layer)
    shared: list[tuple[list[int], float]] = []
    done: set[int] = set()
    for node in nodes:
        number, _, step = node.name[len(PREFIX) :].partition(".")
        if node.name.startswith(PREFIX) and number.isdigit():
            sums[int(number)] += node.ms
            if not step:
                done.add(int(number))
        elif node.name in layers_by_end and any(
            operator in node.operator for operator in ("Conv", "Gemm", "MatMul")
        ):
            shared.append((layers_by_end[node.name], node.ms))
        else:
            sums[-1] += node.ms
    for candidates, ms in sorted(shared, key=lambda item: len(item[0])):  # unambiguous ones first
        owner = next((layer for layer in candidates if layer not in done), candidates[0])
        sums[owner] += ms
        done.add(owner)
    return sums
