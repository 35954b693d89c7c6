"""int8, end to end: measured, budgeted and delivered as int8."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import difference
from networks import flatconv, macs_stopwatch, make_net, noise, table_by_macs, varied, work_in
from scaled_chain import chain, outputs

import converter
from converter.commands import dry_run
from converter.errors import ConverterError
from converter.graph.network import load, open_session
from converter.graph.survey import survey
from converter.models.source import open_source
from converter.options import Options
from converter.runtime import stopwatch
from converter.runtime.ort import OnnxRuntime, run
from converter.search.int8 import quantize as quantize_network
from converter.timing import profile
from converter.timing.latency import LatencyTable
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


def test_old_operator_sets_are_timed():
    network, _ = chain()
    old = onnx.version_converter.convert_version(ir.to_proto(network), 11)
    network = ir.from_proto(old)
    shapes = {"x": (1, 3, 6, 6)}
    variants = Variants.of(network, survey(network, {"x": noise(*shapes["x"])}))
    feeds = {"x": noise(*shapes["x"])}
    found = profile.measure(variants, feeds, OnnxRuntime(), int8=True)
    assert [layer.output for layer in found.layers] == ["a", "y"]
    assert found.ms == pytest.approx(found.float_ms) and found.ms > 0


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


def test_a_dry_run_refuses_what_a_conversion_refuses(place):
    with pytest.raises(ConverterError, match="--int8 needs sample inputs"):
        dry_run("net.onnx", Options.of(int8=True, max_error=0.1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network whose kernels are nearly of low rank, and data, in the current folder."""
    with work_in(tmp_path_factory.mktemp("int8")) as here:
        make_net(here / "net.onnx", channels=(3, 32, 32, 32), size=32, loss=0.02)
        np.savez(here / "calib.npz", x=varied(64, 3, 32, 32, seed=1))
        table = table_by_macs("net.onnx", forms=("channel",))
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
    assert 0 < by_hand["rel_output_error"] < told["converted"]["rel_output_error"] < 0.5
    page = (place / "out" / "report.html").read_text()
    assert "converted, int8 against original, int8" in page
    # chosen by hand, and yet timed by layer
    assert "Time of the layers in int8" in page
    timed = [layer["latency_after_ms"] for layer in by_hand["layers"] if layer["form"]]
    assert timed and all(ms > 0 for ms in timed)


def errors_of_int8(folder, x):
    """By how much the int8 files of a folder differ from those in floating point."""
    return [
        difference(*(output(folder / f"{name}{kind}.onnx", x) for kind in (".int8", "")))
        for name in ("original", "model")
    ]


def output(path, x):
    return next(iter(run(open_session(load(path)), {"x": x}).values()))


def test_the_int8_files_compute_nearly_the_same(by_hand, place):
    errors = errors_of_int8(place / "out", varied(8, 3, 32, 32, seed=5))
    assert min(errors) > 0 and max(errors) < 0.1


def test_a_budget_is_that_of_the_int8_network(place):
    config = Options.of(calib="calib.npz", max_error=0.2, int8=True, latency="table.json")
    result = converter.convert("net.onnx", options=config)
    report = result.report.to_dict()
    assert report["met"] and result.plan.chosen()
    assert report["rel_output_error"] < report["int8"]["converted"]["rel_output_error"] <= 0.2
    macs = [report["int8"][name]["macs"] for name in ("original", "converted")]
    assert macs[1] < macs[0]
    assert report["int8"]["gain"]["low"] == pytest.approx(macs[0] / macs[1], rel=1e-3)


def test_a_limit_on_bytes_is_that_of_the_int8_file(place):
    options = {"calib": "calib.npz", "int8": True, "latency": "table.json"}
    alone = converter.convert("net.onnx", only="fc", max_macs=0.99, **options).report.to_dict()
    share = alone["int8"]["original"]["bytes"] / alone["original"]["bytes"]
    for limit, is_converted in ((1.02 * share, False), (0.85 * share, True)):
        result = converter.convert("net.onnx", max_bytes=limit, **options)
        report = result.report.to_dict()
        assert report["met"], report["reason"]
        assert report["int8"]["converted"]["bytes"] <= limit * report["original"]["bytes"]
        assert bool(result.plan.chosen()) is is_converted


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
    plan, _ = dry_run(
        "net.onnx", Options.of(latency=place / "int8.json", keep=("conv1", "conv2"), **options)
    )
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
    tuned.save("tuned")
    errors = errors_of_int8(place / "tuned", noise(8, 3, 8, 8, seed=5))
    assert min(errors) > 0 and max(errors) < 0.1


def test_the_worst_steps_stay_in_floating_point_where_a_budget_needs_that(place):
    config = Options.of(calib="calib.npz", int8=True)
    source = open_source("net.onnx", None, config.changed(calib=noise(20, 3, 32, 32)))
    data = source.calib
    wanted = outputs(source.network, data)

    def error(network):
        return difference(outputs(network, data), wanted)

    whole = error(quantize_network(source.network, source, config).network)
    partial = quantize_network(
        source.network, source, config, usage=lambda n: error(n) / (0.7 * whole)
    )
    assert 0 < error(partial.network) <= 0.7 * whole
    hopeless = quantize_network(source.network, source, config, usage=lambda n: 2.0)
    assert error(hopeless.network) == whole
