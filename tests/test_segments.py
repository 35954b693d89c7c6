"""A network in segments: at every boundary the values are those of the whole network."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import difference
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import from_text, noise, observe

from converter.decomposition.decompose import decompose
from converter.decomposition.forms import FORMS
from converter.graph.rewrite import rewrite
from converter.graph.segments import run_segment, segment
from converter.graph.survey import survey

BRANCHES = """g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y, float[N, 6] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, second, bias)
    d = Conv (x, third)
    e = Add (c, d)
    f = Relu (e)
    g = Conv <pads = [1, 1, 1, 1]> (f, second)
    y = Add (g, b)
    m = GlobalAveragePool (f)
    z = Flatten (m)
}"""
SEVERAL = """g (float[N, 4, 8, 8] x, float[N, 4, 8, 8] u, float[N, 1, 1, 1] gate) =>
        (float[N, 6, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    b = Conv <pads = [1, 1, 1, 1]> (u, first)
    c = Mul (b, gate)
    d = Add (a, c)
    e = Conv <pads = [1, 1, 1, 1]> (d, second)
    f = Conv (u, third)
    y = Add (e, f)
}"""
SUBGRAPH = """g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    s = ReduceMax <keepdims = 0> (a)
    zero = Constant <value = float {0.0}> ()
    t = Greater (s, zero)
    b = Relu (a)
    y = If (t) <
        then_branch = yes () => (float[N, 6, 8, 8] p) {
            q = Conv <pads = [1, 1, 1, 1]> (b, second)
            p = Add (q, a)
        },
        else_branch = no () => (float[N, 6, 8, 8] o) { o = Neg (a) }
    >
}"""
UNBATCHED = """g (float[N, 4, 8, 8] x) => (float[N, 6, 64] y) {
    w = Constant <value_floats = [0.5, 2.0, 1.0, 3.0, 1.5, 0.25]> ()
    shape = Constant <value_ints = [6, 1, 1]> ()
    scale = Reshape (w, shape)
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    whole = Shape (a)
    zero = Constant <value_ints = [0]> ()
    two = Constant <value_ints = [2]> ()
    n = Slice (whole, zero, two)
    rest = Constant <value_ints = [-1]> ()
    to = Concat <axis = 0> (n, rest)
    b = Mul (a, scale)
    c = Conv <pads = [1, 1, 1, 1]> (b, second)
    y = Reshape (c, to)
}"""
FIXED = """g (float[3, 4, 8, 8] x) => (float[3, 384] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    to = Constant <value_ints = [3, 6, 64]> ()
    b = Reshape (a, to)
    back = Constant <value_ints = [3, 6, 8, 8]> ()
    c = Reshape (b, back)
    d = Conv <pads = [1, 1, 1, 1]> (c, second, bias)
    flat = Constant <value_ints = [3, 384]> ()
    y = Reshape (d, flat)
}"""
WEIGHTS = {
    "first": noise(6, 4, 3, 3),
    "second": noise(6, 6, 3, 3, seed=1) / 8,
    "third": noise(6, 4, 1, 1, seed=2),
    "bias": noise(6, seed=3),
}
NETWORKS = {
    "branches": BRANCHES,
    "several inputs": SEVERAL,
    "a subgraph": SUBGRAPH,
    "values without a batch": UNBATCHED,
    "a fixed batch": FIXED,
}


def network(name):
    text = NETWORKS[name]
    used = {w: array for w, array in WEIGHTS.items() if f"{w})" in text or f"{w}," in text}
    return ir.from_proto(from_text(text, **used))


def batches(model, count=2):
    """Batches of inputs, of 3 examples and then fewer where the network takes fewer."""
    batched = []
    for number in range(count):
        feeds = {}
        for value in model.graph.inputs:
            size, *rest = value.shape
            examples = size if isinstance(size, int) else 3 - number
            feeds[value.name] = noise(examples, *rest, seed=number + len(feeds))
        batched.append(feeds)
    return batched


def node_values(model):
    return [str(node.outputs[0].name) for node in model.graph]


def run_all(model, boundaries, feeds, chains=None):
    """The segments, and the values at each boundary, batch by batch, the inputs first."""
    segmented, states = segment(model, boundaries), [feeds]
    for number in range(len(segmented.segments)):
        states.append(run_segment(segmented, number, states[-1], 1, chains))
    return segmented, states


@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize("name", NETWORKS)
@given(data=st.data())
def test_every_value_at_a_boundary_is_that_of_the_whole_network(name, data):
    model = network(name)
    names = node_values(model)
    boundaries = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1).map(sorted))
    boundaries.sort(key=names.index)
    feeds = batches(model)
    segmented, states = run_all(model, boundaries, feeds)
    assert len(segmented.segments) == len(boundaries)
    for part, boundary, state in zip(segmented.segments, boundaries, states[1:]):
        before = names[: names.index(boundary)]
        assert not set(part.outputs) & set(names[names.index(boundary) :])
        for batch, arrays in zip(feeds, state):
            assert set(arrays) == set(part.outputs)
            inner = [value for value in arrays if value not in batch]
            assert set(inner) <= set(before)
            wanted = dict(batch) | observe(model, inner, batch)
            for value, array in arrays.items():
                assert array.shape == wanted[value].shape
                assert array.dtype == wanted[value].dtype
                assert np.allclose(array, wanted[value], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_rest_of_the_network_takes_is_alive(name):
    model = network(name)
    for number, boundary in enumerate(node_values(model)):
        (part,) = segment(model, [boundary]).segments
        later = list(onnx_nodes(model))[number:]
        made = {value for node in later for value in node.output} | set(WEIGHTS)
        taken = {value for node in later for value in deep_inputs(node)}
        inner = {value for node in later for value in inner_values(node)}
        assert taken - made - inner - {""} == set(part.outputs)


def onnx_nodes(model):
    return ir.to_proto(model).graph.node


def graphs_in(node):
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def deep_inputs(node):
    yield from node.input
    for graph in graphs_in(node):
        for inner in graph.node:
            yield from deep_inputs(inner)


def inner_values(node):
    for graph in graphs_in(node):
        for inner in graph.node:
            yield from inner.output
            yield from inner_values(inner)


@pytest.mark.parametrize("name", NETWORKS)
def test_chains_in_segments_are_chains_in_the_network(name):
    model = network(name)
    feeds = batches(model)
    layers = [layer for layer in survey(model, feeds[0]) if layer.conv is not None]
    form = FORMS["channel"]
    chains = {la.output: (la.name, decompose(la.conv, form, (3,))) for la in layers}
    names = node_values(model)
    ends = [n for n in names if not next(iter(users(model, n)), None)]
    boundaries = [layer.output for layer in layers] + [e for e in ends if e != layers[-1].output]
    boundaries.sort(key=names.index)
    whole = rewrite(model, chains)
    _, states = run_all(model, boundaries, feeds, chains)
    _, originals = run_all(model, boundaries, feeds)
    changed = 0
    for state, original in zip(states[1:], originals[1:]):
        for batch, arrays, before in zip(feeds, state, original):
            inner = [value for value in arrays if value not in batch]
            for value, wanted in observe(whole, inner, batch).items():
                assert np.allclose(arrays[value], wanted, rtol=1e-4, atol=1e-4)
                changed += not np.allclose(arrays[value], before[value], rtol=0.01, atol=0.01)
    assert changed


def users(model, name):
    value = next(v for node in model.graph for v in node.outputs if v.name == name)
    return value.uses()


def test_a_weight_that_is_a_node_is_carried_to_the_boundary_it_is_used_after():
    text = """g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) {
        a = Relu (x)
        b = Conv <pads = [1, 1, 1, 1]> (a, w)
        y = Relu (b)
    }"""
    proto = from_text(text)
    kernel = onnx.numpy_helper.from_array(WEIGHTS["first"], "w")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=kernel))
    model, x = ir.from_proto(proto), noise(2, 4, 8, 8)
    (layer,) = survey(model, {"x": x})
    chains = {"b": (layer.name, decompose(layer.conv, FORMS["channel"], (3,)))}
    segmented, states = run_all(model, ["b", "y"], [{"x": x}], chains)
    assert set(segmented.segments[0].outputs) == {"a", "w"}
    wanted = observe(rewrite(model, chains), ["b"], {"x": x})["b"]
    assert difference(states[2][0]["b"], wanted) < 1e-5


@pytest.mark.parametrize("version", [3, 8])
def test_weights_listed_as_inputs_are_weights(version):
    proto = from_text(BRANCHES, **WEIGHTS)
    proto.ir_version = version
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        for name, array in WEIGHTS.items()
    )
    model, x = ir.from_proto(proto), noise(2, 4, 8, 8)
    segmented, states = run_all(model, ["c", "g", "z"], [{"x": x}])
    assert segmented.segments[0].inputs == ("x",)
    assert set(segmented.boundary_values) == {"b", "f", "m"}
    wanted = observe(model, ["b", "f"], {"x": x})
    for name in ("b", "f"):
        assert difference(states[2][0][name], wanted[name]) < 1e-5


def test_functions_of_the_model_are_known_in_every_segment():
    proto = onnx.parser.parse_model("""<
        ir_version: 8, opset_import: ["" : 19, "own" : 1]
    >
    g (float[N, 4] x) => (float[N, 4] y) {
        a = own.twice (x)
        b = Relu (a)
        y = own.twice (b)
    }
    < domain: "own", opset_import: ["" : 19] >
    twice (x) => (y) { y = Add (x, x) }
    """)
    x = noise(2, 4)
    _, states = run_all(ir.from_proto(proto), ["b", "y"], [{"x": x}])
    assert np.array_equal(states[1][0]["a"], 2 * x)
    assert np.array_equal(states[2][0]["b"], np.maximum(2 * x, 0))


def test_nodes_after_the_last_boundary_are_never_run():
    text = """g (float[N, 4] x) => (float[N, 4] y) {
        a = Relu (x)
        b = Relu (a)
        y = Add (b, never)
    }"""
    model = ir.from_proto(from_text(text, never=noise(9, 9, 9)))
    _, states = run_all(model, ["b"], [{"x": noise(2, 4)}])
    assert set(states[1][0]) == {"a"}
