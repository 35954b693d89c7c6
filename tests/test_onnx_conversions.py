"""Whole conversions of ONNX files: several inputs, images, exporters, tuning, inspection."""

import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import FACTORY, difference, flatconv, from_text, make_net, noise, observe
from PIL import Image

import converter
from converter import ConverterError, Options
from converter.commands import inspect
from converter.graph.network import load, open_session
from converter.graph.survey import survey
from converter.models import from_onnx as torch_import
from converter.runtime.ort import run
from converter.timing.latency import LatencyTable

CHANNEL = {"form": ("channel",), "rank": ("1.0",)}


def outputs(file, feeds):
    return run(open_session(file), feeds)


def saved(path, model):
    onnx.save(model, path)
    return path


def converted(folder, model, **options):
    result = converter.convert(model, options=Options.of(**options))
    result.save(folder)
    return result


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


# fine-tuning


@pytest.fixture
def trained(tmp_path):
    make_net(tmp_path / "net.onnx", batch="batch")
    np.savez(tmp_path / "train.npz", x=noise(200, 3, 8, 8, seed=4))
    return tmp_path


def test_tuning_brings_an_onnx_network_nearer_to_its_original(trained):
    options = {"form": ("separable",), "rank": ("4",), "keep": ("fc",), "lr": 3e-3}
    train = str(trained / "train.npz")
    path = trained / "net.onnx"
    plain = converted(trained / "out", path, **options)
    tuned = converter.convert(path, options=Options.of(finetune=6, train=train, **options))
    again = converter.finetune(trained / "out", train=train, epochs=6)
    x = {"x": noise(50, 3, 8, 8, seed=5)}
    wanted = outputs(path, x)["logits"]
    errors = [
        difference(outputs(ir.from_proto(result.model), x)["logits"], wanted)
        for result in (plain, tuned, again)
    ]
    assert max(errors[1:]) < 0.9 * errors[0]
    for result in (tuned, again):
        assert isinstance(result.model, onnx.ModelProto)
        assert result.model.graph.input == plain.model.graph.input
        assert [n.name for n in result.model.graph.node] == [n.name for n in plain.model.graph.node]
    again.save(trained / "out")
    assert (
        difference(
            outputs(trained / "out" / "model.onnx", x)["logits"],
            outputs(ir.from_proto(again.model), x)["logits"],
        )
        < 1e-6
    )


def test_layers_of_an_onnx_network_are_reconstructed(trained):
    options = {"form": ("separable",), "rank": ("4",), "keep": ("fc",), "lr": 3e-3}
    train, path = str(trained / "train.npz"), trained / "net.onnx"
    plain = converter.convert(path, options=Options.of(**options))
    distill = converter.convert(path, options=Options.of(reconstruct=20, train=train, **options))
    network, x = load(path), {"x": noise(50, 3, 8, 8, seed=5)}
    names = [x.output for x in survey(network, {"x": x["x"][:1]}) if x.name in plain.plan.chosen()]
    wanted = observe(network, names, x)
    before, after = (
        [difference(actual[name], wanted[name]) for name in names]
        for actual in (observe(ir.from_proto(r.model), names, x) for r in (plain, distill))
    )
    assert len(names) == 2
    assert sum(after) < 0.95 * sum(before)


@pytest.mark.parametrize("form", ["flattened", "spatial", "tucker", "decoupled"])
def test_a_torch_model_of_a_network_computes_the_same_and_gives_its_weights_back(form, trained):
    result = converter.convert(trained / "net.onnx", options=Options.of(form=(form,)))
    network = ir.from_proto(result.model)
    module = torch_import.to_torch(network)
    x = noise(3, 3, 8, 8)
    wanted = outputs(network, {"x": x})["logits"]
    with torch.no_grad():
        assert difference(module(torch.from_numpy(x)).numpy(), wanted) < 1e-4
        for weight in module.parameters():
            weight *= 1.1
        changed = module(torch.from_numpy(x)).numpy()
    actual = outputs(torch_import.with_weights(network, module), {"x": x})["logits"]
    assert difference(actual, changed) < 1e-4
    assert difference(outputs(network, {"x": x})["logits"], wanted) == 0


def test_a_constant_may_have_the_name_of_a_method_of_torch(tmp_path):
    text = """g (float[N, 4] x) => (float[N, 2, 2] y) {
        to = Constant <value_ints = [-1, 2, 2]> ()
        a = MatMul (x, w)
        y = Reshape (a, to)
    }"""
    network, x = ir.from_proto(from_text(text, w=noise(4, 4))), noise(3, 4)
    with torch.no_grad():
        actual = torch_import.to_torch(network)(torch.from_numpy(x)).numpy()
    assert difference(actual, outputs(network, {"x": x})["y"]) < 1e-6


def test_an_operator_that_cannot_be_tuned_is_named(tmp_path):
    proto = from_text(
        "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { y = Conv (x, w) }", w=noise(6, 4, 3, 3)
    )
    proto.graph.node[0].domain = "com.example"
    with pytest.raises(ConverterError, match="does not know the operator Conv of this network"):
        torch_import.to_torch(ir.from_proto(proto))


def test_without_the_package_the_command_to_install_it_is_told(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2fx", None)
    options = Options.of(form=("channel",), finetune=1, train=str(trained / "train.npz"))
    with pytest.raises(ConverterError, match=r"pip install 'flatconv\[onnx\]'"):
        converter.convert(trained / "net.onnx", options=options)
