"""Networks quantized by onnxruntime: ranges, weights, what stays in floating point."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import difference
from networks import from_text, noise
from scaled_chain import chain, outputs

from converter.data.data import from_arrays
from converter.errors import ConverterError
from converter.graph.survey import count_macs
from converter.quantization import quantize
from converter.quantization.channel_equalization import equalize
from converter.quantization.quantize import (
    behind_layers,
    linear_steps,
    observed_ranges,
    quantized,
)
from converter.runtime import ort_quantizer


def test_batches_do_not_matter_for_the_ranges():
    network, data = chain()
    one, many = (observed_ranges(network, data, size) for size in (32, 5))
    assert all(np.array_equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize(("cut", "largest"), [(True, 64), (False, 127)])
def test_weights_have_seven_bits_where_sums_are_cut(cut, largest, monkeypatch):
    monkeypatch.setattr(ort_quantizer, "saturates", lambda: cut)
    network, data = chain()
    found = quantized(network, observed_ranges(network, data, 32)).graph.initializers.values()
    weights = [w for v in found if (w := v.const_value.numpy()).dtype == np.int8 and w.ndim > 1]
    assert weights
    assert all(np.abs(weight.astype(int)).max() == largest for weight in weights)


def test_the_quantizer_is_that_of_onnxruntime_with_a_scale_a_channel():
    network, data = chain()
    model = ir.to_proto(quantized(network, observed_ranges(network, data, 32)))
    onnx.checker.check_model(model, full_check=True)
    sizes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert types["w_quantized"] == types["v_quantized"] == onnx.TensorProto.INT8
    assert sizes["w_scale"] == sizes["v_scale"] == (8,)
    assert sizes["a_scale"] == ()


def test_steps_can_stay_in_floating_point():
    network, data = chain()
    ranges = observed_ranges(network, data, 32)
    assert linear_steps(network) == ["a", "y"]
    model = ir.to_proto(quantized(network, ranges, ["y"]))
    names = {t.name for t in model.graph.initializer}
    assert "w_quantized" in names
    assert "v_quantized" not in names


def test_old_operator_sets_are_quantized_too():
    network, data = chain()
    proto = onnx.version_converter.convert_version(ir.to_proto(network), 11)
    old = ir.from_proto(proto)
    found = quantized(*equalize(old, observed_ranges(old, data, 8)))
    assert found.opset_imports[""] >= quantize.MIN_OPSET
    assert difference(outputs(found, data), outputs(network, data)) < 0.1


def test_weights_and_numbers_in_constant_nodes_are_quantized_and_counted():
    text = """net (float[N, 3, 6, 6] x) => (float[N, 3, 6, 6] y) {
        w = Constant <value = float[3, 3, 1, 1] {1,0,0, 0,2,0, 0,0,3}> ()
        six = Constant <value = float {6.0}> ()
        a = Conv (x, w)
        y = Mul (a, six) }"""
    network, data = ir.from_proto(from_text(text)), from_arrays({"x": noise(8, 3, 6, 6)}, "noise")
    small = quantized(network, observed_ranges(network, data, 8))
    assert difference(outputs(small, data), outputs(network, data)) < 0.05
    assert count_macs(small, data.read(np.arange(1))) == 9 * 36


def test_data_that_cannot_be_read_is_not_blamed_on_the_quantizer():
    network, data = chain()

    def fails(indices):
        raise ConverterError("The images differ in size.")

    with pytest.raises(ConverterError, match=r"^The images differ in size\.$"):
        observed_ranges(network, replace(data, read=fails), 8)


def test_a_network_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(quantize, "MAX_FILE_BYTES", 100)
    network, data = chain()
    with pytest.raises(ConverterError, match="2 GB or more cannot be quantized"):
        observed_ranges(network, data, 8)


def test_what_the_quantizer_cannot_do_is_told_in_a_sentence(monkeypatch):
    def fails(*arguments):
        raise ValueError("no such scale\nin two lines")

    monkeypatch.setattr(ort_quantizer.QDQQuantizer, "quantize_model", fails)
    network, data = chain()
    with pytest.raises(
        ConverterError, match=r"cannot quantize the network: .*no such scale; leave"
    ):
        quantized(network, observed_ranges(network, data, 8))


HEAD = """net (float[N, 4, 8, 8] x) => (float[N, 6, 64] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Sigmoid (a) m = Mul (a, s)
    boxes = Conv (m, v) scores = Conv (m, u)
    shape = Constant <value = int64[3] {0, -1, 64}> ()
    b = Reshape (boxes, shape) c = Reshape (scores, shape)
    pixels = Constant <value = float {100.0}> () e = Mul (b, pixels) p = Sigmoid (c)
    y = Concat <axis = 1> (e, p) }"""


def small_scores(scale=0.02):
    """A detector: boxes of hundreds of pixels, and scores of a few percent, in one output."""
    weights = {"w": noise(8, 4, 3, 3), "v": noise(4, 8, 1, 1, seed=1)}
    model = from_text(HEAD, **weights, u=scale * noise(2, 8, 1, 1, seed=2) - 0.05)
    return ir.from_proto(model), from_arrays({"x": noise(32, 4, 8, 8)}, "noise")


def test_what_follows_the_last_layers_stays_in_floating_point():
    network, data = small_scores()
    assert behind_layers(network) == {"shape", "b", "c", "pixels", "e", "p", "y"}
    found = quantized(network, observed_ranges(network, data, 8))
    operators = {node.op_type: node for node in found.graph}
    for name in ("Concat", "Reshape"):
        producers = [value.producer() for value in operators[name].inputs]
        assert not any(node and node.op_type == "DequantizeLinear" for node in producers[1:])
    assert operators["Concat"].outputs[0].name == "y"
    assert operators["Conv"].inputs[1].producer().op_type == "DequantizeLinear"


def test_scores_beside_boxes_keep_their_own_scale():
    network, data = small_scores()
    found = quantized(network, observed_ranges(network, data, 8))
    wanted, given = outputs(network, data), outputs(found, data)
    assert np.abs(wanted[:, :4]).max() > 100 and wanted[:, 4:].max() < 0.6
    assert difference(given[:, :4], wanted[:, :4]) < 0.05
    assert difference(given[:, 4:], wanted[:, 4:]) < 0.01
    spread = wanted[:, 4:] - wanted[:, 4:].mean()
    assert np.linalg.norm(given[:, 4:] - wanted[:, 4:]) < 0.1 * np.linalg.norm(spread)


@pytest.mark.parametrize(
    ("end", "left"),
    [
        ("y = Conv (a, v)", set()),
        ("c = Conv (a, v) y = Relu (c)", set()),
        ("c = Conv (a, v) r = Relu (c) y = Softmax <axis = 1> (r)", {"y"}),
        ("c = Conv (a, v) r = Relu (c) y = Add (r, c)", {"r", "y"}),
        ("y = Sigmoid (a)", {"y"}),
        ("s = Sigmoid (a) y = Conv (s, v)", set()),
        ("c = Conv (a, v) y = Add (c, x)", {"y"}),
    ],
)
def test_the_end_begins_after_the_last_layer_and_its_relu(end, left):
    weights = {"w": noise(4, 4, 1, 1), "v": noise(4, 4, 1, 1)} if "v)" in end else {}
    weights |= {"w": noise(4, 4, 1, 1)}
    text = f"net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ a = Conv (x, w) {end} }}"
    assert behind_layers(ir.from_proto(from_text(text, **weights))) == left
