"""ONNX graphs: loading, observing, surveying, and rewriting without changing what they compute."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from helpers import (
    EXACT_FORMS,
    FEW,
    SOME,
    at_full_rank,
    compute,
    convolutions_for,
    difference,
    from_text,
    input_for,
    make_conv,
    observe,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converter.decomposition.conv import PADDING_MODES
from converter.decomposition.decompose import decompose
from converter.decomposition.form import skeleton
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.graph.network import count_params, open_session
from converter.graph.rewrite import replace_weights, rewrite
from converter.graph.survey import count_macs, survey
from converter.runtime.ort import OnnxRuntime, run


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


@pytest.fixture
def two_layers():
    return ir.from_proto(from_text(TWO_LAYERS, **TWO_WEIGHTS))


@pytest.fixture
def two_layer_file(tmp_path):
    path = tmp_path / "two.onnx"
    onnx.save(from_text(TWO_LAYERS, **TWO_WEIGHTS), path)
    return path


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


def check(model):
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def outputs(model, x):
    return run(open_session(model), {"x": x})


def chains_of(model, form, feeds):
    return {
        layer.output: (layer.name, at_full_rank(layer.conv, form)) for layer in survey(model, feeds)
    }


def only_layer(text, x=X, **weights):
    (layer,) = survey(ir.from_proto(from_text(text, **weights)), {"x": x})
    return layer


def test_a_file_is_loaded_and_saved(two_layer_file, tmp_path):
    model = onnx_network.load(two_layer_file)
    onnx_network.save(model, tmp_path / "again.onnx")
    again = onnx_network.load(tmp_path / "again.onnx")
    session = onnxruntime.InferenceSession(two_layer_file)
    (wanted,) = session.run(None, {"x": X})
    assert difference(outputs(again, X)["y"], wanted) < 1e-5


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConverterError, match=r"nowhere\.onnx does not exist"):
        onnx_network.load(tmp_path / "nowhere.onnx")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConverterError, match=r"is a folder; name an \.onnx file"):
        onnx_network.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"This is a text.\n" * 9, b"{}", b"\x00" * 64])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        onnx_network.load(path)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(fraction, two_layer_file):
    content = two_layer_file.read_bytes()
    two_layer_file.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        onnx_network.load(two_layer_file)


def test_weights_beside_the_graph_are_read_unless_they_are_lost(tmp_path):
    path = tmp_path / "net.onnx"
    model = from_text(TWO_LAYERS, **TWO_WEIGHTS)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    first, _ = survey(onnx_network.load(path), {"x": X})
    assert first.conv.kernel.tobytes() == TWO_WEIGHTS["first"].tobytes()
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        onnx_network.load(path)


def test_a_graph_that_uses_an_unknown_tensor_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(from_text("g (float[1] x) => (float[1] y) { y = Add (x, nothing) }"), path)
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        onnx_network.load(path)


def test_the_inputs_are_those_that_a_caller_feeds():
    text = """g (float[N, 4, 9, 8] x, int64[M] index, float16 scale, float[6, 4, 3, 3] w)
        => (float[N, 6, P, Q] y) { y = Conv (x, w) }"""
    model = ir.from_proto(from_text(text, w=random(6, 4, 3, 3)))
    actual = {item.name: (item.shape, item.dtype) for item in onnx_network.inputs(model)}
    assert actual == {
        "x": ((None, 4, 9, 8), np.float32),
        "index": ((None,), np.int64),
        "scale": ((), np.float16),
    }


def test_a_size_of_minus_one_is_free():
    text = "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { y = Conv (x, w) }"
    model = from_text(text, w=random(6, 4, 3, 3))
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    network = ir.from_proto(model)
    assert [item.shape for item in onnx_network.inputs(network)] == [(None, 4, None, None)]
    for feeds in ({"x": random(2, 4, 9, 8)}, {"x": random(3, 4, 5, 6)}):
        (layer,) = survey(network, feeds)
        assert layer.reason is None and layer.size == feeds["x"].shape[2:]


def test_other_negative_sizes_are_refused():
    model = from_text("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -2
    with pytest.raises(ConverterError, match=r"Input 'x' .* has a size below 0"):
        onnx_network.inputs(ir.from_proto(model))


def test_an_input_that_is_not_a_tensor_is_refused():
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["x"], ["y"])], "g", [sequence], [output]
    )
    model = ir.from_proto(helper.make_model(graph, ir_version=8))
    with pytest.raises(ConverterError, match=r"Input 'x' .* has no tensor type or shape"):
        onnx_network.inputs(model)


def test_an_input_of_unknown_rank_is_refused():
    model = from_text("g (float[] x) => (float[] y) { y = Relu (x) }")
    with pytest.raises(ConverterError, match=r"Input 'x' .* has no tensor type or shape"):
        onnx_network.inputs(ir.from_proto(model))


def test_a_session_names_the_providers_that_there_are(two_layers):
    with pytest.raises(ConverterError, match=r"'NoSuchProvider' is not available .* CPUExecution"):
        open_session(two_layers, runtime=OnnxRuntime(provider="NoSuchProvider"))


def test_a_graph_that_onnxruntime_does_not_know_is_refused():
    model = from_text("g (float[1] x) => (float[1] y) { y = NoSuchOperator (x) }")
    with pytest.raises(ConverterError, match="onnxruntime cannot open the network"):
        open_session(ir.from_proto(model))


@pytest.mark.parametrize(
    "feeds", [{}, {"x": X[:, :3]}, {"x": X.astype(np.float64)}, {"x": X, "z": X}]
)
def test_inputs_that_do_not_fit_are_refused(feeds, two_layers):
    with pytest.raises(ConverterError, match="onnxruntime cannot run the network on inputs"):
        run(open_session(two_layers), feeds)


def test_inner_tensors_are_observed(two_layers):
    actual = observe(two_layers, ["b", "y", "b", "x"], {"x": X})
    conv = make_conv((6, 4, 3, 3), dtype=np.float32, padding=((1, 1), (1, 1)))
    wanted = compute([conv], X) - conv.bias[:, None, None] + TWO_WEIGHTS["bias"][:, None, None]
    assert set(actual) == {"b", "y", "x"}
    assert difference(actual["b"], np.maximum(wanted, 0)) < 1e-5
    assert actual["x"].tobytes() == X.tobytes()
    assert difference(actual["y"], outputs(two_layers, X)["y"]) < 1e-5


def test_observing_leaves_the_graph_as_it_is(two_layers):
    before = ir.to_proto(two_layers).SerializeToString(deterministic=True)
    observe(two_layers, ["a"], {"x": X})
    onnx_network.compute_shapes(two_layers, ["a"], {"x": X})
    assert ir.to_proto(two_layers).SerializeToString(deterministic=True) == before


def test_shapes_are_observed(two_layers):
    actual = onnx_network.compute_shapes(two_layers, ["x", "a", "y"], {"x": X})
    assert actual == {"x": (2, 4, 9, 8), "a": (2, 6, 9, 8), "y": (2, 5, 4, 7)}


def test_the_free_batch_axis_gets_its_name(two_layers):
    named = onnx_network.name_batch_axis(two_layers)
    assert [str(dim) for dim in named.graph.inputs[0].shape] == ["batch", "4", "9", "8"]
    assert [str(dim) for dim in two_layers.graph.inputs[0].shape] == ["N", "4", "9", "8"]
    assert difference(outputs(named, X)["y"], outputs(two_layers, X)["y"]) < 1e-5


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


@pytest.mark.parametrize("form", EXACT_FORMS)
@FEW
@given(data=st.data())
def test_a_rewritten_graph_computes_the_same_at_full_rank(form, data):
    conv = data.draw(convolutions_for(form, np.float32))
    model = one_conv(conv)
    rewritten = rewrite(model, chains_of(model, form, {"x": input_for(conv)}))
    check(rewritten)
    for batch in (1, 3):
        x = input_for(conv, seed=batch, batch=batch)
        assert difference(outputs(rewritten, x)["y"], outputs(model, x)["y"]) < 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_rewritten_graph_computes_what_its_chain_computes(form, groups):
    conv = make_conv(
        (8, 6, 3, 5),
        dtype=np.float32,
        groups=groups,
        stride=(2, 1),
        padding=((1, 0), (2, 3)),
        dilation=(1, 2),
    )
    rank = {"lvh": (1,), "dense": (1,), "decoupled": (2,), "tucker": (4, 2)}.get(form, (4,))
    chain = decompose(conv, FORMS[form], rank)
    rewritten = rewrite(one_conv(conv), {"y": ("w", chain)})
    check(rewritten)
    x = input_for(conv)
    assert difference(outputs(rewritten, x)["y"], compute(chain.steps, x)) < 1e-4


@pytest.mark.parametrize("rank", [(1, 1), (1, 3), (3, 1)])
def test_a_core_with_a_single_channel_is_rewritten_exactly(rank):
    conv = make_conv((8, 4, 3, 3), dtype=np.float32)
    chain = decompose(conv, FORMS["tucker"], rank)
    rewritten = rewrite(one_conv(conv), {"y": ("w", chain)})
    check(rewritten)
    x = input_for(conv)
    assert difference(outputs(rewritten, x)["y"], compute(chain.steps, x)) < 1e-4


@pytest.mark.parametrize("multiplier", [2, 3])
def test_a_depthwise_step_that_widens_becomes_several_and_a_concat(multiplier):
    conv = make_conv((8, 4, 3, 3), dtype=np.float32, padding=((1, 1), (1, 1)))
    chain = decompose(conv, FORMS["decoupled"], (multiplier,))
    rewritten = rewrite(one_conv(conv), {"y": ("w", chain)})
    nodes = list(rewritten.graph)
    assert [n.op_type for n in nodes] == ["Conv"] * multiplier + ["Concat", "Conv"]
    for node in nodes[:multiplier]:
        assert node.inputs[1].shape == (4, 1, 3, 3)
        assert node.attributes.get_int("group") == 4
    check(rewritten)
    x = input_for(conv)
    assert difference(outputs(rewritten, x)["y"], compute(chain.steps, x)) < 1e-4


def test_a_depthwise_step_that_does_not_widen_stays_one():
    conv = make_conv((8, 4, 3, 3), dtype=np.float32)
    chain = decompose(conv, FORMS["decoupled"], (1,))
    rewritten = rewrite(one_conv(conv), {"y": ("w", chain)})
    assert [node.op_type for node in rewritten.graph] == ["Conv", "Conv"]


@pytest.mark.parametrize("mode", [mode for mode in PADDING_MODES if mode != "zeros"])
@pytest.mark.parametrize("form", ["spatial", "decoupled", "flattened"])
def test_a_padding_that_a_conv_cannot_say_becomes_a_pad(mode, form):
    conv = make_conv((6, 4, 3, 4), dtype=np.float32, padding=((1, 2), (2, 1)), padding_mode=mode)
    chain = at_full_rank(conv, form)
    rewritten = rewrite(one_conv(conv), {"y": ("w", chain)})
    pads = [node for node in rewritten.graph if node.op_type == "Pad"]
    assert len(pads) == sum(any(map(sum, step.padding)) for step in chain.steps)
    check(rewritten)
    x = input_for(conv)
    assert difference(outputs(rewritten, x)["y"], compute([conv], x)) < 1e-4


@pytest.mark.parametrize("form", EXACT_FORMS)
def test_all_layers_of_a_network_are_rewritten(form, two_layers):
    chains = chains_of(two_layers, form, {"x": X})
    rewritten = rewrite(two_layers, chains)
    check(rewritten)
    assert difference(outputs(rewritten, X)["y"], outputs(two_layers, X)["y"]) < 1e-4
    assert not {"first", "second", "bias"} & set(rewritten.graph.initializers)


def test_the_values_keep_their_names(two_layers):
    rewritten = rewrite(two_layers, chains_of(two_layers, "separable", {"x": X}))
    names = ["a", "b", "y"]
    before, after = (observe(model, names, {"x": X}) for model in (two_layers, rewritten))
    for name in names:
        assert difference(after[name], before[name]) < 1e-4
    assert [value.name for value in rewritten.graph.outputs] == ["y"]


def test_the_new_nodes_are_named_after_the_layer(two_layers):
    rewritten = rewrite(two_layers, chains_of(two_layers, "spatial", {"x": X}))
    names = [node.name for node in rewritten.graph if node.op_type == "Conv"]
    assert names == ["first.0", "first.1", "second.0", "second.1"]


@pytest.mark.parametrize("form", EXACT_FORMS)
def test_rewriting_leaves_its_input_as_it_is(form, two_layers):
    before = ir.to_proto(two_layers).SerializeToString(deterministic=True)
    rewrite(two_layers, chains_of(two_layers, form, {"x": X}))
    assert ir.to_proto(two_layers).SerializeToString(deterministic=True) == before


def test_a_layer_without_a_chain_is_left_alone(two_layers):
    chains = chains_of(two_layers, "spatial", {"x": X})
    rewritten = rewrite(two_layers, {"a": chains["a"], "no such value": chains["y"]})
    assert [node.op_type for node in rewritten.graph] == ["Conv", "Conv", "Relu", "Conv"]
    kept = rewritten.graph.initializers["second"].const_value.numpy()
    assert kept.tobytes() == TWO_WEIGHTS["second"].tobytes()


@pytest.mark.parametrize("used_by", ["another layer's bias", "another node"])
def test_a_weight_that_others_still_use_stays(used_by):
    last = "Conv (a, v, b)" if used_by == "another layer's bias" else "Add (a, b)"
    text = f"""g (float[N, 4, 9, 8] x) => (float[N, 1, P, Q] y) {{
        a = Conv (x, w, b)
        y = {last}
    }}"""
    weights = {"w": random(1, 4, 3, 3), "b": random(1), "v": random(1, 1, 1, 1)}
    model = ir.from_proto(from_text(text, **weights))
    conv = survey(model, {"x": X})[0].conv
    rewritten = rewrite(model, {"a": ("w", at_full_rank(conv, "channel"))})
    check(rewritten)
    assert "b" in rewritten.graph.initializers
    assert difference(outputs(rewritten, X)["y"], outputs(model, X)["y"]) < 1e-4


@pytest.mark.parametrize("others", ["", "z = Relu (w)"])
def test_a_weight_in_a_constant_node_is_counted_and_goes_when_nobody_needs_it(others):
    text = f"""g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) {{
        w = Constant ()
        {others}
        y = Conv (x, w)
    }}"""
    proto, weight = from_text(text), random(6, 4, 3, 3)
    tensor = onnx.numpy_helper.from_array(weight, "w")
    proto.graph.node[0].attribute.append(helper.make_attribute("value", tensor))
    model = ir.from_proto(proto)
    assert count_params(model) == weight.size
    chains = chains_of(model, "channel", {"x": X})
    rewritten = rewrite(model, chains)
    check(rewritten)
    assert difference(outputs(rewritten, X)["y"], outputs(model, X)["y"]) < 1e-4
    left = [node for node in rewritten.graph if node.op_type == "Constant"]
    assert len(left) == (1 if others else 0)
    ((_, chain),) = chains.values()
    assert count_params(rewritten) == chain.params + (weight.size if others else 0)
    assert count_params(model) == weight.size


@pytest.mark.parametrize("name", ["w.0.weight", "w.1.bias"])
def test_a_name_that_is_taken_is_refused(name):
    text = "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { y = Conv (x, w, b) }"
    proto = from_text(text, w=random(6, 4, 3, 3), b=random(6))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(random(1), name))
    model = ir.from_proto(proto)
    with pytest.raises(ConverterError, match=f"already has a tensor named '{name}'; rename it"):
        rewrite(model, chains_of(model, "channel", {"x": X}))


def test_a_skeleton_can_stand_in_for_timing(two_layers):
    first, _ = survey(two_layers, {"x": X})
    bones = skeleton(first.conv, FORMS["flattened"], (4,))
    rewritten = rewrite(two_layers, {"a": ("first", bones)})
    check(rewritten)
    actual = observe(rewritten, ["a"], {"x": X})["a"]
    assert (
        difference(actual, np.broadcast_to(TWO_WEIGHTS["bias"][:, None, None], actual.shape)) == 0
    )


def test_a_half_precision_graph_is_rewritten():
    text = "g (float16[N, 4, 9, 8] x) => (float16[N, 6, P, Q] y) { y = Conv (x, w) }"
    weight, x = random(6, 4, 3, 3).astype(np.float16), X.astype(np.float16)
    model = ir.from_proto(from_text(text, w=weight))
    rewritten = rewrite(model, chains_of(model, "channel", {"x": x}))
    check(rewritten)
    kinds = {value.dtype for value in rewritten.graph.initializers.values()}
    assert kinds == {ir.DataType.FLOAT16}
    actual, wanted = (outputs(m, x)["y"].astype(np.float32) for m in (rewritten, model))
    assert difference(actual, wanted) < 5e-3


def test_weights_are_replaced_in_a_copy(two_layers):
    before = outputs(two_layers, X)["y"]
    second = survey(two_layers, {"x": X})[1].conv
    doubled = replace_weights(two_layers, {"y": replace(second, kernel=2 * second.kernel)})
    check(doubled)
    assert difference(outputs(doubled, X)["y"], 2 * before) < 1e-5
    bias = random(5, seed=4)
    moved = replace_weights(two_layers, {"y": replace(second, bias=bias)})
    check(moved)
    assert difference(outputs(moved, X)["y"], before + bias[:, None, None]) < 1e-5
    assert difference(outputs(two_layers, X)["y"], before) == 0
