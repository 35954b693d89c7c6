"""Timing the layers of a network: variants, attribution, a fixed timer, the bundle."""

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import flatconv, from_text, make_net, noise

from converter.decomposition.form import MAX_MACS_SHARE, skeleton
from converter.decomposition.forms import find_form
from converter.graph.network import load, open_session
from converter.graph.survey import survey
from converter.runtime.ort import OnnxRuntime, run
from converter.runtime.ort_session import NodeTime
from converter.runtime.stopwatch import TimingSettings
from converter.runtime.timer import MAX_GAP, attribute
from converter.timing import variants as timing_variants
from converter.timing.latency import LatencyTable
from converter.timing.profile import measure
from converter.timing.variants import Variants

SHAPES = {"x": (1, 16, 16, 16)}
ADDED = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, wa)
    r = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (r, wb)
    s = Conv (x, ws)
    t = Add(b, s)
    z = Relu(t)
}"""
ADDED_WEIGHTS = {
    "wa": noise(16, 16, 3, 3),
    "wb": noise(16, 16, 3, 3),
    "ws": noise(16, 16, 1, 1),
}


def variants_of(network, shapes):
    feeds = {name: noise(*shape) for name, shape in shapes.items()}
    return Variants.of(network, survey(network, feeds))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=(16, 32, 32), size=16)


@pytest.fixture(scope="module")
def grid(path):
    return variants_of(load(path), SHAPES).with_grid(16)


@pytest.fixture(scope="module")
def table(grid):
    return measure(grid, SHAPES, OnnxRuntime())


# onnxruntime's profile


def test_every_layer_is_timed_as_it_is_and_in_other_forms(table):
    assert [layer.kernel for layer in table.layers] == [(32, 16, 3, 3), (32, 32, 3, 3), (4, 32)]
    assert [layer.name for layer in table.layers] == ["conv0", "conv1", "fc"]
    assert table.block in (8, 16)
    for layer in table.layers[:2]:
        assert {"separable", "spatial", "tucker", "channel"} <= {o.form for o in layer.options}
        assert min(option.ms for option in layer.options) > 0


def test_the_table_of_a_network_matches_the_network(grid, table):
    assert table.matched(grid.layers) == table


def test_each_layer_of_a_network_with_an_addition_has_a_time():
    network = ir.from_proto(from_text(ADDED, **ADDED_WEIGHTS))
    table = measure(variants_of(network, {"x": (1, 16, 8, 8)}), {"x": (1, 16, 8, 8)}, OnnxRuntime())
    assert [layer.output for layer in table.layers] == ["a", "b", "s"]
    assert min(layer.ms for layer in table.layers) > 0


def test_only_the_chosen_form_is_timed(path):
    chosen = {"conv1": ("separable", (16,))}
    variants = variants_of(load(path), SHAPES).with_chosen(chosen)
    assert len(variants) == 2
    table = measure(variants, SHAPES, OnnxRuntime())
    assert [[(o.form, o.rank) for o in layer.options] for layer in table.layers] == [
        [],
        [("separable", (16,))],
        [],
    ]


def test_onnxruntime_profiles_nodes_by_their_names_in_the_network():
    model = from_text(ADDED, **ADDED_WEIGHTS)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    nodes = OnnxRuntime().profile(model.SerializeToString(), {"x": noise(1, 16, 8, 8)}, 0.01)
    convolutions = [node.name for node in nodes if "Conv" in node.operator]
    assert len(convolutions) == 3
    assert not any("nchwc" in name or "fused" in name for name in convolutions)
    assert min(node.ms for node in nodes) >= 0


# attribution


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Conv", "flatconv_0", 1), ("Conv", "flatconv_1", 2)], [1, 2, 0]),
        ([("Conv", "flatconv_0.0", 1), ("Conv", "flatconv_0.1", 2)], [3, 0, 0]),
        ([("Conv", "relu", 1), ("Conv", "sum", 2)], [1, 2, 0]),
        ([("Relu", "relu", 1), ("Pool", "pool", 2)], [0, 0, 3]),
        # The addition ends both layers; layer 1 has its last node already.
        ([("Conv", "flatconv_1", 1), ("Conv", "sum", 2)], [2, 1, 0]),
        ([("Conv", "flatconv_x", 1), ("Conv", "elsewhere", 2)], [0, 0, 3]),
    ],
)
def test_the_time_of_a_node_goes_to_its_layer(nodes, expected):
    ends = [["a", "relu", "sum"], ["b", "sum"]]
    assert attribute([NodeTime(*node) for node in nodes], ends).tolist() == expected


# a fixed timer


@dataclass(frozen=True)
class FixedTimes:
    """A runtime whose sessions are those of onnxruntime, and whose times follow a rule.

    A node takes 1 ms for each million numbers in its weights, by the profile and by the clock;
    the profile is ``profile_scale`` times as slow.
    """

    profile_scale: float = 1.0
    extra_ms: float = 0.0
    threads: int = 1
    provider: str = "fixed"
    version: str = "1"

    def open(self, model, weights=None):
        session = OnnxRuntime().open(model, weights)
        times = self.profile(model, {}, 0)
        ms = sum(node.ms for node in times) / self.profile_scale + self.extra_ms
        CLOCK[id(session)] = (session, ms / 1e3)  # kept alive, so that the identity stays its own
        return session

    def profile(self, model, feeds, seconds, weights=None):
        graph = onnx.load_from_string(model).graph
        sizes = {tensor.name: np.prod(tensor.dims) for tensor in graph.initializer}
        return [
            NodeTime(n.op_type, n.name, self.profile_scale * _weights(n, sizes) / 1e6)
            for n in graph.node
        ]

    def block(self):
        return 16

    def quantize(self, model, limits, in_float=()):
        return OnnxRuntime().quantize(model, limits, in_float)


CLOCK = {}


def _weights(node, sizes):
    return float(sum(sizes.get(name, 0) for name in node.input))


def fixed_seconds(session, feeds, calls):
    return CLOCK[id(session)][1]


FIXED = TimingSettings(pause_s=0.0, stopwatch=fixed_seconds)


@pytest.mark.parametrize("profile_scale", [1.0, 1.3, 0.5])
def test_the_table_holds_the_times_of_a_fixed_timer(grid, profile_scale):
    table = measure(grid, SHAPES, FixedTimes(profile_scale), settings=FIXED)
    weights = [32 * 16 * 9 + 32, 32 * 32 * 9 + 32, 4 * 32 + 4]
    assert [layer.ms for layer in table.layers] == pytest.approx([w / 1e6 for w in weights])
    assert table.warnings == ()
    for layer, timed in zip(grid.layers[:2], table.layers):
        for option in timed.options:
            chain = skeleton(layer.conv, find_form(option.form), option.rank)
            size = sum(s.kernel.size + (0 if s.bias is None else s.bias.size) for s in chain.steps)
            assert option.ms == pytest.approx(size / 1e6)


def test_a_phantom_rest_is_measured_again_and_warned_of(grid):
    shares = []
    runtime = FixedTimes(extra_ms=0.1)  # of which the profile has nothing
    table = measure(grid, SHAPES, runtime, settings=FIXED, progress=shares.append)
    (warning,) = table.warnings
    assert "measure again" in warning
    assert abs(1 - sum(layer.ms for layer in table.layers) / table.ms) > MAX_GAP
    assert len(shares) == len(grid) + 2 * FIXED.variants
    assert LatencyTable.from_json(table.to_json()).warnings == table.warnings


def test_a_slow_moment_of_the_machine_changes_no_times(grid):
    blocks, slow = [], []

    def drifting(session, feeds, calls):
        blocks.append(session)
        slow[:] = [True] * (5 < len(blocks) < 9)  # while variants 4 to 6 are profiled
        return fixed_seconds(session, feeds, calls) * (3 if slow else 1)

    class Drifting(FixedTimes):
        def profile(self, model, feeds, seconds, weights=None):
            nodes = super().profile(model, feeds, seconds)
            return [replace(node, ms=node.ms * 3) for node in nodes] if slow and seconds else nodes

    steady = measure(grid, SHAPES, FixedTimes(), settings=FIXED)
    drifted = measure(grid, SHAPES, Drifting(), settings=replace(FIXED, stopwatch=drifting))
    for one, other in zip(steady.layers, drifted.layers):
        assert other.ms == pytest.approx(one.ms)
        assert [o.ms for o in other.options] == pytest.approx([o.ms for o in one.options])


# variants


def test_a_variant_has_the_options_of_its_number_and_prefixed_nodes(grid):
    for number in (0, 1, len(grid) - 1):
        model = grid.variant(number)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        names = [str(node.name) for node in model.graph]
        for index, options in enumerate(grid.options):
            whole = [name for name in names if name == f"flatconv_{index}"]
            steps = [name for name in names if name.startswith(f"flatconv_{index}.")]
            replaced = 0 < number <= len(options)
            assert bool(whole) != replaced and bool(steps) == replaced


def test_the_first_variant_computes_what_the_network_computes(path, grid):
    x = {"x": noise(2, 16, 16, 16)}
    expected = run(open_session(path), x)["logits"]
    assert np.array_equal(run(open_session(grid.variant(0)), x)["logits"], expected)


def test_zeros_take_the_place_of_the_weights_in_a_copy(path, grid):
    stripped = grid.without_weights()
    for name in ("conv0.weight", "fc.weight"):
        zeros = stripped.network.graph.initializers[name].const_value
        weight = grid.network.graph.initializers[name].const_value
        assert not zeros.numpy().any() and weight.numpy().any()
        assert zeros.shape == weight.shape and zeros.dtype == weight.dtype


@pytest.mark.parametrize("block", [8, 16])
def test_ranks_to_be_timed_are_in_blocks_and_save_something(path, block):
    for layer in survey(load(path), {"x": noise(*SHAPES["x"])}):
        options = timing_variants.rank_grid(layer.conv, layer.size, block)
        for form, rank in options:
            assert form == "decoupled" or all(r % block == 0 for r in rank)
            chain = skeleton(layer.conv, find_form(form), rank)
            assert chain.macs(layer.size) <= MAX_MACS_SHARE * layer.macs
        for form in {form for form, _ in options}:
            ranks = [rank for name, rank in options if name == form]
            assert ranks == sorted(set(ranks))


def test_a_layer_with_a_computed_weight_is_timed_as_it_is():
    graph = """g (float[1, 16, 8, 8] x, float[16, 16, 3, 3] w) => (float[1, 16, 8, 8] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, v)
        z = Conv <pads = [1, 1, 1, 1]> (a, w)
    }"""
    network = ir.from_proto(from_text(graph, v=noise(16, 16, 3, 3)))
    grid = variants_of(network, {"x": (1, 16, 8, 8), "w": (16, 16, 3, 3)}).with_grid(16)
    assert [layer.output for layer in grid.layers] == ["a", "z"]
    assert grid.options[0] and not grid.options[1]


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
        (["net.onnx"], "--output latency.json"),
        (["net.onnx", "-o", "latency.json", "--prepare", "bundle.zip"], "--output latency.json"),
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
ON_TARGET = f"""
import sys
sys.path.insert(0, sys.argv[1])
sys.modules.update(dict.fromkeys({ABSENT!r}))
from converter.runtime.stopwatch import TimingSettings
from converter.runtime.timer import main
sys.exit(main(["-o", "latency.json"], TimingSettings(0.01, 1, 3, 0.002, 0.0)))
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


def test_the_table_of_an_int8_bundle_converts_int8(tmp_path):
    net = make_net(tmp_path / "net.onnx", channels=(16, 16), size=8)
    assert flatconv("measure", net, "--prepare", tmp_path / "b.zip", "--int8", "-q")[0] == 0
    ended = on_target(tmp_path / "b.zip")
    assert ended.returncode == 0, ended.stderr
    table = LatencyTable.from_json((tmp_path / "latency.json").read_text())
    assert table.float_ms > 0 and all(layer.ms > 0 for layer in table.layers)


def test_a_bundle_holds_no_weights(path, tmp_path):
    assert flatconv("measure", path, "--prepare", tmp_path / "bundle.zip", "-q")[0] == 0
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        manifest = json.loads(archive.read("manifest.json"))
        for name in manifest["networks"]:
            network = ir.from_proto(onnx.load_from_string(archive.read(name)))
            kernels = [
                value.const_value.numpy()
                for value in network.graph.initializers.values()
                if len(value.shape) > 1
            ]
            assert kernels and not any(kernel.any() for kernel in kernels)


@pytest.mark.parametrize("content", [None, "{}", '{"format": "flatconv-bundle", "version": 9}'])
def test_the_timer_refuses_what_is_not_a_bundle(content, path, tmp_path):
    bundle = tmp_path / "bundle"
    assert flatconv("measure", path, "--prepare", bundle, "-q")[0] == 0
    manifest = bundle / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    ended = on_target(bundle, "bundle")
    assert ended.returncode == 2 and "cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr
