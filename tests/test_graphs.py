"""The ways in which a graph says "convolution", as text: converted, or kept with the reason."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from helpers import EXACT_FORMS, at_full_rank, difference, noise

from converter.decomposition.form import refusal
from converter.decomposition.forms import FORMS
from converter.evaluation.check import check_graph
from converter.graph.canonicalize import canonicalize
from converter.graph.network import inputs
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey

IMAGE = "float[N, 4, 9, 8] x"
RESULT = "float[N, C, P, Q] y"
KERNEL = {"w": (6, 4, 3, 3), "b": (6,)}
NORM = {"gain": (6,), "shift": (6,), "mean": (6,), "var": (6,)}
SQUARE = {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)}


@dataclass(frozen=True)
class Graph:
    """A graph and what is expected of it.

    Attributes:
        name: Of the case.
        text: Its nodes, or the whole graph where that begins with its name.
        weights: Shapes of its initializers; variances are positive.
        feeds: Shapes of its inputs.
        layers: How many layers can be converted.
        reason: Part of the sentence why another is kept.
        kinds: Operators of its normal form, where that is what the case is about.
        opset: Operator set.
        functions: Model-local functions, as text.
        given: Initializers with these values.
    """

    name: str
    text: str
    weights: dict = field(default_factory=lambda: KERNEL)
    feeds: dict = field(default_factory=lambda: {"x": (2, 4, 9, 8)})
    layers: int = 1
    reason: str = ""
    kinds: str = ""
    opset: int = 19
    functions: str = ""
    given: dict = field(default_factory=dict)

    def model(self):
        text = self.text
        if not text.startswith("g ("):
            text = f"g ({IMAGE}) => ({RESULT}) {{ {text} }}"
        header = f'<ir_version: 8, opset_import: ["" : {self.opset}, "own" : 1]>\n'
        proto = onnx.parser.parse_model(header + text + self.functions)
        arrays = {
            name: noise(*shape, seed=n) for n, (name, shape) in enumerate(self.weights.items())
        }
        arrays |= {"var": np.abs(arrays["var"]) + 0.5} if "var" in arrays else {}
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(array, name)
            for name, array in (arrays | self.given).items()
        )
        return ir.from_proto(proto)

    def inputs(self, model):
        kinds = {value.name: value.dtype.numpy() for value in model.graph.inputs}
        return {n: noise(*shape, seed=9).astype(kinds[n]) for n, shape in self.feeds.items()}


def of(**shapes):
    return dict(shapes)


BODY_1D = "g (float[N, 4, 9] x) => (float[N, C, P] y) {{ {} }}"
BODY_3D = "g (float[N, 4, 5, 6, 7] x) => (float[N, C, P, Q, R] y) {{ {} }}"
ROWS = "g (float[N, 8] x) => (float[N, M] y) {{ {} }}"
NHWC = "g (float[N, 9, 8, 4] x) => (float[N, P, Q, C] y) {{ {} }}"
PADS_8 = np.array([0, 0, 1, 2, 0, 0, 0, 1])
INT8 = np.random.default_rng(5).integers(-99, 99, (6, 4, 3, 3)).astype(np.int8)
SCALE = of(scale=np.array(0.02, np.float32), zero=np.array(3, np.int8))
LINEAR = of(w=(8, 6), b=(6,))
BRANCHES = """If (which) <
    then_branch = one () => (float[N, 6, P, Q] z) {{ {} }},
    else_branch = two () => (float[N, 6, P, Q] z) {{ z = Neg (a) }}
>"""

CONVERTED = [
    Graph(
        "over one axis",
        BODY_1D.format("y = Conv (x, w, b)"),
        of(w=(6, 4, 3), b=(6,)),
        of(x=(2, 4, 9)),
    ),
    Graph("over two axes", "y = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w, b)"),
    Graph(
        "over three axes",
        BODY_3D.format("y = Conv (x, w)"),
        of(w=(6, 4, 3, 2, 3)),
        of(x=(2, 4, 5, 6, 7)),
    ),
    Graph("in groups", "y = Conv <group = 2> (x, w)", of(w=(6, 2, 3, 3))),
    Graph(
        "transposed",
        "y = ConvTranspose <strides = [2, 2], output_padding = [1, 0]> (x, w, b)",
        of(w=(4, 6, 3, 3), b=(6,)),
    ),
    Graph(
        "transposed, over one axis",
        BODY_1D.format("y = ConvTranspose <strides = [2]> (x, w)"),
        of(w=(4, 6, 3)),
        of(x=(2, 4, 9)),
    ),
    Graph(
        "transposed, SAME",
        'y = ConvTranspose <auto_pad = "SAME_LOWER", strides = [2, 3]> (x, w)',
        of(w=(4, 6, 3, 4)),
    ),
    Graph(
        "transposed, output_shape",
        "y = ConvTranspose <strides = [2, 2], output_shape = [18, 16]> (x, w)",
        of(w=(4, 6, 3, 3)),
    ),
    Graph("Gemm", ROWS.format("y = Gemm (x, w, b)"), LINEAR, of(x=(3, 8))),
    Graph(
        "Gemm, transB",
        ROWS.format("y = Gemm <transB = 1> (x, w, b)"),
        of(w=(6, 8), b=(6,)),
        of(x=(3, 8)),
    ),
    Graph(
        "Gemm, alpha and beta",
        ROWS.format("y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)"),
        LINEAR,
        of(x=(3, 8)),
        kinds="Gemm",
    ),
    Graph(
        "Gemm, alpha, no bias",
        ROWS.format("y = Gemm <alpha = 0.5> (x, w)"),
        of(w=(8, 6)),
        of(x=(3, 8)),
        kinds="Gemm",
    ),
    Graph(
        "Gemm, a bias of one number",
        ROWS.format("y = Gemm (x, w, b)"),
        of(w=(8, 6), b=(1,)),
        of(x=(3, 8)),
    ),
    Graph("MatMul and Add", ROWS.format("h = MatMul (x, w) y = Add (h, b)"), LINEAR, of(x=(3, 8))),
    Graph(
        "MatMul of stacks",
        "g (float[N, 5, 8] x) => (float[N, 5, 6] y) { y = MatMul (x, w) }",
        of(w=(8, 6)),
        of(x=(2, 5, 8)),
    ),
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
        given=of(h=noise(6, 4, 3, 3).astype(np.float16)),
        kinds="Conv",
    ),
    Graph(
        "behind Reshape",
        "v = Reshape (w, s) y = Conv (x, v)",
        of(w=(6, 36)),
        given=of(s=np.array([6, 4, 3, 3])),
        kinds="Conv",
    ),
    Graph(
        "behind Transpose",
        "v = Transpose <perm = [3, 2, 0, 1]> (w) y = Conv (x, v)",
        of(w=(3, 3, 4, 6)),
        kinds="Conv",
    ),
    Graph(
        "behind Squeeze and Unsqueeze",
        "a = Squeeze (w, k) v = Unsqueeze (a, k) y = Conv (x, v)",
        of(w=(6, 4, 1, 3)),
        given=of(k=np.array([2])),
        kinds="Conv",
    ),
    Graph(
        "behind DequantizeLinear",
        "v = DequantizeLinear (q, scale, zero) y = Conv (x, v, b)",
        of(b=(6,)),
        given=of(q=INT8) | SCALE,
        kinds="Conv",
    ),
    Graph("behind arithmetic", "v = Mul (w, w) c = Neg (b) y = Conv (x, v, c)", kinds="Conv"),
    Graph(
        "a linear weight behind Transpose",
        ROWS.format("v = Transpose (w) y = MatMul (x, v)"),
        of(w=(6, 8)),
        of(x=(3, 8)),
        kinds="MatMul",
    ),
    Graph("SAME_UPPER", 'y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)'),
    Graph("SAME_LOWER", 'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)'),
    Graph("VALID", 'y = Conv <auto_pad = "VALID", strides = [2, 2]> (x, w)'),
    Graph("NOTSET", 'y = Conv <auto_pad = "NOTSET", pads = [1, 0, 0, 2]> (x, w)'),
    Graph(
        "SAME, free sizes, no stride",
        "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) { "
        'y = Conv <auto_pad = "SAME_UPPER"> (x, w) }',
    ),
    Graph(
        "a Pad in front",
        "p = Pad (x, pads) y = Conv <pads = [1, 1, 1, 1]> (p, w)",
        given=of(pads=PADS_8),
        kinds="Conv",
    ),
    Graph(
        "a Pad in front, with axes and value",
        "p = Pad (x, pads, zero, axes) y = Conv (p, w)",
        kinds="Conv",
        given=of(
            pads=np.array([2, 1, 0, 1]), zero=np.zeros((), np.float32), axes=np.array([-1, 2])
        ),
    ),
    Graph(
        "a Pad in front, opset 10",
        "p = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x) y = Conv (p, w)",
        opset=10,
        kinds="Conv",
    ),
    Graph(
        "a Pad whose pads are computed",
        "d = Add (pads, pads) p = Pad (x, d) y = Conv (p, w)",
        given=of(pads=PADS_8),
        kinds="Conv",
    ),
    Graph(
        "a Pad of two layers",
        "p = Pad (x, pads) a = Conv (p, w) c = Conv (p, v) y = Add (a, c)",
        of(w=(6, 4, 3, 3), v=(6, 4, 3, 3)),
        given=of(pads=PADS_8),
        layers=2,
        kinds="Conv Conv Add",
    ),
    Graph(
        "a reflecting Pad stays",
        'p = Pad <mode = "reflect"> (x, pads) y = Conv (p, w)',
        given=of(pads=PADS_8),
        kinds="Pad Conv",
    ),
    Graph(
        "a Pad of ones stays",
        "p = Pad (x, pads, one) y = Conv (p, w)",
        kinds="Pad Conv",
        given=of(pads=PADS_8, one=np.ones((), np.float32)),
    ),
    Graph(
        "a Pad over channels stays",
        "p = Pad (x, pads) y = Conv (p, w)",
        of(w=(6, 5, 3, 3)),
        given=of(pads=np.array([0, 1, 0, 0, 0, 0, 0, 0])),
        kinds="Pad Conv",
    ),
    Graph(
        "a Pad that crops stays",
        "p = Pad (x, pads) y = Conv (p, w)",
        kinds="Pad Conv",
        given=of(pads=np.array([0, 0, -1, 0, 0, 0, 0, 0])),
    ),
    Graph(
        "a Pad that others use stays",
        "p = Pad (x, pads) a = Conv (p, w) r = GlobalMaxPool (p) m = ReduceMax (r) y = Add (a, m)",
        given=of(pads=PADS_8),
        kinds="Pad Conv GlobalMaxPool ReduceMax Add",
    ),
    Graph(
        "BatchNormalization after Conv",
        "a = Conv (x, w, b) y = BatchNormalization (a, gain, shift, mean, var)",
        KERNEL | NORM,
        kinds="Conv",
    ),
    Graph(
        "BatchNormalization after Conv without bias",
        "a = Conv (x, w) y = BatchNormalization <epsilon = 0.1> (a, gain, shift, mean, var)",
        of(w=(6, 4, 3, 3)) | NORM,
        kinds="Conv",
    ),
    Graph(
        "BatchNormalization after ConvTranspose in groups",
        "a = ConvTranspose <group = 2> (x, w, b) y = BatchNormalization (a, gain, shift, mean, "
        "var)",
        of(w=(4, 3, 3, 3), b=(6,)) | NORM,
        kinds="ConvTranspose",
    ),
    Graph(
        "BatchNormalization after Gemm",
        ROWS.format("a = Gemm (x, w, b) y = BatchNormalization (a, gain, shift, mean, var)"),
        LINEAR | NORM,
        of(x=(3, 8)),
        kinds="Gemm",
    ),
    Graph(
        "BatchNormalization of what others use stays",
        "a = Conv (x, w) n = BatchNormalization (a, gain, shift, mean, var) y = Add (a, n)",
        KERNEL | NORM,
        kinds="Conv BatchNormalization Add",
    ),
    Graph(
        "BatchNormalization that uses the statistics of the batch stays",
        "a = Conv (x, w) "
        "y, m, v = BatchNormalization <training_mode = 1> (a, gain, shift, mean, var)",
        KERNEL | NORM,
        kinds="Conv BatchNormalization",
    ),
    Graph(
        "NHWC",
        NHWC.format(
            "t = Transpose <perm = [0, 3, 1, 2]> (x) a = Conv (t, w, b) "
            "y = Transpose <perm = [0, 2, 3, 1]> (a)"
        ),
        feeds=of(x=(2, 9, 8, 4)),
    ),
    Graph(
        "NHWC with a Pad and a turned weight",
        NHWC.format(
            "t = Transpose <perm = [0, 3, 1, 2]> (x) p = Pad (t, pads) "
            "v = Transpose <perm = [3, 2, 0, 1]> (w) a = Conv (p, v) "
            "n = BatchNormalization (a, gain, shift, mean, var) "
            "y = Transpose <perm = [0, 2, 3, 1]> (n)"
        ),
        of(w=(3, 3, 4, 6)) | NORM,
        of(x=(2, 9, 8, 4)),
        given=of(pads=PADS_8),
        kinds="Transpose Conv Transpose",
    ),
    Graph("free sizes", "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) { y = Conv (x, w) }"),
    Graph(
        "a weight of two layers",
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Conv (a, w)",
        of(w=(4, 4, 3, 3)),
        layers=2,
    ),
    Graph(
        "a weight of two layers, one normalized",
        "a = Conv (x, w) n = BatchNormalization (a, gain, shift, mean, var) c = Conv (x, w) "
        "y = Add (n, c)",
        of(w=(6, 4, 3, 3)) | NORM,
        layers=2,
        kinds="Conv Conv Add",
    ),
    Graph(
        "a weight that is an output",
        f"g ({IMAGE}) => ({RESULT}, float[6, 4, 3, 3] w) {{ y = Conv (x, w, b) }}",
    ),
    Graph(
        "a computed weight that is an output",
        f"g ({IMAGE}) => ({RESULT}, float[6, 4, 3, 3] v) {{ v = Neg (w) y = Conv (x, v, b) }}",
    ),
    Graph(
        "a weight that is listed as an input",
        f"g ({IMAGE}, float[6, 4, 3, 3] w) => ({RESULT}) {{ y = Conv (x, w) }}",
    ),
    Graph(
        "a layer in a function",
        "y = own.block (x, w)",
        opset=19,
        kinds="Conv Relu",
        functions="""
        <domain: "own", opset_import: ["" : 19]>
        block (x, w) => (y) { a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu (a) }""",
    ),
    Graph(
        "a function that is called twice",
        "a = own.block (x, w) y = own.block (a, v)",
        SQUARE,
        layers=2,
        kinds="Conv Conv",
        functions="""
        <domain: "own", opset_import: ["" : 19]>
        block (x, w) => (y) { y = Conv (x, w) }""",
    ),
    Graph(
        "a layer that a subgraph uses",
        f"g ({IMAGE}, bool[1] which) => ({RESULT}) {{ "
        f"a = Conv (x, w, b) y = {BRANCHES.format('z = Relu (a)')} }}",
        feeds=of(x=(2, 4, 9, 8), which=(1,)),
    ),
    Graph(
        "two inputs",
        f"g ({IMAGE}, float[N, 4, 9, 8] second) => ({RESULT}) {{ "
        "s = Add (x, second) y = Conv (s, w, b) }",
        feeds=of(x=(2, 4, 9, 8), second=(2, 4, 9, 8)),
    ),
    Graph(
        "a kernel of zeros", "y = Conv (x, w)", {}, given=of(w=np.zeros((6, 4, 3, 3), np.float32))
    ),
]

FED = f"g ({IMAGE}, float[6, 4, 3, 3] w) => ({RESULT}) {{ y = Conv (x, w) }}"
NOT_CONSTANT = "its weight is not a constant of the graph"
INSIDE = "it is inside a subgraph"
IN_A_BRANCH = f"g ({IMAGE}, bool[1] which) => ({RESULT}) {{{{ a = Conv (x, v) y = {{}} }}}}"
BOTH = of(x=(2, 4, 9, 8), which=(1,))
TWO = of(w=(6, 4, 3, 3), v=(6, 4, 3, 3))

CHANGING = {
    "made of what is fed": "m = ReduceMean <keepdims = 0> (x) u = Mul (w, m)",
    "that is drawn": "u = RandomNormalLike <mean = 1.0, scale = 0.000001> (w)",
    "of the shape of what is fed": "t = Shape (x) z = Cast <to = 1> (t) m = ReduceMax <keepdims = "
    "0> (z) "
    "u = Div (w, m)",
}
CHOSEN = """c = If (which) <
    then_branch = one () => (float[4, 4, 3, 3] z) { z = Neg (w) },
    else_branch = two () => (float[4, 4, 3, 3] z) { z = Abs (v) }
>"""
HALF = """
    <domain: "own", opset_import: ["" : 18]>
    half (w) => (v) { v = Neg (w) }"""
ANY = "g ({0} x{1}) => ({0} y) {{ {2} }}"
ONE_OF = """y = If (which) <
    then_branch = one () => ({0} z) {{ s = Relu (x) z = {1} }},
    else_branch = two () => ({0} z) {{ s = Neg (x) z = {1} }}
>"""
LOOP = """y = Loop (times, go, x) <
    body = body (int64 i, bool before, {0} s) => (bool after, {0} t) {{
        after = Identity (before)
        t = {1}
    }}
>"""
SCAN = """y, sums = Scan (x, rows) <
    num_scan_inputs = 1,
    body = body ({0} s, float[1] row) => ({0} t, float[1] out) {{
        t = {1}
        out = Neg (row)
    }}
>"""
PICTURE, ROW = "float[N, 4, 9, 8]", "float[N, 8]"
INNER = [
    ("Conv <pads = [1, 1, 1, 1]> (s, w)", PICTURE, (2, 4, 9, 8), of(w=(4, 4, 3, 3))),
    ("ConvTranspose <pads = [1, 1, 1, 1]> (s, w)", PICTURE, (2, 4, 9, 8), of(w=(4, 4, 3, 3))),
    ("MatMul (s, w)", ROW, (3, 8), of(w=(8, 8))),
    ("Gemm (s, w, b)", ROW, (3, 8), of(w=(8, 8), b=(8,))),
]

KEPT = [
    Graph("a weight that is fed", FED, {}, of(x=(2, 4, 9, 8), w=(6, 4, 3, 3)), 0, NOT_CONSTANT),
    *(
        Graph(
            f"{op}, a weight {how}",
            f"{made} y = {op} (x, u)",
            SQUARE,
            layers=0,
            reason=NOT_CONSTANT,
        )
        for op in ("Conv", "ConvTranspose")
        for how, made in CHANGING.items()
    ),
    *(
        Graph(
            f"{op}, a weight that a subgraph chooses",
            f"g ({IMAGE}, bool[1] which) => ({RESULT}) {{ {CHOSEN} y = {op} (x, c) }}",
            SQUARE,
            BOTH,
            0,
            NOT_CONSTANT,
        )
        for op in ("Conv", "ConvTranspose")
    ),
    *(
        Graph(
            f"{op}, a weight of another's operator",
            f"u = own.half (w) y = {op} (x, u)",
            SQUARE,
            layers=0,
            reason=NOT_CONSTANT,
            functions=HALF,
        )
        for op in ("Conv", "ConvTranspose")
    ),
    Graph(
        "a bias made of what is fed",
        "m = ReduceMean <keepdims = 0> (x) c = Mul (b, m) y = Conv (x, w, c)",
        layers=0,
        reason="its bias is not a constant of the graph",
    ),
    Graph(
        "a linear bias made of what is fed",
        ROWS.format("m = ReduceMean <keepdims = 0> (x) c = Mul (b, m) y = Gemm (x, w, c)"),
        LINEAR,
        of(x=(3, 8)),
        0,
        "its bias is not a constant of the graph",
    ),
    Graph(
        "a linear bias a row",
        ROWS.format("y = Gemm (x, w, b)"),
        of(w=(8, 6), b=(3, 6)),
        of(x=(3, 8)),
        0,
        "its bias is not one number per output",
    ),
    Graph(
        "Gemm, alpha, bias made of what is fed",
        ROWS.format(
            "m = ReduceMean <keepdims = 0> (x) c = Mul (b, m) y = Gemm <alpha = 0.5> (x, w, c)"
        ),
        LINEAR,
        of(x=(3, 8)),
        0,
        "its bias is not a constant",
    ),
    Graph(
        "Gemm, transA",
        "g (float[8, N] x) => (float[N, 6] y) { y = Gemm <transA = 1> (x, w, b) }",
        LINEAR,
        of(x=(8, 3)),
        0,
        "its input is transposed (transA)",
    ),
    Graph(
        "stacks of matrices",
        "g (float[2, 5, 8] x) => (float[2, 5, 6] y) { y = MatMul (x, w) }",
        of(w=(2, 8, 6)),
        of(x=(2, 5, 8)),
        0,
        "its weight is not a constant matrix",
    ),
    Graph(
        "SAME, stride, free sizes",
        "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) { "
        'y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w) }',
        layers=0,
        reason="depends on an input size that is free",
    ),
    Graph(
        "output_shape, free sizes",
        "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) { "
        "y = ConvTranspose <output_shape = [18, 16], strides = [2, 2]> (x, w) }",
        of(w=(4, 6, 3, 3)),
        layers=0,
        reason="depends on an input size that is free",
    ),
    Graph(
        "output_shape beyond the output",
        "y = ConvTranspose <strides = [2, 2], output_shape = [20, 18]> (x, w)",
        of(w=(4, 6, 3, 3)),
        layers=0,
        reason="its output_shape is larger than what it computes",
    ),
    Graph(
        "depthwise 1x1",
        "y = Conv <group = 4> (x, w)",
        of(w=(4, 1, 1, 1)),
        layers=0,
        reason="it is depthwise and has no channels to separate",
    ),
    *(
        Graph(
            f"{layer} in a branch",
            ANY.format(kind, ", bool[1] which", ONE_OF.format(kind, layer)),
            weights,
            of(x=x, which=(1,)),
            0,
            INSIDE,
        )
        for layer, kind, x, weights in INNER
    ),
    *(
        Graph(
            f"{layer} in a loop",
            ANY.format(kind, "", LOOP.format(kind, layer)),
            weights,
            of(x=x),
            0,
            INSIDE,
            given=of(times=np.array(2), go=np.array(True)),
        )
        for layer, kind, x, weights in INNER
    ),
    *(
        Graph(
            f"{layer} in a scan",
            ANY.format(kind, ", float[3, 1] rows", SCAN.format(kind, layer)),
            weights,
            of(x=x, rows=(3, 1)),
            0,
            INSIDE,
        )
        for layer, kind, x, weights in INNER
    ),
    *(
        Graph(
            f"{layer} in a function of another opset",
            ANY.format(kind, "", "y = own.block (x, w)"),
            weights,
            of(x=x),
            0,
            "it is inside the function block",
            functions=f"""
        <domain: "own", opset_import: ["" : 18]>
        block (s, w) => (y) {{ a = {layer} y = Relu (a) }}""",
        )
        for layer, kind, x, weights in INNER[:2]
    ),
    Graph(
        "a branch in a branch",
        IN_A_BRANCH.format(
            BRANCHES.format(
                "z = If (which) < then_branch = p () => (float[N, 6, P, Q] r) { r = Conv (x, w) }, "
                "else_branch = q () => (float[N, 6, P, Q] r) { r = Relu (a) } >"
            )
        ),
        TWO,
        BOTH,
        1,
        INSIDE,
    ),
    Graph(
        "in a function of another opset",
        "y = own.block (x, w)",
        layers=0,
        reason="it is inside the function block",
        functions="""
        <domain: "own", opset_import: ["" : 18]>
        block (x, w) => (y) { a = Conv (x, w) y = Relu (a) }""",
    ),
    Graph(
        "quantized activations and weights",
        "s = QuantizeLinear (x, scale, zero) "
        "d = DequantizeLinear (s, scale, zero) v = DequantizeLinear (q, scale, zero) "
        "y = Conv (d, v)",
        {},
        layers=0,
        reason="it is quantized",
        given=of(q=INT8) | SCALE,
    ),
    Graph(
        "quantized matrices",
        ROWS.format(
            "s = QuantizeLinear (x, scale, zero) "
            "d = DequantizeLinear (s, scale, zero) v = DequantizeLinear (q, scale, zero) "
            "y = MatMul (d, v)"
        ),
        {},
        of(x=(3, 8)),
        0,
        "it is quantized",
        given=of(q=INT8.reshape(-1)[:48].reshape(8, 6)) | SCALE,
    ),
    Graph(
        "ConvInteger",
        "s = QuantizeLinear (x, scale, zero) c = ConvInteger (s, q, zero) y = Cast <to = 1> (c)",
        {},
        layers=0,
        reason="it is quantized",
        given=of(q=INT8) | SCALE,
    ),
    Graph(
        "MatMulInteger",
        ROWS.format(
            "s = QuantizeLinear (x, scale, zero) "
            "c = MatMulInteger (s, q, zero) y = Cast <to = 1> (c)"
        ),
        {},
        of(x=(3, 8)),
        0,
        "it is quantized",
        given=of(q=INT8.reshape(-1)[:48].reshape(8, 6)) | SCALE,
    ),
    Graph(
        "QLinearConv",
        "s = QuantizeLinear (x, scale, zero) "
        "c = QLinearConv (s, scale, zero, q, scale, zero, scale, zero) "
        "y = DequantizeLinear (c, scale, zero)",
        {},
        layers=0,
        reason="it is quantized",
        given=of(q=INT8) | SCALE,
    ),
    Graph(
        "after NonZero",
        f"g ({IMAGE}) => (float[C, M] y) {{ i = NonZero (x) f = Cast <to = 1> (i) "
        "t = Transpose (f) h = MatMul (t, w) y = Transpose (h) }",
        of(w=(4, 6)),
        layers=0,
        reason="the shape of its input depends on the data",
    ),
]


def computed(model, feeds):
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def at_full(layer):
    """The chain that loses nothing, of the first form that takes the layer."""
    name = next(n for n in EXACT_FORMS if refusal(FORMS[n], layer.conv) is None)
    return at_full_rank(layer.conv, name)


def converted(graph):
    """Run a graph before and after conversion; give its normal form and the survey of that."""
    model = graph.model()
    feeds = graph.inputs(model)
    wanted = computed(model, feeds)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    read = canonicalize(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    layers = survey(read, feeds)
    free = [layer for layer in layers if layer.reason is None]
    result = rewrite(read, {layer.output: (layer.name, at_full(layer)) for layer in free})
    assert check_graph(result) is None
    for candidate in (read, result):
        actual = computed(candidate, feeds)
        assert list(actual) == list(wanted)
        for name, array in wanted.items():
            assert difference(actual[name], array) < 1e-4
        assert inputs(candidate) == inputs(model)
        assert [str(v.shape) for v in candidate.graph.outputs if v.name == "y"] == [
            str(v.shape) for v in model.graph.outputs if v.name == "y"
        ]
    assert result.opset_imports[""] == graph.opset
    return read, layers


@pytest.mark.parametrize("graph", CONVERTED, ids=lambda graph: graph.name)
def test_a_graph_is_converted(graph):
    read, layers = converted(graph)
    assert [layer.reason for layer in layers] == [None] * graph.layers
    if graph.kinds:
        assert [n.op_type for n in read.graph if n.op_type != "Constant"] == graph.kinds.split()


@pytest.mark.parametrize("graph", KEPT, ids=lambda graph: graph.name)
def test_what_cannot_be_converted_is_kept_with_the_reason(graph):
    _, layers = converted(graph)
    kept = [layer.reason for layer in layers if layer.reason]
    assert len(layers) - len(kept) == graph.layers
    assert all(graph.reason in reason for reason in kept)
    assert kept or not graph.reason
