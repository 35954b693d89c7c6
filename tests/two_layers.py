"""Small graphs of one and of two convolutions, for several test files."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


TWO_LAYERS = """two (float[N, 4, 9, 8] x) => (float[N, 5, P, Q] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, first, bias)
    b = Relu (a)
    y = Conv <strides = [2, 1]> (b, second)
}"""
TWO_WEIGHTS = {
    "first": random(6, 4, 3, 3),
    "bias": random(6, seed=1),
    "second": random(5, 6, 3, 2, seed=2),
}
X = random(2, 4, 9, 8, seed=3)


def one_conv(conv):
    """A graph x -> Conv -> y for ``conv``; size and batch of x are free."""
    pads = [begin for begin, _ in conv.padding] + [end for _, end in conv.padding]
    node = helper.make_node(
        "Conv",
        ["x", "w"] if conv.bias is None else ["x", "w", "b"],
        ["y"],
        strides=conv.stride,
        dilations=conv.dilation,
        pads=pads,
        group=conv.groups,
    )
    arrays = {"w": conv.kernel} | ({} if conv.bias is None else {"b": conv.bias})
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", conv.I, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", conv.O, "P", "Q"])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = [helper.make_opsetid("", 19)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))
