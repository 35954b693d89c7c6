"""Graphs rewritten with chains or other weights: they compute what the chains compute."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import (
    EXACT_FORMS,
    FEW,
    LITTLE,
    at_full_rank,
    compute,
    convolutions_for,
    difference,
    input_for,
    make_conv,
)
from hypothesis import given
from hypothesis import strategies as st
from networks import from_text, observe
from onnx import helper
from two_layers import TWO_LAYERS, TWO_WEIGHTS, X, one_conv, random

from converter.decomposition.conv import PADDING_MODES
from converter.decomposition.decompose import decompose
from converter.decomposition.form import skeleton
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError
from converter.graph.network import count_params, open_session
from converter.graph.rewrite import replace_weights, rewrite
from converter.graph.survey import survey
from converter.runtime.ort import run


@pytest.fixture
def two_layers():
    return ir.from_proto(from_text(TWO_LAYERS, **TWO_WEIGHTS))


def check(model):
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def outputs(model, x):
    return run(open_session(model), {"x": x})


def chains_of(model, form, feeds):
    return {
        layer.output: (layer.name, at_full_rank(layer.conv, form)) for layer in survey(model, feeds)
    }


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
    chain = decompose(conv, FORMS[form], rank, LITTLE)
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
