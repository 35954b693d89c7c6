"""Layers in functions and beside subgraphs are converted, those in If, Loop and Scan are kept."""

import numpy as np
import pytest
from graph_cases import IMAGE, RESULT, SQUARE, Graph, assert_converted, assert_kept

FUNCTION = """
    <domain: "own", opset_import: ["" : {}]>
    block (x, w) => (y) {{ {} }}"""
BRANCHES = """If (which) <
    then_branch = one () => (float[N, 6, P, Q] z) {{ {} }},
    else_branch = two () => (float[N, 6, P, Q] z) {{ z = Neg (a) }}
>"""
BOTH = {"x": (2, 4, 9, 8), "which": (1,)}

CONVERTED = [
    Graph(
        "a layer in a function",
        "y = own.block (x, w)",
        kinds="Conv Relu",
        functions=FUNCTION.format(19, "a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu (a)"),
    ),
    Graph(
        "a function that is called twice",
        "a = own.block (x, w) y = own.block (a, v)",
        SQUARE,
        layers=2,
        kinds="Conv Conv",
        functions=FUNCTION.format(19, "y = Conv (x, w)"),
    ),
    Graph(
        "a layer that a subgraph uses",
        f"g ({IMAGE}, bool[1] which) => ({RESULT}) {{ "
        f"a = Conv (x, w, b) y = {BRANCHES.format('z = Relu (a)')} }}",
        feeds=BOTH,
    ),
]

PICTURE, ROW = "float[N, 4, 9, 8]", "float[N, 8]"
LAYERS = [
    ("Conv <pads = [1, 1, 1, 1]> (s, w)", PICTURE, (2, 4, 9, 8), {"w": (4, 4, 3, 3)}),
    ("ConvTranspose <pads = [1, 1, 1, 1]> (s, w)", PICTURE, (2, 4, 9, 8), {"w": (4, 4, 3, 3)}),
    ("MatMul (s, w)", ROW, (3, 8), {"w": (8, 8)}),
    ("Gemm (s, w, b)", ROW, (3, 8), {"w": (8, 8), "b": (8,)}),
]
# By name: the body as text, further inputs of the graph, their shapes, and initializers.
BODIES = {
    "If": (
        """y = If (which) <
            then_branch = one () => ({0} z) {{ s = Relu (x) z = {1} }},
            else_branch = two () => ({0} z) {{ s = Neg (x) z = {1} }}
        >""",
        ", bool[1] which",
        {"which": (1,)},
        {},
    ),
    "Loop": (
        """y = Loop (times, go, x) <
            body = body (int64 i, bool before, {0} s) => (bool after, {0} t) {{
                after = Identity (before)
                t = {1}
            }}
        >""",
        "",
        {},
        {"times": np.array(2), "go": np.array(True)},
    ),
    "Scan": (
        """y, sums = Scan (x, rows) <
            num_scan_inputs = 1,
            body = body ({0} s, float[1] row) => ({0} t, float[1] out) {{
                t = {1}
                out = Neg (row)
            }}
        >""",
        ", float[3, 1] rows",
        {"rows": (3, 1)},
        {},
    ),
}


@pytest.mark.parametrize("graph", CONVERTED, ids=lambda graph: graph.name)
def test_a_layer_that_is_always_run_is_converted(graph):
    assert_converted(graph)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("layer", "kind", "x", "weights"), LAYERS, ids=lambda value: str(value))
def test_a_layer_in_a_body_is_kept(body, layer, kind, x, weights):
    text, more, feeds, given = BODIES[body]
    graph = f"g ({kind} x{more}) => ({kind} y) {{ {text.format(kind, layer)} }}"
    case = Graph(body, graph, weights, {"x": x} | feeds, layers=0, given=given)
    assert_kept(case, "it is inside a subgraph")


@pytest.mark.parametrize(("layer", "kind", "x", "weights"), LAYERS[:2])
def test_a_layer_in_a_function_of_another_opset_is_kept(layer, kind, x, weights):
    function = FUNCTION.format(18, f"s = Neg (x) a = {layer} y = Relu (a)")
    graph = f"g ({kind} x) => ({kind} y) {{ y = own.block (x, w) }}"
    case = Graph("function", graph, weights, {"x": x}, layers=0, functions=function)
    assert_kept(case, "it is inside the function block")


def test_a_layer_in_a_branch_of_a_branch_is_kept():
    inner = """z = If (which) <
        then_branch = p () => (float[N, 6, P, Q] r) { r = Conv (x, w) },
        else_branch = q () => (float[N, 6, P, Q] r) { r = Relu (a) }
    >"""
    nodes = f"a = Conv (x, v) y = {BRANCHES.format(inner)}"
    text = f"g ({IMAGE}, bool[1] which) => ({RESULT}) {{ {nodes} }}"
    case = Graph("nested", text, {"w": (6, 4, 3, 3), "v": (6, 4, 3, 3)}, BOTH, layers=1)
    assert_kept(case, "it is inside a subgraph")
