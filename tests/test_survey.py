"""The survey of a graph: every layer with its convolution, its cost and its name, or the reason."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import SOME, at_full_rank, compute, convolutions_for, difference, input_for
from hypothesis import given
from hypothesis import strategies as st
from networks import from_text
from two_layers import TWO_LAYERS, TWO_WEIGHTS, X, one_conv, random

from converter.errors import ConverterError
from converter.graph.network import count_params, open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import count_macs, survey
from converter.runtime.ort import run


@pytest.fixture
def two_layers():
    return ir.from_proto(from_text(TWO_LAYERS, **TWO_WEIGHTS))


def outputs(model, x):
    return run(open_session(model), {"x": x})


def chains_of(model, form, feeds):
    return {
        layer.output: (layer.name, at_full_rank(layer.conv, form)) for layer in survey(model, feeds)
    }


def only_layer(text, x=X, **weights):
    (layer,) = survey(ir.from_proto(from_text(text, **weights)), {"x": x})
    return layer


@SOME
@given(data=st.data())
def test_a_surveyed_convolution_is_the_one_in_the_graph(data):
    conv = data.draw(convolutions_for("channel", np.float32))
    x = input_for(conv)
    (layer,) = survey(one_conv(conv), {"x": x})
    assert layer.conv.kernel.tobytes() == conv.kernel.tobytes()
    for field in ("stride", "padding", "dilation", "groups", "padding_mode", "transposed"):
        assert getattr(layer.conv, field) == getattr(conv, field)
    assert (layer.conv.bias is None) == (conv.bias is None)
    assert (layer.name, layer.output, layer.weight, layer.reason) == ("w", "y", "w", None)
    assert layer.size == x.shape[2:]
    assert (layer.params, layer.macs) == (conv.params, conv.macs(x.shape[2:]))
    assert difference(compute([layer.conv], x), outputs(one_conv(conv), x)["y"]) < 1e-5


@SOME
@given(
    auto_pad=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    k=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_padding_left_to_the_runtime_is_read_as_the_runtime_does(auto_pad, size, k, strides):
    text = f"""g (float[N, 2, {size[0]}, {size[1]}] x) => (float[N, 3, P, Q] y) {{
        y = Conv <auto_pad = "{auto_pad}", strides = [{strides[0]}, {strides[1]}]> (x, w)
    }}"""
    model = ir.from_proto(from_text(text, w=random(3, 2, *k)))
    x = random(1, 2, *size, seed=1)
    (layer,) = survey(model, {"x": x})
    wanted = outputs(model, x)["y"]
    assert difference(compute([layer.conv], x), wanted) < 1e-5
    rewritten = rewrite(model, chains_of(model, "channel", {"x": x}))
    assert difference(outputs(rewritten, x)["y"], wanted) < 1e-4


def test_an_explicit_kernel_shape_changes_nothing():
    text = """g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) {
        y = Conv <kernel_shape = [3, 3], group = 1, dilations = [1, 1]> (x, w)
    }"""
    layer = only_layer(text, w=random(6, 4, 3, 3))
    assert (layer.conv.k, layer.conv.groups, layer.reason) == ((3, 3), 1, None)


def test_layers_are_listed_in_graph_order_with_their_cost(two_layers):
    first, second = survey(two_layers, {"x": X})
    assert (first.name, second.name) == ("first", "second")
    assert (first.params, second.params) == (6 * 4 * 9 + 6, 5 * 6 * 6)
    assert (first.macs, second.macs) == (6 * 4 * 9 * 9 * 8, 5 * 6 * 6 * 4 * 7)
    assert (first.size, second.size) == ((9, 8), (9, 8))


@pytest.mark.parametrize(
    ("weight", "node", "name"),
    [
        ("features.0.weight", "Conv_0", "features.0"),
        ("onnx::Conv_12", "/features/0/Conv", "/features/0/Conv"),
        ("onnx::Conv_12", "", "y"),
        ("w", "Conv_0", "w"),
    ],
)
def test_a_layer_is_named_by_its_weight_or_its_node(weight, node, name):
    model = from_text("g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { y = Conv (x, w) }")
    model.graph.node[0].input[1], model.graph.node[0].name = weight, node
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(6, 4, 3, 3), weight))
    (layer,) = survey(ir.from_proto(model), {"x": X})
    assert layer.name == name


def test_layers_that_share_a_weight_are_told_apart():
    text = """g (float[N, 4, 9, 8] x) => (float[N, 4, P, Q] y) {
        a = Conv (x, w)
        y = Conv (a, w)
    }"""
    layers = survey(ir.from_proto(from_text(text, w=random(4, 4, 3, 3))), {"x": X})
    assert [layer.name for layer in layers] == ["a", "y"]
    assert [layer.reason for layer in layers] == [None, None]


def test_a_weight_that_is_fed_is_kept():
    text = """g (float[N, 4, 9, 8] x, float[6, 4, 3, 3] w) => (float[N, 6, P, Q] y) {
        y = Conv (x, w)
    }"""
    feeds = {"x": X, "w": random(6, 4, 3, 3)}
    (layer,) = survey(ir.from_proto(from_text(text)), feeds)
    assert layer.reason == "its weight is not a constant of the graph"
    assert layer.conv is None


def test_a_weight_that_is_computed_is_kept():
    text = """g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) {
        v = Relu (w)
        y = Conv (x, v)
    }"""
    layer = only_layer(text, w=random(6, 4, 3, 3))
    assert layer.reason == "its weight is not a constant of the graph"


def test_a_bias_that_is_computed_is_kept():
    text = """g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) {
        c = Relu (b)
        y = Conv (x, w, c)
    }"""
    layer = only_layer(text, w=random(6, 4, 3, 3), b=random(6))
    assert layer.reason == "its bias is not a constant of the graph"


def test_a_convolution_inside_a_subgraph_is_kept():
    text = """g (float[N, 4, 9, 8] x, bool[] which) => (float[N, 6, P, Q] y) {
        a = Conv (x, v)
        y = If (which) <
            then_branch = then_graph () => (float[N, 6, P, Q] z) { z = Conv (x, w) },
            else_branch = else_graph () => (float[N, 6, P, Q] z) { z = Relu (a) }
        >
    }"""
    model = ir.from_proto(from_text(text, v=random(6, 4, 3, 3), w=random(6, 4, 3, 3, seed=1)))
    outer, inner = survey(model, {"x": X, "which": np.array(True)})
    assert outer.reason is None
    assert inner.reason == "it is inside a subgraph"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_weight_that_is_not_finite_is_refused(value, operator):
    text = f"g (float[N, 4, 9, 8] x) => (float[N, 4, P, Q] y) {{ y = {operator} (x, w) }}"
    weight = random(4, 4, 3, 3)
    weight[1, 2, 0, 0] = value
    with pytest.raises(ConverterError, match="The weight of layer w holds NaN or infinite values"):
        only_layer(text, w=weight)


def test_a_network_that_cannot_run_is_not_surveyed(two_layers):
    with pytest.raises(ConverterError, match="cannot run the network on inputs of shape"):
        survey(two_layers, {"x": X[:, :2]})


def test_the_network_is_counted_for_one_example():
    text = """g (float[N, 4, 9, 8] x) => (float[N, 7] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        p = GlobalAveragePool (a)
        f = Flatten (p)
        h = MatMul (f, m)
        y = Gemm (h, v)
    }"""
    weights = {"w": random(6, 4, 3, 3), "b": random(6), "m": random(6, 5), "v": random(5, 7)}
    model = ir.from_proto(from_text(text, **weights))
    wanted = 6 * 4 * 9 * 9 * 8 + 6 * 5 + 5 * 7
    assert {count_macs(model, {"x": X[:batch]}) for batch in (1, 2)} == {wanted}
    assert count_params(model) == sum(array.size for array in weights.values())


def test_a_network_without_convolutions_has_no_layers():
    model = ir.from_proto(from_text("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"))
    feeds = {"x": random(2, 4)}
    assert survey(model, feeds) == ()
    assert (count_macs(model, feeds), count_params(model)) == (0, 0)
