"""The ways in which a graph says "convolution" or "linear layer", as text: converted."""

import numpy as np
import pytest
from graph_cases import IMAGE, INT8, KERNEL, NORM, RESULT, SCALE, Graph, assert_converted, rows
from networks import noise

LAYERS = [
    Graph(
        "over one axis",
        "g (float[N, 4, 9] x) => (float[N, C, P] y) { y = Conv (x, w, b) }",
        {"w": (6, 4, 3), "b": (6,)},
        {"x": (2, 4, 9)},
    ),
    Graph("over two axes", "y = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w, b)"),
    Graph(
        "over three axes",
        "g (float[N, 4, 5, 6, 7] x) => (float[N, C, P, Q, R] y) { y = Conv (x, w) }",
        {"w": (6, 4, 3, 2, 3)},
        {"x": (2, 4, 5, 6, 7)},
    ),
    Graph("in groups", "y = Conv <group = 2> (x, w)", {"w": (6, 2, 3, 3)}),
    Graph(
        "transposed",
        "y = ConvTranspose <strides = [2, 2], output_padding = [1, 0]> (x, w, b)",
        {"w": (4, 6, 3, 3), "b": (6,)},
    ),
    Graph(
        "transposed, over one axis",
        "g (float[N, 4, 9] x) => (float[N, C, P] y) { y = ConvTranspose <strides = [2]> (x, w) }",
        {"w": (4, 6, 3)},
        {"x": (2, 4, 9)},
    ),
    Graph(
        "transposed, SAME",
        'y = ConvTranspose <auto_pad = "SAME_LOWER", strides = [2, 3]> (x, w)',
        {"w": (4, 6, 3, 4)},
    ),
    Graph(
        "transposed, output_shape",
        "y = ConvTranspose <strides = [2, 2], output_shape = [18, 16]> (x, w)",
        {"w": (4, 6, 3, 3)},
    ),
    rows("Gemm", "y = Gemm (x, w, b)"),
    rows("Gemm, transB", "y = Gemm <transB = 1> (x, w, b)", {"w": (6, 8), "b": (6,)}),
    rows("Gemm, alpha and beta", "y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", kinds="Gemm"),
    rows("Gemm, alpha, no bias", "y = Gemm <alpha = 0.5> (x, w)", {"w": (8, 6)}, kinds="Gemm"),
    rows("Gemm, a bias of one number", "y = Gemm (x, w, b)", {"w": (8, 6), "b": (1,)}),
    rows("MatMul and Add", "h = MatMul (x, w) y = Add (h, b)"),
    Graph(
        "MatMul of stacks",
        "g (float[N, 5, 8] x) => (float[N, 5, 6] y) { y = MatMul (x, w) }",
        {"w": (8, 6)},
        {"x": (2, 5, 8)},
    ),
    Graph("SAME_UPPER", 'y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)'),
    Graph("SAME_LOWER", 'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)'),
    Graph("VALID", 'y = Conv <auto_pad = "VALID", strides = [2, 2]> (x, w)'),
    Graph("NOTSET", 'y = Conv <auto_pad = "NOTSET", pads = [1, 0, 0, 2]> (x, w)'),
    Graph(
        "SAME, free sizes, no stride",
        "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) "
        '{ y = Conv <auto_pad = "SAME_UPPER"> (x, w) }',
    ),
    Graph("free sizes", "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) { y = Conv (x, w) }"),
    Graph(
        "two inputs",
        f"g ({IMAGE}, float[N, 4, 9, 8] second) => ({RESULT}) "
        "{ s = Add (x, second) y = Conv (s, w, b) }",
        feeds={"x": (2, 4, 9, 8), "second": (2, 4, 9, 8)},
    ),
]
WEIGHTS = [
    Graph(
        "behind Constant",
        "w = Constant <value = float[2, 4, 1, 1] w {1, 2, 3, 4, 5, 6, 7, 8}> () y = Conv (x, w)",
        {},
    ),
    Graph("behind Identity", "v = Identity (w) y = Conv (x, v, b)", kinds="Conv"),
    Graph(
        "behind Cast",
        "v = Cast <to = 1> (h) y = Conv (x, v)",
        {},
        given={"h": noise(6, 4, 3, 3).astype(np.float16)},
        kinds="Conv",
    ),
    Graph(
        "behind Reshape",
        "v = Reshape (w, s) y = Conv (x, v)",
        {"w": (6, 36)},
        given={"s": np.array([6, 4, 3, 3])},
        kinds="Conv",
    ),
    Graph(
        "behind Transpose",
        "v = Transpose <perm = [3, 2, 0, 1]> (w) y = Conv (x, v)",
        {"w": (3, 3, 4, 6)},
        kinds="Conv",
    ),
    Graph(
        "behind Squeeze and Unsqueeze",
        "a = Squeeze (w, k) v = Unsqueeze (a, k) y = Conv (x, v)",
        {"w": (6, 4, 1, 3)},
        given={"k": np.array([2])},
        kinds="Conv",
    ),
    Graph(
        "behind DequantizeLinear",
        "v = DequantizeLinear (q, scale, zero) y = Conv (x, v, b)",
        {"b": (6,)},
        given={"q": INT8} | SCALE,
        kinds="Conv",
    ),
    Graph("behind arithmetic", "v = Mul (w, w) c = Neg (b) y = Conv (x, v, c)", kinds="Conv"),
    rows(
        "a linear weight behind Transpose",
        "v = Transpose (w) y = MatMul (x, v)",
        {"w": (6, 8)},
        kinds="MatMul",
    ),
    Graph(
        "of two layers",
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Conv (a, w)",
        {"w": (4, 4, 3, 3)},
        layers=2,
    ),
    Graph(
        "of two layers, one normalized",
        "a = Conv (x, w) n = BatchNormalization (a, gain, shift, mean, var) c = Conv (x, w) "
        "y = Add (n, c)",
        KERNEL | NORM,
        layers=2,
        kinds="Conv Conv Add",
    ),
    Graph(
        "that is an output",
        f"g ({IMAGE}) => ({RESULT}, float[6, 4, 3, 3] w) {{ y = Conv (x, w, b) }}",
    ),
    Graph(
        "that is computed and an output",
        f"g ({IMAGE}) => ({RESULT}, float[6, 4, 3, 3] v) {{ v = Neg (w) y = Conv (x, v, b) }}",
    ),
    Graph(
        "that is listed as an input",
        f"g ({IMAGE}, float[6, 4, 3, 3] w) => ({RESULT}) {{ y = Conv (x, w) }}",
    ),
    Graph("of zeros", "y = Conv (x, w)", {}, given={"w": np.zeros((6, 4, 3, 3), np.float32)}),
]


@pytest.mark.parametrize("graph", LAYERS, ids=lambda graph: graph.name)
def test_a_layer_is_converted(graph):
    assert_converted(graph)


@pytest.mark.parametrize("graph", WEIGHTS, ids=lambda graph: graph.name)
def test_a_layer_with_a_weight_is_converted(graph):
    assert_converted(graph)
