"""Limits of int8: graphs quantized in part or refused, and where it brings nothing."""

import re
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conv_cases import difference
from networks import from_text, noise
from scaled_chain import outputs

import converter
from converter.errors import ConverterError
from converter.evaluation.comparison import Comparison, Figures
from converter.evaluation.tasks.task import Judgement
from converter.graph.network import inputs
from converter.models.source import open_source
from converter.options import Options
from converter.quantization.int8 import check_int8
from converter.report.verify import notice
from converter.search.int8 import quantize as quantize_network
from converter.timing.race import Interval

ODD = {
    "a single number": """a = Conv <pads = [1, 1, 1, 1]> (x, w)
        s = ReduceMax <keepdims = 0> (a) y = Mul (a, s)""",
    "the batch elsewhere": """a = Conv <pads = [1, 1, 1, 1]> (x, w)
        t = Transpose <perm = [1, 0, 2, 3]> (a) r = Relu (t) y = Transpose <perm = [1, 0, 2, 3]> (r)
        """,
    "biases of groups": "y = ConvTranspose <group = 2, pads = [1, 1, 1, 1]> (x, g, b)",
}


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_odd_graphs_are_quantized_as_far_as_they_can_be(body, count, tmp_path):
    text = f"net (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {{ {body} }}"
    weights = {"w": noise(8, 8, 3, 3), "g": noise(8, 4, 3, 3), "b": noise(8)}
    used = {name: array for name, array in weights.items() if f", {name}" in body}
    onnx.save(from_text(text, **used), tmp_path / "odd.onnx")
    config, x = Options.of(int8=True), noise(count, 8, 6, 6)
    source = open_source(tmp_path / "odd.onnx", None, config.changed(calib=x))
    check_int8(source.network, has_samples=True)
    small = quantize_network(source.network, source, config).network
    batch = inputs(source.network)[0].shape[0] or count
    data = source.calib.take(np.arange(batch))
    assert difference(outputs(small, data), outputs(source.network, data)) < 0.05


def test_a_network_in_half_precision_is_refused(tmp_path):
    text = "net (float16[N, 3, 6, 6] x) => (float16[N, 3, 6, 6] y) { y = Conv (x, w) }"
    onnx.save(from_text(text, w=noise(3, 3, 1, 1).astype(np.float16)), tmp_path / "half.onnx")
    x = noise(8, 3, 6, 6).astype(np.float16)
    config = Options.of(form=("channel",), rank=("2",), int8=True)
    with pytest.raises(ConverterError, match="float16 network cannot be quantized"):
        converter.convert(tmp_path / "half.onnx", options=config, calib=x)
    text = """net (float[N, 3, 6, 6] x) => (float[N, 3, 6, 6] y) {
        h = Cast <to = 10> (x) c = Conv (h, w) y = Cast <to = 1> (c) }"""
    onnx.save(from_text(text, w=noise(3, 3, 1, 1).astype(np.float16)), tmp_path / "inside.onnx")
    with pytest.raises(ConverterError, match="float16 network cannot be quantized"):
        converter.convert(tmp_path / "inside.onnx", options=config, calib=x.astype(np.float32))
    text = """net (float[N, 3, 6, 6] x) => (float[N, 1, 6, 6] y) {
        w = Constant <value = float16[1, 3, 1, 1] {1, 2, 3}> ()
        h = Cast <to = 10> (x) c = Conv (h, w) y = Cast <to = 1> (c) }"""
    onnx.save(from_text(text), tmp_path / "constant.onnx")
    with pytest.raises(ConverterError, match="float16 network cannot be quantized"):
        converter.convert(tmp_path / "constant.onnx", options=config, calib=x.astype(np.float32))


@pytest.mark.parametrize(
    ("floating", "small", "gain", "words"),
    [
        (3.0, 2.0, 1.5, r"In int8 .* slower here \(2\.00 times .* take model\.onnx"),
        (2.0, 3.0, 1.5, None),
        (2.0, 2.01, 1.5, None),  # not sure
        (2.0, 3.0, 1.0, r"not faster in onnxruntime than the original's int8 \(no difference\)"),
    ],
)
def test_where_int8_brings_nothing_it_is_told(floating, small, gain, words):
    def about(speedup):
        return Interval(speedup, 0.95 * speedup, 1.05 * speedup)

    networks = [
        Figures(
            name,
            1,
            1,
            1,
            about(1.0),
            None,
            about(speedup),
            about(0.0),
            None,
            0.0,
            Judgement(0.0, 0.0),
            {},
        )
        for name, speedup in zip("abcd", (1.0, floating, 1.2, small))
    ]
    names = ("original", "converted", "original, int8", "converted, int8")
    comparison = Comparison(
        dict(zip(names, networks, strict=True)),
        about(gain),
        {"y": "regress"},
        "R2",
        (),
        "noise",
        None,
        1,
        1,
        1,
        "CPUExecutionProvider",
        1,
        {},
        "",
        {},
    )
    told = notice(comparison, SimpleNamespace(chosen=lambda: {"a": ()}), True)
    assert (told is None) == (words is None)
    assert words is None or re.search(words, told)
