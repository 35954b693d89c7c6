"""``flatconv measure``: latency tables written here, and bundles that are timed elsewhere."""

import json
import shutil
import subprocess
import sys

import onnx
import onnx_ir as ir
import pytest
from networks import flatconv, from_text, make_net, noise

from converter.graph.network import load
from converter.graph.survey import survey
from converter.timing.latency import LatencyTable
from converter.timing.variants import Variants

SHAPES = {"x": (1, 16, 16, 16)}


def variants_of(network, shapes):
    feeds = {name: noise(*shape) for name, shape in shapes.items()}
    return Variants.of(network, survey(network, feeds))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=(16, 32, 32), size=16)


@pytest.fixture(scope="module")
def grid(path):
    return variants_of(load(path), SHAPES).with_grid(16)


# the command


def test_a_free_size_must_be_given(tmp_path):
    graph = """g (float[1, 16, H, W] x) => (float[1, 16, H, W] z) {
        z = Conv <pads = [1, 1, 1, 1]> (x, w)
    }"""
    onnx.save(from_text(graph, w=noise(16, 16, 3, 3)), tmp_path / "net.onnx")
    command = ("measure", tmp_path / "net.onnx", "-o", tmp_path / "latency.json", "-q")
    status, _, error = flatconv(*command)
    assert status == 2 and "--input-shape" in error
    assert flatconv(*command, "--input-shape", "1,16,8,8")[0] == 0
    table = LatencyTable.from_json((tmp_path / "latency.json").read_text())
    assert table.input_shapes == {"x": (1, 16, 8, 8)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["missing.onnx", "-o", "latency.json"], "does not exist"),
        (["text.onnx", "-o", "latency.json"], "not a valid ONNX"),
        (["net.onnx", "-o", "no/such/folder/latency.json"], "cannot be written"),
        (["net.onnx", "-o", "latency.json", "--provider", "Abacus"], "not available"),
        (["net.onnx", "-o", "latency.json", "--input-shape", "y:1,2"], "no input 'y'"),
        (["net.onnx"], "with -o, or a bundle with --prepare"),
        (
            ["net.onnx", "-o", "latency.json", "--prepare", "bundle.zip"],
            "with -o, or a bundle with --prepare",
        ),
        (["net.onnx", "--prepare", "no/such/bundle.zip"], "cannot be written"),
        (["net.onnx", "--prepare", "."], "exists"),
    ],
)
def test_the_command_refuses(options, words, tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(path.read_bytes())
    (tmp_path / "text.onnx").write_text("not onnx")
    status, _, error = flatconv("measure", *options)
    assert status == 2 and words in error.replace("\n", " ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "text.onnx"]


# the bundle

ABSENT = (
    "torch onnx onnx_ir tensorly scipy cyclopts rich joblib PIL plotly jinja2 safetensors "
    "platformdirs onnxscript google.protobuf"
).split()
# All runs there, but a call takes a millisecond by the clock, and a node one by the profile.
ON_TARGET = f"""
import sys
sys.path.insert(0, sys.argv[1])
sys.modules.update(dict.fromkeys({ABSENT!r}))
from converter.runtime import ort_session, timer
from converter.runtime.stopwatch import TimingSettings

def one_ms(session, feeds, calls):
    session.run(None, feeds)
    return 1e-3

def profile_nodes(*given):
    nodes = ort_session.profile_nodes(*given)
    return [ort_session.NodeTime(node.operator, node.name, 1.0) for node in nodes]

timer.profile_nodes = profile_nodes
sys.exit(timer.main(["-o", "latency.json"], TimingSettings(0, 1, 3, 0, 0, stopwatch=one_ms)))
"""


def on_target(bundle, *command):
    return subprocess.run(
        [sys.executable, "-I", *(command or ("-c", ON_TARGET, str(bundle)))],
        cwd=bundle.parent,
        env={},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["bundle.zip", "bundle"])
def test_a_bundle_needs_nothing_but_onnxruntime_and_numpy(name, path, grid, tmp_path):
    bundle = tmp_path / name
    command = ("measure", path, "--prepare", bundle, "--batch-size", "2", "-q")
    assert flatconv(*command) == (0, "", "")
    ended = on_target(bundle)
    assert ended.returncode == 0, ended.stderr
    table = LatencyTable.from_json((tmp_path / "latency.json").read_text())
    assert table.input_shapes == {"x": (2, 16, 16, 16)} and table.block == 16
    assert [layer.name for layer in table.matched(grid.layers).layers] == ["conv0", "conv1", "fc"]
    for layer, options in zip(table.layers, grid.options):
        assert [(o.form, o.rank) for o in layer.options] == list(options)
        assert layer.ms > 0 and all(option.ms > layer.ms for option in layer.options)


def test_a_bundle_for_int8_also_times_the_network_in_floating_point(tmp_path):
    net = make_net(tmp_path / "net.onnx", channels=(16, 16), size=8)
    assert flatconv("measure", net, "--prepare", tmp_path / "b.zip", "--int8", "-q")[0] == 0
    ended = on_target(tmp_path / "b.zip")
    assert ended.returncode == 0, ended.stderr
    table = LatencyTable.from_json((tmp_path / "latency.json").read_text())
    assert table.ms == table.float_ms == 1
    assert [layer.name for layer in table.layers] == ["conv0", "fc"]
    assert all(layer.ms > 0 for layer in table.layers)


@pytest.fixture(scope="module")
def folder(path, tmp_path_factory):
    """A bundle as a folder."""
    bundle = tmp_path_factory.mktemp("folder") / "bundle"
    assert flatconv("measure", path, "--prepare", bundle, "-q") == (0, "", "")
    return bundle


def test_a_bundle_holds_no_weights(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["networks"]:
        network = ir.from_proto(onnx.load(folder / name))
        kernels = [
            value.const_value.numpy()
            for value in network.graph.initializers.values()
            if len(value.shape) > 1
        ]
        assert kernels and not any(kernel.any() for kernel in kernels)


@pytest.mark.parametrize("content", [None, "{}", '{"format": "flatconv-bundle", "version": 9}'])
def test_the_timer_refuses_what_is_not_a_bundle(content, folder, tmp_path):
    bundle = shutil.copytree(folder, tmp_path / "bundle")
    manifest = bundle / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    ended = on_target(bundle, "bundle")
    assert ended.returncode == 2 and "cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr
