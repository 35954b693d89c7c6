"""ONNX files of many convolutions, written piece by piece with their weights beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def write_convolutions(
    folder: Path, depth: int, channels: int, *, kernel: int, size: int, residual: bool
) -> Path:
    """Write a chain of convolutions with random weights.

    Args:
        folder: Gets ``net.onnx`` and ``weights.bin``.
        depth: Number of convolutions, called ``conv0``, ``conv1``, ...
        channels: Channels of each.
        kernel: Size of the square kernels.
        size: Height and width of the input.
        residual: Whether each convolution is added to its input, and the last sum is averaged.

    Returns:
        The path of the network.
    """
    rng, nodes, weights, value, offset = np.random.default_rng(0), [], [], "x", 0
    # With additions, what is added up stays finite.
    scale = (2 / channels / kernel**2 / (depth if residual else 1)) ** 0.5
    with (folder / "weights.bin").open("wb") as file:
        for n in range(depth):
            shape = (channels, channels, kernel, kernel)
            weight = rng.standard_normal(shape, np.float32) * np.float32(scale)
            file.write(weight.tobytes())
            weights.append(_external(f"w{n}", shape, offset, weight.nbytes))
            offset += weight.nbytes
            pads = [kernel // 2] * 4
            nodes.append(
                helper.make_node("Conv", [value, f"w{n}"], [f"c{n}"], f"conv{n}", pads=pads)
            )
            nodes.append(helper.make_node("Relu", [f"c{n}"], [f"r{n}"]))
            if residual:
                nodes.append(helper.make_node("Add", [value, f"r{n}"], [f"a{n}"]))
            value = f"a{n}" if residual else f"r{n}"
    shape_in = shape_out = (1 if residual else "N", channels, size, size)
    if residual:
        nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
        value, shape_out = "y", (1, channels, 1, 1)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        for name, shape in (("x", shape_in), (value, shape_out))
    )
    graph = helper.make_graph(nodes, "convolutions", [x], [y], weights)
    opsets = [helper.make_opsetid("", 19)]
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def _external(name: str, shape: tuple[int, ...], offset: int, length: int) -> TensorProto:
    """Describe a tensor that is stored in ``weights.bin``."""
    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": "weights.bin", "offset": offset, "length": length}
    for key, entry in entries.items():
        tensor.external_data.add(key=key, value=str(entry))
    return tensor
