"""Graphs that exporters seldom write: rewritten all the same, or refused with the reason."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import at_full_rank, difference
from networks import from_text, noise

from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.runtime.ort import run

X = noise(2, 4, 9, 8)
W = noise(6, 4, 3, 3, seed=1)


def rewritten(model, form, x=X):
    """The network with every layer that can be one as a chain that loses nothing."""
    layers = [la for la in survey(model, {"x": x}) if la.conv is not None and not la.reason]
    return rewrite(model, {la.output: (la.name, at_full_rank(la.conv, form)) for la in layers})


def outputs(model, x=X):
    return run(open_session(model), {"x": x})


def kinds(model):
    return [node.op_type for node in model.graph]


def test_an_initializer_that_is_also_listed_as_an_input_is_rewritten():
    text = """g (float[N, 4, 9, 8] x, float[6, 4, 3, 3] w) => (float[N, 6, P, Q] y) {
        y = Conv (x, w)
    }"""
    model = ir.from_proto(from_text(text, w=W))
    result = rewritten(model, "separable")
    assert kinds(result) == ["Conv"] * 3
    assert [value.name for value in result.graph.inputs] == ["x"]
    assert difference(outputs(result)["y"], outputs(model)["y"]) < 1e-4


def test_a_weight_that_is_an_output_stays():
    text = """g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y, float[6, 4, 3, 3] w) {
        y = Conv (x, w)
    }"""
    model = ir.from_proto(from_text(text, w=W))
    result = rewritten(model, "channel")
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    assert kinds(result) == ["Conv"] * 2
    found = outputs(result)
    assert difference(found["y"], outputs(model)["y"]) < 1e-4
    np.testing.assert_array_equal(found["w"], W)


def test_padding_left_to_the_runtime_holds_for_other_sizes():
    text = """g (float[N, 4, A, B] x) => (float[N, 6, P, Q] y) {
        y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)
    }"""
    model = ir.from_proto(from_text(text, w=W))
    result = rewritten(model, "separable")
    other = np.ascontiguousarray(X[:, :, :8, :7])
    assert difference(outputs(result, other)["y"], outputs(model, other)["y"]) < 1e-4


@pytest.mark.parametrize("taken", ["w.0", "w.2"])
def test_a_value_name_that_is_taken_is_avoided(taken):
    text = "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { h = Relu (x)\n y = Conv (h, w) }"
    proto = from_text(text, w=W)
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = taken
    model = ir.from_proto(proto)
    result = rewritten(model, "separable")
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    names = [node.outputs[0].name for node in result.graph]
    assert names == [taken, "w_chain.0", "w_chain.1", "y"]
    assert difference(outputs(result)["y"], outputs(model)["y"]) < 1e-4


def test_a_bias_that_is_not_finite_is_refused():
    text = "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { y = Conv (x, w, b) }"
    model = ir.from_proto(from_text(text, w=W, b=np.full(6, np.nan, np.float32)))
    with pytest.raises(ConverterError, match="NaN"):
        survey(model, {"x": X})
