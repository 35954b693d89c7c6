"""The times of nodes that onnxruntime fused and renamed go to their layers."""

import numpy as np
import onnx_ir as ir
import pytest
from networks import from_text, noise

from converter.graph.canonicalize import canonicalize
from converter.graph.survey import survey
from converter.quantization.quantize import quantized_for_timing
from converter.runtime.attribution import LayerNodes, attribute, fused_layers
from converter.runtime.ort import OnnxRuntime
from converter.runtime.ort_session import NodeTime
from converter.timing.variants import Variants

ENDS = (["a", "relu", "sum"], ["b", "sum"])
LAYERS = [LayerNodes(ends, f"x{n}", f"w{n}", 1) for n, ends in enumerate(ENDS)]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Conv", "flatconv_0", 1), ("Conv", "flatconv_1", 2)], [1, 2, 0]),
        ([("Conv", "flatconv_0.0", 1), ("Conv", "flatconv_0.1", 2), ("Conv", "b", 4)], [3, 4, 0]),
        ([("Gemm", "flatconv_1/MatMulAddFusion", 2), ("Conv", "a", 1)], [1, 2, 0]),
        ([("FusedMatMul", "flatconv_0.1/MatMulScaleFusion/", 2), ("Conv", "b", 1)], [2, 1, 0]),
        ([("Conv", "relu", 1), ("Conv", "sum", 2)], [1, 2, 0]),
        # The addition ends both layers; layer 1 has its last node already.
        ([("Conv", "flatconv_1", 1), ("Conv", "sum", 2)], [2, 1, 0]),
        # The number in the name of another node is not that of a layer.
        ([("MatMul", "flatconv_other_1", 1), ("Conv", "a", 2), ("Conv", "b", 4)], [2, 4, 1]),
        ([("MatMul", "flatconv_x", 1), ("Conv", "a", 2), ("Conv", "b", 4)], [2, 4, 1]),
        ([("Relu", "relu", 1), ("Pool", "pool", 2)], [0, 0, 3]),
        # Names that say nothing: the first layer without a node comes first.
        ([("Gemm", "MatMulBnFusion_Gemm", 1), ("Gemm", "Gemm", 2)], [1, 2, 0]),
        ([("Gemm", "MatMulBnFusion_Gemm", 1), ("Conv", "b", 2)], [1, 2, 0]),
        ([("Attention", "Attention", 1)], [0.5, 0.5, 0]),
    ],
)
def test_the_time_of_a_node_goes_to_its_layer(nodes, expected):
    assert attribute([NodeTime(*node) for node in nodes], LAYERS).tolist() == expected


def test_layers_of_one_input_share_a_node_by_their_work():
    layers = [
        LayerNodes([f"y{n}"], source, f"w{n}", macs)
        for n, (source, macs) in enumerate([("x", 1), ("x", 2), ("x", 5), ("o", 4), ("z", 3)])
    ]
    nodes = [NodeTime("Attention", "Attention", 16.0), NodeTime("Gemm", "flatconv_3", 1.0)]
    nodes.append(NodeTime("Gemm", "Gemm", 7.0))
    assert attribute(nodes, layers).tolist() == [2, 4, 10, 1, 7, 0]
    assert fused_layers(nodes, layers) == [[1, 2], [0, 2], [0, 1], [], []]


def test_equal_layers_have_one_node_together():
    layers = [LayerNodes([name], "x", weight, 1) for name, weight in ("av", "bw", "cv")]
    nodes = [NodeTime("MatMul", "flatconv_1", 1.0), NodeTime("MatMul", "flatconv_2", 4.0)]
    assert attribute(nodes, layers).tolist() == [2, 1, 2, 0]
    assert fused_layers(nodes, layers) == [[2], [], [0]]


# in onnxruntime

GRAPHS = {
    "a product and a bias over a sequence": "y = MatMul(x, w) z = Add(y, b)",
    "the bias on the left, and ReLU": "y = MatMul(x, w) t = Add(b, y) z = Relu(t)",
    "a transposed input": "t = Transpose <perm = [0, 2, 1]> (x) z = MatMul(t, v)",
    "a scaled product": "y = MatMul(x, w) c = Constant <value = float {3.0}> () z = Mul(y, c)",
    "a product between scalings": """c = Constant <value = float {3.0}> () s = Mul(x, c)
        y = MatMul(s, w) z = Div(y, c)""",
    "a normalization and a sum behind": """y = MatMul(x, w) t = Add(y, b) u = Add(t, x)
        z = LayerNormalization <axis = -1> (u, g, h)""",
    "a normalization in front": """n = LayerNormalization <axis = -1> (x, g, h)
        y = MatMul(n, w) z = Add(y, b)""",
    "GELU": """y = MatMul(x, w) t = Add(y, b) q = Div(t, r) e = Erf(q)
        one = Constant <value = float {1.0}> () p = Add(e, one) m = Mul(t, p)
        half = Constant <value = float {0.5}> () z = Mul(m, half)""",
    "matrices and a transposition": """s = Constant <value = int64[2] {6, 16}> ()
        r2 = Reshape(x, s) t = Transpose <perm = [1, 0]> (r2) z = Gemm <transA = 1> (t, w, b)""",
    "a transposed weight": """s = Constant <value = int64[2] {6, 16}> () r2 = Reshape(x, s)
        y = Gemm <transB = 1> (r2, w, b) z = Relu(y)""",
    "two layers of one input": "y = MatMul(x, w) t = MatMul(x, w2) z = Add(y, t)",
    "equal layers": "y = MatMul(x, w) t = MatMul(x, w) u = Relu(t) z = Add(y, u)",
    "attention": """q0 = MatMul(x, w) q1 = Add(q0, b) k0 = MatMul(x, w2) k1 = Add(k0, g)
        v0 = MatMul(x, w3) v1 = Add(v0, h) s = Constant <value = int64[4] {0, 0, 2, 8}> ()
        q2 = Reshape(q1, s) k2 = Reshape(k1, s) v2 = Reshape(v1, s)
        q = Transpose <perm = [0, 2, 1, 3]> (q2) k = Transpose <perm = [0, 2, 3, 1]> (k2)
        v4 = Transpose <perm = [0, 2, 1, 3]> (v2) qk = MatMul(q, k) d = Div(qk, r)
        p = Softmax <axis = 3> (d) o = MatMul(p, v4) o1 = Transpose <perm = [0, 2, 1, 3]> (o)
        back = Constant <value = int64[3] {0, 0, 16}> () o2 = Reshape(o1, back)
        o3 = MatMul(o2, w4) z = Add(o3, b)""",
    "a convolution over a sequence": """t = Transpose <perm = [0, 2, 1]> (x) y = Conv(t, kernel, b)
        z = Relu(y)""",
}
WEIGHTS = {name: noise(16, 16, seed=n) for n, name in enumerate(("w", "w2", "w3", "w4"))}
WEIGHTS |= {name: noise(16, seed=n) for n, name in enumerate("bgh", 9)}
WEIGHTS |= {"v": noise(6, 16), "r": np.float32(8**0.5), "kernel": noise(16, 16, 1)}


def variants_of(body):
    """The variants of a graph over a sequence of 6 vectors, its output of any shape."""
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: array for name, array in WEIGHTS.items() if name in words}
    network = ir.from_proto(from_text(f"net (float[1, 6, 16] x) => (float z) {{ {body} }}", **used))
    network = canonicalize(network)
    return Variants.of(network, survey(network, {"x": noise(1, 6, 16)}))


def profiled(variants, int8):
    """The profile of the unchanged network, in which every node takes a millisecond."""
    model = variants.variant(0)
    content = quantized_for_timing(model) if int8 else ir.to_proto(model).SerializeToString()
    times = OnnxRuntime().profile(content, {"x": noise(1, 6, 16)}, 0.0)
    return [NodeTime(node.operator, node.name, 1.0) for node in times]


def nodes_of(variants):
    layers = variants.manifest({"x": (1, 6, 16)})["layers"]
    return [LayerNodes(*(item[k] for k in ("ends", "source", "weight", "macs"))) for item in layers]


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("body", GRAPHS.values(), ids=GRAPHS)
def test_every_layer_has_the_time_of_its_node(body, int8):
    variants = variants_of(body)
    layers, nodes = nodes_of(variants), profiled(variants, int8)
    ms = attribute(nodes, layers)
    assert len(layers) and ms.sum() == pytest.approx(len(nodes))
    together = [1 + len(others) for others in fused_layers(nodes, layers)]
    assert ms[:-1] == pytest.approx([1 / count for count in together])
    assert max(together) == (2 if "w) t = MatMul(x, w) " in body and not int8 else 1)


def test_the_steps_of_a_linear_layer_have_the_times_of_their_nodes():
    variants = variants_of(GRAPHS["attention"])
    names = [layer.name for layer in variants.layers]
    chosen = variants.with_chosen({name: ("channel", (4,)) for name in names})
    content = ir.to_proto(chosen.variant(1)).SerializeToString()
    times = OnnxRuntime().profile(content, {"x": noise(1, 6, 16)}, 0.0)
    ms = attribute([NodeTime(n.operator, n.name, 1.0) for n in times], nodes_of(chosen))
    assert ms[:-1] == pytest.approx(np.full(4, 2.0))


def attention_of_bert():
    """An attention as old BERT exports have it, which onnxruntime computes in one node."""
    body = GRAPHS["attention"].replace("(x,", "(n,").replace("d = Div(qk, r)", MASKED)
    text = f"""net (float[1, 6, 16] x, int64[1, 6] mask) => (float[1, 6, 16] end) {{
        n = LayerNormalization <axis = -1> (x, g, h) {body} sum = Add(z, n)
        end = LayerNormalization <axis = -1> (sum, g, h) }}"""
    used = {name: array for name, array in WEIGHTS.items() if name not in ("v", "kernel")}
    model = from_text(text, **used)
    model.opset_import[0].version = 12  # onnxruntime knows LayerNormalization there, too
    numbers = {"q0": "0", "k0": "1", "v0": "2", "o3": "3"}
    for node in model.graph.node:
        (output,) = node.output
        node.name = f"flatconv_{numbers.get(output, f'other_{output}')}"
    return model


MASKED = """m1 = Unsqueeze <axes = [1]> (mask) m2 = Unsqueeze <axes = [2]> (m1)
    m3 = Cast <to = 1> (m2) one = Constant <value = float {1.0}> () m4 = Sub(one, m3)
    far = Constant <value = float {-10000.0}> () m5 = Mul(m4, far)
    d0 = Div(qk, r) d = Add(d0, m5)"""


def test_a_whole_attention_in_one_node_is_shared_by_its_layers():
    feeds = {"x": noise(1, 6, 16), "mask": np.ones((1, 6), np.int64)}
    times = OnnxRuntime().profile(attention_of_bert().SerializeToString(), feeds, 0.0)
    assert [node.name for node in times if "Attention" in node.operator] == ["Attention"]
    sources = (("q0", "n"), ("k0", "n"), ("v0", "n"), ("o3", "o2"))
    layers = [LayerNodes([end], source, f"w{end}", 1) for end, source in sources]
    ones = [NodeTime(node.operator, node.name, 1.0) for node in times]
    assert attribute(ones, layers)[:-1] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert fused_layers(ones, layers) == [[1, 2], [0, 2], [0, 1], []]
