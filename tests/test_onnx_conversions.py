"""Whole conversions of ONNX files: several inputs, images, exporters, inspection."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conv_cases import difference
from networks import FACTORY, flatconv, from_text, make_net, noise
from onnx_conversions import converted, outputs
from PIL import Image

import converter
from converter import ConverterError, Options
from converter.commands import inspect
from converter.timing.latency import LatencyTable

CHANNEL = {"form": ("channel",), "rank": ("1.0",)}


def saved(path, model):
    onnx.save(model, path)
    return path


# what is kept of a file


@pytest.fixture
def annotated(tmp_path):
    """A network with everything that a file can say about itself, and BatchNormalization."""
    weights = {"w": noise(8, 4, 3, 3), "v": noise(8, 8, 3, 3)}
    ones = {name: np.ones(8, np.float32) for name in ("gain", "shift", "mean", "var")}
    text = """pictures (float[batch, 4, height, width] image) => (float[batch, 8, p, q] features) {
        a = Conv <pads = [1, 1, 1, 1]> (image, w)
        b = BatchNormalization (a, gain, shift, mean, var)
        r = Relu (b)
        features = Conv (r, v)
    }"""
    model = from_text(text, **weights, **ones)
    model.doc_string, model.producer_name, model.model_version = "About it.", "somebody", 7
    model.domain, model.graph.doc_string = "org.example", "About the graph."
    onnx.helper.set_model_props(model, {"author": "me", "labels": "a,b"})
    model.graph.input[0].doc_string = "RGB"
    return saved(tmp_path / "net.onnx", model)


def test_what_a_file_says_about_itself_is_kept(annotated, tmp_path):
    shape = ("image:1,4,9,8",)
    converted(tmp_path / "out", annotated, input_shape=shape, **CHANNEL)
    before = onnx.load(annotated)
    for name in ("original.onnx", "model.onnx"):
        after = onnx.load(tmp_path / "out" / name)
        for part in ("doc_string", "producer_name", "model_version", "domain", "ir_version"):
            assert getattr(after, part) == getattr(before, part)
        assert {p.key: p.value for p in after.metadata_props} == {"author": "me", "labels": "a,b"}
        assert (after.graph.name, after.graph.doc_string) == ("pictures", "About the graph.")
        assert after.graph.input == before.graph.input
        assert after.graph.output == before.graph.output


def test_the_original_that_ships_is_the_user_s(annotated, tmp_path):
    result = converted(tmp_path / "out", annotated, input_shape=("1,4,9,8",), **CHANNEL)
    kinds = [node.op_type for node in onnx.load(tmp_path / "out" / "original.onnx").graph.node]
    assert kinds == ["Conv", "BatchNormalization", "Relu", "Conv"]
    assert "BatchNormalization" not in [
        node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node
    ]
    original = result.comparison.original
    assert result.comparison.converted.rel_output_error < 1e-4
    x = {"image": noise(3, 4, 12, 11)}
    (wanted,), (actual,) = (
        outputs(path, x).values() for path in (annotated, tmp_path / "out" / "model.onnx")
    )
    assert difference(actual, wanted) < 1e-4
    assert original.params == sum(a.size for a in (noise(8, 4, 3, 3), noise(8, 8, 3, 3))) + 32


def test_what_is_not_converted_ships_as_it_came(annotated, tmp_path):
    converted(tmp_path / "out", annotated, input_shape=("1,4,9,8",), keep=("*",), form=("channel",))
    first, second = (onnx.load(tmp_path / "out" / n) for n in ("original.onnx", "model.onnx"))
    assert first == second
    assert len(second.graph.node) == 4


# data


def test_several_inputs_are_read_by_name(tmp_path):
    text = """two (float[N, 4, 9, 8] left, float[N, 4, 9, 8] right) => (float[N, 6] y) {
        s = Sub (left, right)
        a = Conv (s, w)
        r = Relu (a)
        p = GlobalAveragePool (r)
        y = Flatten (p)
    }"""
    path = saved(tmp_path / "net.onnx", from_text(text, w=noise(6, 4, 3, 3)))
    left = noise(40, 4, 9, 8)
    right = left + noise(40, 4, 9, 8, seed=1) * np.array([1, 1, 0.1, 0.1])[:, None, None].astype(
        "f"
    )
    np.savez(tmp_path / "calib.npz", right=right, left=left)
    options = {"form": ("channel",), "rank": ("2",)}
    fitted = converted(tmp_path / "out", path, calib=str(tmp_path / "calib.npz"), **options)
    blind = converter.convert(path, options=Options.of(**options))
    np.savez(tmp_path / "one.npz", left=left)
    errors = []
    for result in (fitted, blind):
        network = ir.from_proto(result.model)
        wanted, actual = (outputs(m, {"left": left, "right": right})["y"] for m in (path, network))
        errors.append(difference(actual, wanted))
    assert errors[0] < 0.8 * errors[1]
    with pytest.raises(ConverterError, match="right"):
        converter.convert(path, options=Options.of(calib=str(tmp_path / "one.npz"), **options))


def test_a_folder_of_images_feeds_a_network_of_channels_last(tmp_path):
    text = """tf (float[N, 8, 10, 3] x) => (float[N, 5] y) {
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (t, w, b)
        r = Relu (a)
        u = Transpose <perm = [0, 2, 3, 1]> (r)
        m = ReduceMean <keepdims = 0> (u, axes)
        y = MatMul (m, v)
    }"""
    weights = {"w": noise(6, 3, 3, 3), "b": noise(6), "v": noise(6, 5), "axes": np.array([1, 2])}
    path = saved(tmp_path / "net.onnx", from_text(text, **weights))
    (tmp_path / "images").mkdir()
    for n in range(12):
        picture = np.random.default_rng(n).integers(0, 255, (8, 10, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{n}.png")
    options = {"calib": str(tmp_path / "images"), "layout": "nhwc", "crop": None}
    result = converted(tmp_path / "out", path, **CHANNEL, **options)
    assert set(result.plan.chosen()) == {"w"}
    assert result.comparison.converted.rel_output_error < 1e-3


# exporters


def test_both_exporters_of_torch_give_the_same_conversion(tmp_path):
    names: dict = {}
    exec(FACTORY, names)  # the factory that the other tests build
    model, x = names["build"]().eval(), torch.from_numpy(noise(2, 3, 8, 8))
    results = []
    for dynamo in (True, False):
        path = tmp_path / f"{dynamo}.onnx"
        free = {"dynamic_shapes": ({0: "N"},)} if dynamo else {"dynamic_axes": {"x": {0: "N"}}}
        torch.onnx.export(
            model, (x,), path, dynamo=dynamo, input_names=["x"], verbose=False, **free
        )
        results.append(converter.convert(path, options=Options.of(form=("spatial",), rank=("4",))))
    first, second = (list(result.plan.chosen().values()) for result in results)
    assert first == second and len(first) >= 2
    feeds = {"x": noise(4, 3, 8, 8, seed=3)}
    one, other = (
        next(iter(outputs(ir.from_proto(result.model), feeds).values())) for result in results
    )
    assert difference(one, other) < 1e-4


def test_the_torch_route_and_the_onnx_route_give_the_same_plan(tmp_path):
    names: dict = {}
    exec(FACTORY, names)
    x = noise(30, 3, 8, 8)
    options = Options.of(form=("separable",), rank=("6",), seed=3)
    by_torch = converter.convert(names["build"]().eval(), options=options, calib=x)
    by_torch.save(tmp_path / "out")
    by_onnx = converter.convert(tmp_path / "out" / "original.onnx", options=options, calib=x)
    assert by_torch.plan == by_onnx.plan
    feeds = {"x": noise(4, 3, 8, 8, seed=3)}
    one, other = (
        next(iter(outputs(network, feeds).values()))
        for network in (tmp_path / "out" / "model.onnx", ir.from_proto(by_onnx.model))
    )
    assert difference(one, other) < 1e-4


# inspection, and measuring elsewhere


def test_inspection_times_other_forms_only_where_asked_or_known(tmp_path):
    path = make_net(tmp_path / "net.onnx", channels=(3, 32, 32), size=16, seed=11)
    quick = inspect(path, Options()).table
    assert [layer.name for layer in quick.layers] == ["conv0", "conv1", "fc"]
    assert quick.layers[0].ms > 0 and quick.layers[1].ms > 0
    assert not any(layer.options for layer in quick.layers)
    asked = inspect(path, Options(), gains=True).table
    assert any(layer.options for layer in asked.layers)
    known = inspect(path, Options()).table
    assert known == asked


def test_the_command_line_says_how_to_learn_more(tmp_path):
    make_net(tmp_path / "net.onnx", channels=(3, 16, 24), seed=12)
    status, text, _ = flatconv("inspect", tmp_path / "net.onnx")
    assert status == 0 and "--gains times other forms" in text
    status, text, _ = flatconv("inspect", tmp_path / "net.onnx", "--gains")
    assert status == 0 and "--gains" not in text


def test_a_file_is_measured_as_it_is_read(tmp_path):
    text = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] z) {
        v = Transpose <perm = [1, 0, 2, 3]> (w)
        z = Conv <pads = [1, 1, 1, 1]> (x, v)
    }"""
    raw = saved(tmp_path / "raw.onnx", from_text(text, w=noise(16, 16, 3, 3)))
    read = tmp_path / "read.onnx"
    assert flatconv("inspect", raw, "--normal", read)[0] == 0
    for file in (raw, read):
        times = file.with_suffix(".json")
        assert flatconv("measure", file, "-o", times, "-q")[0] == 0
        found = inspect(raw, Options.of(latency=times))
        layers, table = found.layers, found.table
        assert [timed.output for timed in table.layers] == [layer.output for layer in layers]
        measured = LatencyTable.from_json(times.read_text()).layers
        assert [timed.options for timed in table.layers] == [timed.options for timed in measured]
        assert table.layers[0].options
