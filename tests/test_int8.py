"""int8: components scaled alike, quantized by onnxruntime, measured and budgeted as int8."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import (
    FEW,
    difference,
    flatconv,
    from_text,
    macs_stopwatch,
    make_net,
    noise,
    table_by_macs,
    work_in,
)
from hypothesis import given
from hypothesis import strategies as st

import converter
from converter.commands import dry_run
from converter.data.data import from_arrays
from converter.errors import ConverterError
from converter.evaluation.comparison import Comparison, Figures
from converter.graph.network import load, open_session
from converter.graph.survey import count_macs, survey
from converter.models.source import open_source
from converter.options import Options
from converter.quantization import quantize
from converter.quantization.channel_equalization import MAX_SCALE, equalize
from converter.quantization.int8 import check_int8
from converter.quantization.quantize import linear_steps, observed_ranges, quantized
from converter.report.verify import notice
from converter.runtime import ort_quantizer, stopwatch
from converter.runtime.ort import OnnxRuntime, run
from converter.search.int8 import quantize as quantize_network
from converter.timing import profile
from converter.timing.latency import LatencyTable
from converter.timing.race import Interval
from converter.timing.variants import Variants


@pytest.fixture(autouse=True, scope="module")
def counted_time():
    """Races count multiply-accumulates: no outcome depends on the clock."""
    settings = stopwatch.TimingSettings(
        0.02, 2, 1, pause_s=0, race_s=0, min_rounds=8, max_rounds=8, stopwatch=macs_stopwatch
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "DEFAULT_SETTINGS", settings)
        yield


def chain(groups=1, matrix=False, seed=0, **between):
    """Two linear steps whose components differ in size by a thousand; and inputs."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-1.5, 1.5, 8)
    if matrix:
        w, v = rng.standard_normal((6, 8)) * sizes, rng.standard_normal((8, 4)) / sizes[:, None]
        text = "net (float[N, 6] x) => (float[N, 4] y) { a = MatMul (x, w) y = Gemm (a, v) }"
        weights, x = {"w": w, "v": v}, noise(32, 6, seed=seed)
    else:
        w = rng.standard_normal((8, 3, 1, 1)) * sizes[:, None, None, None]
        v = rng.standard_normal((8, 8 // groups, 3, 3))
        v /= np.repeat(sizes.reshape(groups, -1), 8 // groups, axis=0)[..., None, None]
        text = f"""net (float[N, 3, 6, 6] x) => (float[N, 8, 6, 6] y) {{
            a = Conv (x, w, b)
            y = Conv <group = {groups}, pads = [1, 1, 1, 1]> (a, v) }}"""
        weights, x = {"w": w, "b": sizes, "v": v}, noise(32, 3, 6, 6, seed=seed)
    model = from_text(text, **{name: a.astype(np.float32) for name, a in weights.items()})
    return ir.from_proto(model), from_arrays({"x": x}, "noise")


def outputs(network, data):
    feeds = data.read(np.arange(data.count))
    return next(iter(run(open_session(network), feeds).values()))


@FEW
@given(st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(0, 100))
def test_components_are_brought_to_the_same_range_and_nothing_changes(groups, matrix, seed):
    network, data = chain(groups, matrix, seed)
    before = observed_ranges(network, data, 8)
    copy, told = equalize(network, before)
    assert difference(outputs(copy, data), outputs(network, data)) < 1e-5
    seen = observed_ranges(copy, data, 8)
    old, largest = (np.maximum(-ranges["a"][0], ranges["a"][1]) for ranges in (before, seen))
    scaled = old >= old.max() / MAX_SCALE  # by no more than that
    assert np.allclose(largest[scaled], old.max(), rtol=1e-3)
    for name, (low, high) in seen.items():
        assert np.allclose(told[name][0], low, rtol=1e-3, atol=1e-5)
        assert np.allclose(told[name][1], high, rtol=1e-3, atol=1e-5)


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


@pytest.mark.parametrize("seed", range(3))
def test_scaled_alike_a_chain_errs_less_in_int8(seed):
    network, data = chain(groups=8, seed=seed)
    wanted, ranges = outputs(network, data), observed_ranges(network, data, 32)
    plain = difference(outputs(quantized(network, ranges), data), wanted)
    even = difference(outputs(quantized(*equalize(network, ranges)), data), wanted)
    assert even < min(0.03, plain / 3)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kinds", ["tc", "ct", "tt"])
def test_components_of_transposed_convolutions_are_evened_too(groups, kinds):
    rng = np.random.default_rng(groups)
    sizes = 10.0 ** rng.uniform(-1.5, 1.5, 8)
    first, second = ("ConvTranspose" if kind == "t" else "Conv" for kind in kinds)
    w = rng.standard_normal((8, 8 // groups, 3, 3))
    along = np.repeat(sizes.reshape(groups, -1), 8 // groups, axis=0)[..., None, None]
    w *= along if first == "ConvTranspose" else sizes[:, None, None, None]
    v = rng.standard_normal((8, 8, 1, 1))
    v /= sizes[:, None, None, None] if second == "ConvTranspose" else sizes[None, :, None, None]
    text = f"""net (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {{
        a = {first} <group = {groups}, pads = [1, 1, 1, 1]> (x, w)
        y = {second} (a, v) }}"""
    model = from_text(text, w=w.astype(np.float32), v=v.astype(np.float32))
    network, data = ir.from_proto(model), from_arrays({"x": noise(32, 8, 6, 6)}, "noise")
    ranges, wanted = observed_ranges(network, data, 8), outputs(network, data)
    copy, told = equalize(network, ranges)
    assert difference(outputs(copy, data), wanted) < 1e-5
    largest = np.maximum(-told["a"][0], told["a"][1])
    assert np.allclose(largest, largest[0], rtol=1e-3)
    assert difference(outputs(quantized(copy, told), data), wanted) < 0.05


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
    small = quantize_network(source.network, source, config)
    assert difference(outputs(small, source.calib), outputs(source.network, source.calib)) < 0.05


UNEVEN = {
    "a relu between": "a = Conv (x, w) r = Relu (a) y = Conv (r, v)",
    "products over more axes": "a = MatMul (x, m) y = MatMul (a, n)",
    "another use": "a = Conv (x, w) b = Conv (a, v) s = Conv (a, v) y = Add (b, s)",
    "shared weights": "a = Conv (x, w) b = Conv (a, v) y = Conv (b, v)",
}


@pytest.mark.parametrize("body", UNEVEN.values(), ids=UNEVEN)
def test_what_is_not_free_is_left_alone(body):
    text = f"net (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {{ {body} }}"
    weights = {name: noise(8, 8, 1, 1, seed=n) for n, name in enumerate("wv")}
    weights |= {name: noise(6, 6, seed=n) for n, name in enumerate("mn")}
    network = ir.from_proto(from_text(text, **weights))
    data = from_arrays({"x": noise(8, 8, 6, 6)}, "noise")
    copy, _ = equalize(network, observed_ranges(network, data, 8))
    for name, weight in weights.items():
        assert np.array_equal(copy.graph.initializers[name].const_value.numpy(), weight)


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
    assert found.opset_imports[""] >= quantize.OLDEST_OPSET
    assert difference(outputs(found, data), outputs(network, data)) < 0.1


CROSSED = {
    "a product of rows of pictures": "a = Conv (x, w) y = MatMul (a, m)",
    "a convolution of products": "a = MatMul (x, m) y = Conv (a, w)",
}


@pytest.mark.parametrize("body", CROSSED.values(), ids=CROSSED)
def test_steps_whose_components_lie_along_other_axes_are_not_scaled(body):
    text = f"net (float[N, 6, 6, 6] x) => (float[N, 6, 6, 6] y) {{ {body} }}"
    weights = {"w": noise(6, 6, 1, 1), "m": noise(6, 6, seed=1)}
    network = ir.from_proto(from_text(text, **weights))
    data = from_arrays({"x": noise(8, 6, 6, 6, seed=2)}, "noise")
    copy, _ = equalize(network, observed_ranges(network, data, 8))
    assert difference(outputs(copy, data), outputs(network, data)) == 0


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


def test_old_operator_sets_are_timed():
    network, _ = chain()
    old = onnx.version_converter.convert_version(ir.to_proto(network), 11)
    network = ir.from_proto(old)
    shapes = {"x": (1, 3, 6, 6)}
    variants = Variants.of(network, survey(network, {"x": noise(*shapes["x"])}))
    found = profile.measure(variants, shapes, OnnxRuntime(), int8=True)
    assert len(found.layers) == 2
    assert all(layer.ms > 0 for layer in found.layers)


def test_weights_in_a_file_of_their_own_are_timed(place):
    onnx.save(
        onnx.load(place / "net.onnx"),
        place / "apart.onnx",
        save_as_external_data=True,
        location="apart.data",
        size_threshold=1024,
    )
    arguments = ("--input-shape", "1,3,32,32", "--int8")
    status, _, err = flatconv("measure", "apart.onnx", "-o", "apart.json", *arguments)
    assert status == 0, err
    assert LatencyTable.from_json((place / "apart.json").read_text()).float_ms > 0


def test_a_budget_kept_by_steps_in_floating_point_is_told_as_kept(place):
    config = Options.of(calib="calib.npz", max_error=0.02, int8=True, latency="table.json")
    report = converter.convert("net.onnx", options=config).report.to_dict()
    assert report["met"]
    # int8 alone would break the budget: it is held against what of it keeps it, too.
    for name in ("original", "converted"):
        assert report["int8"][name]["rel_output_error"] <= 0.02
    assert any(layer["form"] for layer in report["layers"])


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


def test_a_dry_run_refuses_what_a_conversion_refuses(place):
    with pytest.raises(ConverterError, match="--int8 needs sample inputs"):
        dry_run("net.onnx", Options.of(int8=True, max_error=0.1))


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


# end to end


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network whose kernels are nearly of low rank, and data, in the current folder."""
    with work_in(tmp_path_factory.mktemp("int8")) as here:
        make_net(here / "net.onnx", channels=(3, 32, 32, 32), size=32, loss=0.02)
        np.savez(here / "calib.npz", x=noise(64, 3, 32, 32, seed=1))
        table = table_by_macs("net.onnx")
        (here / "table.json").write_text(replace(table, float_ms=2 * table.ms).to_json())
        yield here


@pytest.fixture(scope="module")
def by_hand(place):
    arguments = ("--calib", "calib.npz", "--form", "channel", "--rank", 8, "--int8", "--json")
    status, out, err = flatconv("convert", "net.onnx", "-o", "out", *arguments)
    assert status == 0, err
    return json.loads(out)


def test_four_networks_are_delivered_and_told_of(by_hand, place):
    files = {"original.onnx", "model.onnx", "original.int8.onnx", "model.int8.onnx"}
    assert files <= {path.name for path in (place / "out").iterdir()}
    told = by_hand["int8"]
    assert [told[n]["name"] for n in ("original", "converted")] == [
        "original, int8",
        "converted, int8",
    ]
    assert told["gain"]["low"] <= told["gain"]["median"] <= told["gain"]["high"]
    for name in ("original", "converted"):
        assert told[name]["macs"] == by_hand[name]["macs"]
        assert told[name]["bytes"] < 0.8 * by_hand[name]["bytes"]
    assert by_hand["rel_output_error"] < told["converted"]["rel_output_error"] < 0.2
    page = (place / "out" / "report.html").read_text()
    assert "converted, int8 against original, int8" in page
    # chosen by hand, and yet timed by layer
    assert "Time of the layers in int8" in page
    timed = [layer["latency_after_ms"] for layer in by_hand["layers"] if layer["form"]]
    assert timed and all(ms > 0 for ms in timed)


def test_the_int8_files_compute_nearly_the_same(by_hand, place):
    x = {"x": noise(8, 3, 32, 32, seed=5)}
    for name in ("original", "model"):
        whole, small = (
            next(iter(run(open_session(load(place / "out" / f"{name}{kind}.onnx")), x).values()))
            for kind in ("", ".int8")
        )
        assert 0 < difference(small, whole) < 0.1


def test_a_budget_is_that_of_the_int8_network(place):
    config = Options.of(calib="calib.npz", max_error=0.2, int8=True, latency="table.json")
    result = converter.convert("net.onnx", options=config)
    report = result.report.to_dict()
    assert report["met"] and result.plan.chosen()
    assert report["rel_output_error"] < report["int8"]["converted"]["rel_output_error"] <= 0.2
    macs = [report["int8"][name]["macs"] for name in ("original", "converted")]
    assert report["int8"]["gain"]["low"] == pytest.approx(macs[0] / macs[1], rel=1e-3) > 1


def test_times_are_those_of_int8(place):
    options = {"calib": "calib.npz", "int8": True}
    found = {}
    for name, how in (("float", ()), ("int8", ("--int8",))):
        table = f"{name}.json"
        size = ("--input-shape", "1,3,32,32")
        assert flatconv("measure", "net.onnx", "-o", table, *size, *how)[0] == 0
        found[name] = LatencyTable.from_json((place / table).read_text())
    assert found["float"].float_ms is None
    assert found["int8"].float_ms == pytest.approx(found["float"].ms)
    assert found["int8"].original_ms == found["int8"].float_ms
    assert [layer.name for layer in found["int8"].layers] == ["conv0", "conv1", "conv2", "fc"]
    assert all(layer.ms > 0 for layer in found["int8"].layers[:3])
    plan, _ = dry_run("net.onnx", Options.of(latency=place / "int8.json", **options))
    assert [choice.layer for choice in plan.choices] == ["conv0", "conv1", "conv2", "fc"]
    with pytest.raises(ConverterError, match="Measure with --int8"):
        dry_run("net.onnx", Options.of(latency=place / "float.json", **options))
    with pytest.raises(ConverterError, match="Measure without --int8"):
        dry_run("net.onnx", Options.of(latency=place / "int8.json", calib="calib.npz"))


def test_without_sample_inputs_there_is_no_int8(place):
    status, _, err = flatconv("convert", "net.onnx", "-o", "none", "--int8")
    assert status == 2
    assert "--int8 needs sample inputs; give --calib" in err
    assert not (place / "none").exists()


def test_a_network_that_is_quantized_already_is_refused(by_hand, place):
    arguments = ("--calib", "calib.npz", "--int8")
    status, _, err = flatconv("convert", "out/model.int8.onnx", "-o", "twice", *arguments)
    assert status == 2
    assert "quantized already; leave out --int8" in err
    assert not (place / "twice").exists()


def test_an_int8_folder_is_trained_further_and_quantized_again(place):
    options = {"calib": "calib.npz", "int8": True, "form": ("separable",), "rank": ("8",)}
    factory = {"input_shape": ("1,3,8,8",), "keep": ("fc",)}
    np.savez("small.npz", x=noise(200, 3, 8, 8, seed=4))
    config = Options.of(**(options | {"calib": "small.npz"} | factory))
    result = converter.convert("toy:build", options=config)
    result.save("toy_out")
    (place / "small.npz").rename(place / "moved.npz")  # the images for the ranges are gone
    tuned = converter.finetune("toy_out", train="moved.npz", epochs=1)
    assert len(tuned.int8) == 2
    assert tuned.report.to_dict()["int8"]["gain"]["median"] > 0


def test_the_worst_steps_stay_in_floating_point_where_a_budget_needs_that(place):
    config = Options.of(calib="calib.npz", int8=True)
    source = open_source("net.onnx", None, config.changed(calib=noise(20, 3, 32, 32)))
    data = source.calib
    wanted = outputs(source.network, data)

    def error(network):
        return difference(outputs(network, data), wanted)

    whole = error(quantize_network(source.network, source, config))
    partial = quantize_network(source.network, source, config, lambda n: error(n) / (0.7 * whole))
    assert 0 < error(partial) <= 0.7 * whole
    hopeless = quantize_network(source.network, source, config, lambda n: 2.0)
    assert error(hopeless) == whole


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
        Figures(name, 1, 1, 1, about(1.0), None, about(speedup), None, None, 0.0)
        for name, speedup in zip("abcd", (1.0, floating, 1.2, small))
    ]
    names = ("original", "converted", "original, int8", "converted, int8")
    comparison = Comparison(
        dict(zip(names, networks, strict=True)),
        about(gain),
        (),
        "noise",
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
