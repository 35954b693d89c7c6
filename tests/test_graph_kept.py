"""Layers of a graph that cannot be converted: kept with the reason."""

from functools import partial

import onnxruntime
import pytest
from graph_cases import (
    IMAGE,
    INT8,
    LINEAR,
    RESULT,
    SCALE,
    SQUARE,
    Graph,
    assert_kept,
    converted,
    rows,
)
from networks import make_net, noise

from converter.graph.network import load
from converter.graph.survey import survey

NOT_CONSTANT = "its weight is not a constant of the graph"
FED = f"g ({IMAGE}, float[6, 4, 3, 3] w) => ({RESULT}) {{ y = Conv (x, w) }}"
CHANGING = {
    "made of what is fed": "m = ReduceMean <keepdims = 0> (x) u = Mul (w, m)",
    "that is drawn": "u = RandomNormalLike <mean = 1.0, scale = 0.000001> (w)",
    "of the shape of what is fed": "t = Shape (x) z = Cast <to = 1> (t) "
    "m = ReduceMax <keepdims = 0> (z) u = Div (w, m)",
}
CHOSEN = """c = If (which) <
    then_branch = one () => (float[4, 4, 3, 3] z) { z = Neg (w) },
    else_branch = two () => (float[4, 4, 3, 3] z) { z = Abs (v) }
>"""
HALF = """
    <domain: "own", opset_import: ["" : 18]>
    half (w) => (v) { v = Neg (w) }"""
FREE_SIZES = "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) {{ {} }}"
BIAS = "m = ReduceMean <keepdims = 0> (x) c = Mul (b, m)"

kept = partial(Graph, layers=0)
kept_rows = partial(rows, layers=0)

WEIGHTS = [
    kept("fed", FED, {}, {"x": (2, 4, 9, 8), "w": (6, 4, 3, 3)}),
    *(
        kept(f"{op}, {how}", f"{made} y = {op} (x, u)", SQUARE)
        for op in ("Conv", "ConvTranspose")
        for how, made in CHANGING.items()
    ),
    *(
        kept(
            f"{op}, that a subgraph chooses",
            f"g ({IMAGE}, bool[1] which) => ({RESULT}) {{ {CHOSEN} y = {op} (x, c) }}",
            SQUARE,
            {"x": (2, 4, 9, 8), "which": (1,)},
        )
        for op in ("Conv", "ConvTranspose")
    ),
    *(
        kept(
            f"{op}, of another's operator",
            f"u = own.half (w) y = {op} (x, u)",
            SQUARE,
            functions=HALF,
        )
        for op in ("Conv", "ConvTranspose")
    ),
]
OTHERS = [
    kept(
        "a bias made of what is fed",
        f"{BIAS} y = Conv (x, w, c)",
        reason="its bias is not a constant of the graph",
    ),
    kept_rows(
        "a linear bias made of what is fed",
        f"{BIAS} y = Gemm (x, w, c)",
        reason="its bias is not a constant of the graph",
    ),
    kept_rows(
        "Gemm, alpha, bias made of what is fed",
        f"{BIAS} y = Gemm <alpha = 0.5> (x, w, c)",
        reason="its bias is not a constant",
    ),
    kept_rows(
        "a linear bias a row",
        "y = Gemm (x, w, b)",
        {"w": (8, 6), "b": (3, 6)},
        reason="its bias is not one number per output",
    ),
    kept(
        "Gemm, transA",
        "g (float[8, N] x) => (float[N, 6] y) { y = Gemm <transA = 1> (x, w, b) }",
        LINEAR,
        {"x": (8, 3)},
        reason="its input is transposed (transA)",
    ),
    kept(
        "stacks of matrices",
        "g (float[2, 5, 8] x) => (float[2, 5, 6] y) { y = MatMul (x, w) }",
        {"w": (2, 8, 6)},
        {"x": (2, 5, 8)},
        reason="its weight is not a constant matrix",
    ),
    kept(
        "SAME, stride, free sizes",
        FREE_SIZES.format('y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)'),
        reason="depends on an input size that is free",
    ),
    kept(
        "output_shape, free sizes",
        FREE_SIZES.format("y = ConvTranspose <output_shape = [18, 16], strides = [2, 2]> (x, w)"),
        {"w": (4, 6, 3, 3)},
        reason="depends on an input size that is free",
    ),
    kept(
        "output_shape beyond the output",
        "y = ConvTranspose <strides = [2, 2], output_shape = [20, 18]> (x, w)",
        {"w": (4, 6, 3, 3)},
        reason="its output_shape is larger than what it computes",
    ),
    kept(
        "depthwise 1x1",
        "y = Conv <group = 4> (x, w)",
        {"w": (4, 1, 1, 1)},
        reason="it is depthwise and has no channels to separate",
    ),
    kept(
        "after NonZero",
        f"g ({IMAGE}) => (float[C, M] y) {{ i = NonZero (x) f = Cast <to = 1> (i) "
        "t = Transpose (f) h = MatMul (t, w) y = Transpose (h) }",
        {"w": (4, 6)},
        reason="the shape of its input depends on the data",
    ),
]

S8 = "s = QuantizeLinear (x, scale, zero)"
DEQUANTIZED = "d = DequantizeLinear (s, scale, zero) v = DequantizeLinear (q, scale, zero)"
KERNEL_8 = {"q": INT8} | SCALE
MATRIX_8 = {"q": INT8.reshape(-1)[:48].reshape(8, 6)} | SCALE
QUANTIZED = [
    kept("Conv", f"{S8} {DEQUANTIZED} y = Conv (d, v)", {}, given=KERNEL_8),
    kept(
        "ConvInteger",
        f"{S8} c = ConvInteger (s, q, zero) y = Cast <to = 1> (c)",
        {},
        given=KERNEL_8,
    ),
    kept(
        "QLinearConv",
        f"{S8} c = QLinearConv (s, scale, zero, q, scale, zero, scale, zero) "
        "y = DequantizeLinear (c, scale, zero)",
        {},
        given=KERNEL_8,
    ),
    kept_rows("MatMul", f"{S8} {DEQUANTIZED} y = MatMul (d, v)", {}, given=MATRIX_8),
    kept_rows(
        "MatMulInteger",
        f"{S8} c = MatMulInteger (s, q, zero) y = Cast <to = 1> (c)",
        {},
        given=MATRIX_8,
    ),
]


@pytest.mark.parametrize("graph", WEIGHTS, ids=lambda graph: graph.name)
def test_a_layer_with_a_weight_that_is_no_constant_is_kept(graph):
    assert_kept(graph, NOT_CONSTANT)


@pytest.mark.parametrize("graph", OTHERS, ids=lambda graph: graph.name)
def test_what_cannot_be_converted_is_kept_with_the_reason(graph):
    assert_kept(graph, graph.reason)


@pytest.mark.parametrize("graph", QUANTIZED, ids=lambda graph: graph.name)
def test_a_quantized_layer_is_kept(graph):
    assert_kept(graph, "it is quantized")


@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_a_network_that_onnxruntime_optimized_is_listed_and_counted(level, tmp_path):
    path = make_net(tmp_path / "net.onnx", (16, 32, 32), batch=1)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {"x": noise(1, 16, 8, 8)}
    plain, optimized = (survey(load(p), feeds) for p in (path, tmp_path / "optimized.onnx"))
    assert sorted(layer.macs for layer in optimized) == sorted(layer.macs for layer in plain)
    reasons = [layer.reason for layer in optimized if layer.reason]
    assert reasons == ["onnxruntime optimized it; give the file from before that"] * 2


@pytest.mark.parametrize("graph", QUANTIZED, ids=lambda graph: graph.name)
def test_the_work_of_a_quantized_layer_is_counted(graph):
    _, layers = converted(graph)
    assert all(layer.macs > 0 for layer in layers)
