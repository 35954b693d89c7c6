"""What is folded into a layer of a graph, and what stays: Pad, BatchNormalization, NHWC."""

import numpy as np
import pytest
from graph_cases import KERNEL, LINEAR, NORM, Graph, assert_converted, rows

PADS_8 = {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1])}
NORMED = "BatchNormalization (a, gain, shift, mean, var)"
NHWC = "g (float[N, 9, 8, 4] x) => (float[N, P, Q, C] y) {{ {} }}"
TO_NCHW, TO_NHWC = "Transpose <perm = [0, 3, 1, 2]>", "Transpose <perm = [0, 2, 3, 1]>"

PADS = [
    Graph(
        "of zeros",
        "p = Pad (x, pads) y = Conv <pads = [1, 1, 1, 1]> (p, w)",
        given=PADS_8,
        kinds="Conv",
    ),
    Graph(
        "with axes and value",
        "p = Pad (x, pads, zero, axes) y = Conv (p, w)",
        given={
            "pads": np.array([2, 1, 0, 1]),
            "zero": np.zeros((), np.float32),
            "axes": np.array([-1, 2]),
        },
        kinds="Conv",
    ),
    Graph(
        "of opset 10",
        "p = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x) y = Conv (p, w)",
        opset=10,
        kinds="Conv",
    ),
    Graph(
        "whose pads are computed",
        "d = Add (pads, pads) p = Pad (x, d) y = Conv (p, w)",
        given=PADS_8,
        kinds="Conv",
    ),
    Graph(
        "of two layers",
        "p = Pad (x, pads) a = Conv (p, w) c = Conv (p, v) y = Add (a, c)",
        {"w": (6, 4, 3, 3), "v": (6, 4, 3, 3)},
        given=PADS_8,
        layers=2,
        kinds="Conv Conv Add",
    ),
    Graph(
        "that reflects stays",
        'p = Pad <mode = "reflect"> (x, pads) y = Conv (p, w)',
        given=PADS_8,
        kinds="Pad Conv",
    ),
    Graph(
        "of ones stays",
        "p = Pad (x, pads, one) y = Conv (p, w)",
        given=PADS_8 | {"one": np.ones((), np.float32)},
        kinds="Pad Conv",
    ),
    Graph(
        "over channels stays",
        "p = Pad (x, pads) y = Conv (p, w)",
        {"w": (6, 5, 3, 3)},
        given={"pads": np.array([0, 1, 0, 0, 0, 0, 0, 0])},
        kinds="Pad Conv",
    ),
    Graph(
        "that crops stays",
        "p = Pad (x, pads) y = Conv (p, w)",
        given={"pads": np.array([0, 0, -1, 0, 0, 0, 0, 0])},
        kinds="Pad Conv",
    ),
    Graph(
        "that others use stays",
        "p = Pad (x, pads) a = Conv (p, w) r = GlobalMaxPool (p) m = ReduceMax (r) y = Add (a, m)",
        given=PADS_8,
        kinds="Pad Conv GlobalMaxPool ReduceMax Add",
    ),
]
NORMS = [
    Graph("after Conv", f"a = Conv (x, w, b) y = {NORMED}", KERNEL | NORM, kinds="Conv"),
    Graph(
        "after Conv without bias",
        "a = Conv (x, w) y = BatchNormalization <epsilon = 0.1> (a, gain, shift, mean, var)",
        KERNEL | NORM,
        kinds="Conv",
    ),
    Graph(
        "after ConvTranspose in groups",
        f"a = ConvTranspose <group = 2> (x, w, b) y = {NORMED}",
        {"w": (4, 3, 3, 3), "b": (6,)} | NORM,
        kinds="ConvTranspose",
    ),
    rows("after Gemm", f"a = Gemm (x, w, b) y = {NORMED}", LINEAR | NORM, kinds="Gemm"),
    Graph(
        "of what others use stays",
        f"a = Conv (x, w) n = {NORMED} y = Add (a, n)",
        KERNEL | NORM,
        kinds="Conv BatchNormalization Add",
    ),
    Graph(
        "that uses the statistics of the batch stays",
        "a = Conv (x, w) "
        "y, m, v = BatchNormalization <training_mode = 1> (a, gain, shift, mean, var)",
        KERNEL | NORM,
        kinds="Conv BatchNormalization",
    ),
]
CHANNELS_LAST = [
    Graph(
        "NHWC",
        NHWC.format(f"t = {TO_NCHW} (x) a = Conv (t, w, b) y = {TO_NHWC} (a)"),
        feeds={"x": (2, 9, 8, 4)},
    ),
    Graph(
        "NHWC with a Pad and a turned weight",
        NHWC.format(
            f"t = {TO_NCHW} (x) p = Pad (t, pads) v = Transpose <perm = [3, 2, 0, 1]> (w) "
            f"a = Conv (p, v) n = {NORMED} y = {TO_NHWC} (n)"
        ),
        {"w": (3, 3, 4, 6)} | NORM,
        {"x": (2, 9, 8, 4)},
        given=PADS_8,
        kinds="Transpose Conv Transpose",
    ),
]


@pytest.mark.parametrize("graph", PADS, ids=lambda graph: graph.name)
def test_a_pad_in_front_of_a_layer(graph):
    assert_converted(graph)


@pytest.mark.parametrize("graph", NORMS, ids=lambda graph: graph.name)
def test_a_batch_normalization(graph):
    assert_converted(graph)


@pytest.mark.parametrize("graph", CHANNELS_LAST, ids=lambda graph: graph.name)
def test_channels_in_the_last_axis(graph):
    assert_converted(graph)
