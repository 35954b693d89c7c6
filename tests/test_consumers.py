"""The consumers of a layer's output: additions, rectifiers and pools that a refit can see."""

from dataclasses import replace

import onnx_ir as ir
import pytest
from networks import from_text, noise

from converter.graph.consumers import Consumers, find_consumers
from converter.graph.survey import survey


def around(body, value="c", **weights):
    text = f"g (float[N, 4, 8, 8] x, float[N, 8, 8, 8] u) => (float[N, 8, P, Q] y) {{ {body} }}"
    model = ir.from_proto(from_text(text, w=noise(8, 4, 3, 3), **weights))
    feeds = {"x": noise(2, 4, 8, 8), "u": noise(2, 8, 8, 8)}
    layers = [la for la in survey(model, feeds) if la.output == value]
    return find_consumers(model, layers, feeds)[value]


CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w)"
NOTHING = Consumers(None, False, (1, 1))
RECTIFIED = Consumers(None, True, (1, 1))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y = Relu (c)", RECTIFIED),
        ("y = Sigmoid (c)", NOTHING),
        ("d = Relu (c) y = Relu (d)", RECTIFIED),
        ("v = Relu (u) y = Add (c, v)", Consumers("v", False, (1, 1))),
        ("v = Relu (u) y = Add (v, c)", Consumers("v", False, (1, 1))),
        ("v = Neg (u) d = Add (c, v) y = Relu (d)", Consumers("v", True, (1, 1))),
        ("y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)", NOTHING),
        ("y = MaxPool <kernel_shape = [2, 4], strides = [2, 4]> (c)", NOTHING),
        (
            "v = Neg (u) d = Add (v, c) e = Relu (d) "
            "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)",
            Consumers("v", True, (2, 2)),
        ),
    ],
)
def test_what_follows_is_recognised(body, found):
    if "(c)" in body and "MaxPool" in body:
        found = replace(found, pool=(2, 4) if "[2, 4]" in body else (2, 2))
    assert around(f"{CONV} {body}") == found


@pytest.mark.parametrize(
    "pool",
    [
        "kernel_shape = [3, 3], strides = [2, 2]",
        "kernel_shape = [2, 2]",
        "kernel_shape = [2, 2], strides = [3, 3]",
        "kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1]",
        "kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 0, 1]",
        "kernel_shape = [3, 3], strides = [3, 3], ceil_mode = 1",
        "kernel_shape = [2, 2], strides = [2, 2], dilations = [2, 2]",
        'kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_UPPER"',
    ],
)
def test_windows_that_do_not_tile_are_refused(pool):
    assert around(f"{CONV} d = Relu (c) y = MaxPool <{pool}> (d)") == RECTIFIED
    assert around(f"{CONV} y = MaxPool <{pool}> (c)") == NOTHING


def test_pools_of_pools_are_one():
    two = "kernel_shape = [2, 2], strides = [2, 2]"
    body = f"d = MaxPool <{two}> (c) e = Relu (d) y = MaxPool <{two}> (e)"
    assert around(f"{CONV} {body}") == Consumers(None, True, (4, 4))


@pytest.mark.parametrize(
    "body",
    [
        "d = Relu (c) e = Neg (c) y = Add (d, e)",  # two users, one of which keeps all of it
        "y = Add (c, k)",  # a constant is no shortcut
        "k = Constant <value_floats = [1.0]> () d = Add (c, k) y = Relu (d)",
        "v = GlobalAveragePool (u) d = Add (c, v) y = Relu (d)",  # broadcast
        "v = ReduceMax <keepdims = 1> (u) d = Add (v, c) y = Relu (d)",
        "y = Add (c, c)",
        "y = Mul (c, u)",
    ],
)
def test_whatever_else_follows_is_nothing(body):
    weights = {"k": noise(8, 1, 1)} if ", k)" in body and "Constant" not in body else {}
    assert around(f"{CONV} {body}", **weights) == NOTHING


def test_an_output_of_the_network_is_wanted_as_it_is():
    text = """g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] c, float[N, 8, 8, 8] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        y = Relu (c)
    }"""
    model = ir.from_proto(from_text(text, w=noise(8, 4, 3, 3)))
    feeds = {"x": noise(2, 4, 8, 8)}
    assert find_consumers(model, survey(model, feeds), feeds)["c"] == NOTHING
