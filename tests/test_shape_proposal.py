"""Shapes that are proposed for networks with free sizes: each runs when it is taken."""

import numpy as np
import onnx
import pytest
import torch
from networks import from_text, noise
from torch import nn

from converter.errors import ConverterError
from converter.graph.network import load
from converter.models.shape_proposal import as_options, propose_for_module, propose_shapes
from converter.models.source import open_source
from converter.options import Options

CONV = "a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)"
POOLED = "g (float[N, {}] x) => (float[N, 8, 1, 1] y) {{ " + CONV + " y = GlobalAveragePool (a) }}"
LINEAR = "g (float[N, 3, H, W] x) => (float[N, 4] y) {{ {} {} y = MatMul (f, v) }}"
FLATTEN, RESHAPE = "f = Flatten (a)", "f = Reshape (a, shape)"


def written(folder, text, metadata=None, **weights):
    model = from_text(text, **weights)
    onnx.helper.set_model_props(model, metadata or {})
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def proposed(path):
    return propose_shapes(load(path))


@pytest.mark.parametrize(
    ("sizes", "channels", "expected"),
    [
        ("3, H, W", 3, (1, 3, 224, 224)),
        ("C, H, W", 1, (1, 1, 224, 224)),
        ("3, 48, W", 3, (1, 3, 48, 320)),
    ],
)
def test_usual_sizes_are_proposed(sizes, channels, expected, tmp_path):
    path = written(tmp_path, POOLED.format(sizes), w=noise(8, channels, 3, 3))
    assert proposed(path) == {"x": expected}


SOUND = """g (float[N, L] x, float[2, N, 4] h, int64 rate)
    => (float[N, 4, 1] y, float[2, N, 4] hn) {
    r = Cast <to = 1> (rate)
    s = Mul (x, r)
    u = Unsqueeze (s, one)
    a = Conv <strides = [8]> (u, w)
    y = GlobalAveragePool (a)
    hn = Identity (h)
}"""
STEPS = """g (float[N, L] x) => (float[N, 4] y) {
    a = MatMul (x, v)
    y = Relu (a)
}"""


def test_a_signal_has_no_channels(tmp_path):
    path = written(tmp_path, SOUND, w=noise(4, 1, 32), one=np.array([1]))
    assert proposed(path) == {"x": (1, 16000), "h": (2, 1, 4)}


def test_features_are_as_many_as_the_first_layer_takes(tmp_path):
    path = written(tmp_path, STEPS, v=noise(12, 4))
    assert proposed(path) == {"x": (1, 12)}


@pytest.mark.parametrize("size", ["[96, 160]", "(96,160)"])
def test_the_metadata_go_first(size, tmp_path):
    path = written(tmp_path, POOLED.format("3, H, W"), {"imgsz": size}, w=noise(8, 3, 3, 3))
    assert proposed(path) == {"x": (1, 3, 96, 160)}


@pytest.mark.parametrize(("side", "expected"), [(20, 40), (16, 32), (14, 28)])
@pytest.mark.parametrize("body", [FLATTEN, RESHAPE])
def test_the_first_linear_layer_sets_the_side(side, expected, body, tmp_path):
    width = 8 * side * side
    weights = {"w": noise(8, 3, 3, 3), "v": noise(width, 4)}
    if body == RESHAPE:
        weights["shape"] = np.array([-1, width])
    path = written(tmp_path, LINEAR.format(CONV, body), **weights)
    assert proposed(path) == {"x": (1, 3, expected, expected)}


def test_nothing_is_proposed_where_no_square_fits(tmp_path):
    weights = {"w": noise(8, 3, 3, 3), "v": noise(8 * 14 * 15, 4)}
    path = written(tmp_path, LINEAR.format(CONV, FLATTEN), **weights)
    assert proposed(path) is None
    with pytest.raises(ConverterError, match=r"has free sizes .* or --input-shape x:\.\.\."):
        open_source(path, None, Options())


def test_inputs_share_the_sizes_of_a_symbol(tmp_path):
    text = """g (float[N, 8, T] x, float[N, 1, T] mask) => (float[N, 8, T] y)
        { y = Mul (x, mask) }"""
    shapes = proposed(written(tmp_path, text))
    assert shapes["x"][2] == shapes["mask"][2]


def test_a_refusal_holds_the_proposal_and_the_proposal_works(tmp_path):
    path = written(tmp_path, POOLED.format("3, H, W"), w=noise(8, 3, 3, 3))
    with pytest.raises(ConverterError) as caught:
        open_source(path, None, Options())
    option = str(caught.value).split("--input-shape ")[1].split(",")[0:4]
    shape = ",".join(option)
    assert shape == "x:1,3,224,224"
    source = open_source(path, None, Options.of(input_shape=(shape,)))
    assert source.shapes == {"x": (1, 3, 224, 224)}


def test_the_shape_of_a_torch_model_is_proposed():
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert propose_for_module(pooled.eval(), ["input"]) == {"input": (1, 1, 224, 224)}
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 16 * 16, 2))
    assert propose_for_module(fixed.eval(), ["input"]) == {"input": (1, 3, 32, 32)}
    assert propose_for_module(nn.ReLU(), ["input"]) is None
    assert propose_for_module(pooled, ["a", "b"]) is None


def test_names_are_quoted_for_the_shell():
    assert as_options({"x y": (1, 3)}) == "--input-shape 'x y:1,3'"


def test_a_torch_model_that_reads_one_channel_reads_grey_files(tmp_path):
    from PIL import Image

    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    source = open_source(model, None, Options.of(calib=str(tmp_path)))
    assert source.calib.read(np.arange(2))["input"].shape == (2, 1, 8, 8)
