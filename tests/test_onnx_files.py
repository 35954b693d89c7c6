"""ONNX files as users hold them: old and new, or wrong."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import at_full_rank, difference
from networks import from_text, noise

import converter
from converter import ConverterError, Options
from converter.evaluation.check import check_graph, check_same
from converter.graph.canonicalize import canonicalize
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.runtime.ort import run

NEWEST = onnx.defs.onnx_opset_version()
IMAGE, RESULT = "float[N, 4, 9, 8] x", "float[N, C, P, Q] y"
W = noise(6, 4, 3, 3)
X = noise(2, 4, 9, 8, seed=1)


def written(opset, body, ir_version=8, **weights):
    text = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    model = onnx.parser.parse_model(f"{text} g ({IMAGE}) => ({RESULT}) {{ {body} }}")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return model


def full(model, feeds):
    """A network with every layer in the form `channel` that loses nothing, in normal form."""
    read = canonicalize(model)
    layers = [layer for layer in survey(read, feeds) if layer.reason is None]
    chains = {la.output: (la.name, at_full_rank(la.conv, "channel")) for la in layers}
    return rewrite(read, chains)


def outputs(model, feeds):
    return run(open_session(model), feeds)


@pytest.mark.parametrize("opset", [*range(7, NEWEST + 1)])
def test_a_graph_of_any_opset_keeps_it(opset):
    bias = np.arange(6, dtype=np.float32)
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) y = Conv (r, v)"
    model = ir.from_proto(written(opset, body, w=W, b=bias, v=noise(5, 6, 3, 3)))
    result = full(model, {"x": X})
    assert check_graph(result) is None
    assert result.opset_imports == {"": opset}
    assert difference(outputs(result, {"x": X})["y"], outputs(model, {"x": X})["y"]) < 1e-4


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_a_graph_older_than_the_runtime_is_refused(opset):
    model = ir.from_proto(written(opset, "y = Relu (x)"))
    with pytest.raises(ConverterError, match=f"written in opset {opset}; convert it to 7"):
        canonicalize(model)


def test_an_old_file_that_must_list_weights_as_inputs_is_converted():
    proto = written(9, "y = Conv (x, w)", ir_version=3, w=W)
    kernel = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, W.shape)
    proto.graph.input.append(kernel)
    onnx.checker.check_model(proto)
    model = ir.from_proto(proto)
    result = full(model, {"x": X})
    assert check_graph(result) is None
    assert [value.name for value in result.graph.inputs] == ["x"]
    assert difference(outputs(result, {"x": X})["y"], outputs(model, {"x": X})["y"]) < 1e-4


@dataclass(frozen=True)
class Refused:
    """A graph that is refused as a whole, and part of the sentence."""

    name: str
    body: str
    words: str
    given: dict


POISON = np.full_like(W, np.inf)
ONE = np.ones(6, np.float32)
REFUSED = [
    Refused("infinite", "y = Conv (x, w)", "The weight of layer w holds NaN", {"w": POISON}),
    Refused(
        "behind Cast",
        "v = Cast <to = 1> (h) y = Conv (x, v)",
        "The weight of layer v holds NaN",
        {"h": POISON.astype(np.float16)},
    ),
    Refused(
        "behind Div",
        "v = Div (w, z) y = Conv (x, v)",
        "The weight of layer v holds NaN",
        {"w": W, "z": np.zeros((), np.float32)},
    ),
    Refused(
        "transposed",
        "y = ConvTranspose (x, w)",
        "The weight of layer w holds NaN",
        {"w": np.full((4, 6, 3, 3), np.nan, np.float32)},
    ),
    Refused(
        "linear",
        "y = MatMul (x, w)",
        "The weight of layer w holds NaN",
        {"w": np.full((8, 6), np.nan, np.float32)},
    ),
    Refused(
        "a bias", "y = Conv (x, w, b)", "The bias of layer w holds NaN", {"w": W, "b": np.nan * ONE}
    ),
    Refused(
        "a computed bias",
        "c = Log (b) y = Conv (x, w, c)",
        "The bias of layer w holds NaN",
        {"w": W, "b": -ONE},
    ),
    Refused(
        "a negative variance",
        "a = Conv (x, w) y = BatchNormalization (a, g, g, g, v)",
        "of layer w holds NaN",
        {"w": W, "g": ONE, "v": -2 * ONE},
    ),
    Refused(
        "a shape that does not fit",
        "y = Conv (x, w)",
        "onnxruntime cannot",
        {"w": noise(6, 5, 3, 3)},
    ),
    Refused(
        "an unknown operator",
        "a = Conv (x, w) y = NoSuchThing (a)",
        "onnxruntime cannot open the network",
        {"w": W},
    ),
    Refused(
        "a weight of an unknown operator",
        "v = NoSuchThing (w) y = Conv (x, v)",
        "onnxruntime cannot open the network",
        {"w": W},
    ),
    Refused(
        "a name that is taken",
        "y = Conv (x, w)",
        "already has a tensor named 'w.0.weight'",
        {"w": W, "w.0.weight": W},
    ),
]


@pytest.mark.filterwarnings("ignore:.*invalid value")
@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_graph_that_is_wrong_is_refused(case):
    body = case.body
    if case.words.startswith("already"):
        body += " u = Relu (w.0.weight)"
    proto = written(19, body.replace("u = Relu (w.0.weight)", ""), **case.given)
    if case.words.startswith("already"):
        proto.graph.node.add(op_type="Relu", input=["w.0.weight"], output=["u"])
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("u"))
    with pytest.raises(ConverterError, match=case.words):
        full(ir.from_proto(proto), {"x": X})


@pytest.mark.parametrize("axis", [0, 2])
def test_an_input_of_an_impossible_size_is_refused(axis, tmp_path):
    proto = written(19, "y = Conv (x, w)", w=W)
    proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 2**40
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(ConverterError, match="is too large to be made"):
        converter.convert(tmp_path / "net.onnx", options=Options.of(form=("channel",)))


def test_a_weight_with_fewer_numbers_than_its_shape_says_is_refused(tmp_path):
    proto = written(19, "y = Conv (x, w)", w=W)
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        converter.convert(tmp_path / "net.onnx", options=Options.of(form=("channel",)))


def test_statistics_of_another_shape_are_not_folded():
    body = "a = Conv (x, w) y = BatchNormalization (a, g, g, g, v)"
    model = ir.from_proto(written(19, body, w=W, g=ONE, v=W))
    assert [node.op_type for node in canonicalize(model).graph] == ["Conv", "BatchNormalization"]


def test_a_layer_of_a_constant_is_listed(tmp_path):
    proto = written(19, "a = Conv (c, v) y = Conv (x, w)", w=W, v=W, c=X)
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("a"))
    layers = survey(canonicalize(ir.from_proto(proto)), {"x": X})
    assert [layer.name for layer in layers] == ["v", "w"]


def test_a_network_without_inputs_is_refused(tmp_path):
    proto = from_text("g () => (float[6, 4, 3, 3] y) { y = Relu (w) }", w=W)
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(ConverterError, match="has no inputs; there is nothing to feed it"):
        converter.convert(tmp_path / "net.onnx", options=Options.of(form=("channel",)))


def test_a_bias_for_each_row_is_no_bias_of_the_outputs():
    text = """g (float[4,3] x) => (float[4,4] y) {
        a = Gemm (x, w, c)
        y = BatchNormalization (a, s, h, m, v)
    }"""
    numbers = {"s": 1 + noise(4), "h": noise(4), "m": noise(4), "v": noise(4) ** 2 + 1}
    model = ir.from_proto(from_text(text, w=noise(3, 4), c=noise(4, 1), **numbers))
    feeds = {"x": noise(4, 3)}
    assert difference(outputs(model, feeds)["y"], outputs(canonicalize(model), feeds)["y"]) <= 1e-6


def test_half_precision_that_cannot_hold_the_product_is_not_folded():
    text = """g (float16[N,3,8,8] x) => (float16[N,4,6,6] y) {
        a = Conv (x, w)
        y = BatchNormalization (a, s, h, m, v)
    }"""
    numbers = {"w": 200 + noise(4, 3, 3, 3), "s": 2 + 0 * noise(4), "h": noise(4), "m": noise(4)}
    halves = {name: array.astype(np.float16) for name, array in numbers.items()}
    model = ir.from_proto(from_text(text, v=np.full(4, 1e-6, np.float16), **halves))
    read, feeds = canonicalize(model), {"x": noise(1, 3, 8, 8).astype(np.float16)}
    assert [node.op_type for node in read.graph] == ["Conv", "BatchNormalization"]
    assert [layer.reason for layer in survey(read, feeds)] == [None]


def test_layers_of_one_name_are_told_apart():
    text = """g (float[N,3,8,8] x, bool b) => (float[N,4,6,6] y) {
        a = Conv (x, w)
        y = If (b) <
            then_branch = t () => (float[N,4,6,6] z) { z = Conv (x, w) },
            else_branch = e () => (float[N,4,6,6] z) { z = Conv (x, a_w) }
        >
    }"""
    model = from_text(text, w=noise(4, 3, 3, 3), a_w=noise(4, 3, 3, 3))
    for node in model.graph.node[1].attribute:
        node.g.node[0].name = "w"
    feeds = {"x": noise(1, 3, 8, 8), "b": np.array(True)}
    layers = survey(ir.from_proto(model), feeds)
    assert [layer.name for layer in layers] == ["w", "w#2", "w#3"]
    assert [layer.reason is None for layer in layers] == [True, False, False]


def test_a_weight_on_the_left_is_kept_with_the_reason():
    text = "g (float[3,5] x) => (float[4,5] y) { y = MatMul (w, x) }"
    (layer,) = survey(ir.from_proto(from_text(text, w=noise(4, 3))), {"x": noise(3, 5)})
    assert layer.conv is None and "left factor" in layer.reason


def test_outputs_that_are_no_numbers_are_left_out_of_the_check():
    text = """g (float[N,3] x) => (float[N,4] y, string[N,4] z) {
        y = MatMul (x, w)
        z = Cast <to = 8> (y)
    }"""
    model = ir.from_proto(from_text(text, w=noise(3, 4)))
    assert check_same(model, canonicalize(model), {"noise": {"x": noise(2, 3)}}) is None
