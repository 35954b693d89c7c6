"""Measuring the layers of a network: the places, the variants, the standalone command."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import difference, from_text, make_net, noise

import converter
from converter.decomposition.decompose import decompose
from converter.decomposition.form import MAX_MACS_SHARE, skeleton
from converter.decomposition.forms import FORMS, find_form
from converter.decomposition.ranks import rank_grid
from converter.errors import ConverterError
from converter.graph import onnx_proto as light
from converter.graph.network import load, open_session
from converter.graph.nodes import chain_nodes
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.runtime.ort import open_file, run
from converter.timing import profile, sites
from converter.timing.latency import LatencyTable
from converter.timing.target import main, measure_file

SHAPES = {"x": (1, 16, 16, 16)}


@pytest.fixture(autouse=True, scope="module")
def short_profiles():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PROFILE_S": 0.02, "RACED": 2, "ROUNDS": 3, "BLOCK_S": 0.005}.items():
            patch.setattr(profile, name, value)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=(16, 32, 32), size=16)


@pytest.fixture(scope="module")
def table(path):
    return profile.measure(path.read_bytes(), "net.onnx", SHAPES)


def test_every_layer_is_timed_as_it_is_and_in_other_forms(table):
    assert [layer.kernel for layer in table.layers] == [(32, 16, 3, 3), (32, 32, 3, 3), (4, 32)]
    assert table.block in (8, 16)
    assert 0 < sum(layer.ms for layer in table.layers) < 3 * table.ms
    for layer in table.layers[:2]:
        assert {"separable", "spatial", "tucker", "channel"} <= {o.form for o in layer.options}
        assert min(option.ms for option in layer.options) > 0


def test_places_are_the_layers_of_the_survey(path, table):
    layers = survey(load(path), {"x": noise(*SHAPES["x"])})
    assert [timed.output for timed in table.layers] == [layer.output for layer in layers]
    matched = [(o.output, o.conv.kernel.shape, sites.geometry(o.conv)) for o in layers]
    assert table.matched(matched) == table


def test_surgery_without_libraries_is_the_surgery_with_them(path):
    network, x = load(path), {"x": noise(2, 16, 16, 16)}
    layers = [layer for layer in survey(network, x) if layer.conv.k]
    chains = {layer.output: decompose(layer.conv, FORMS["separable"], (16,)) for layer in layers}
    pieces = {
        layer.output: chain_nodes(chains[layer.output], layer.source, layer.name)
        for layer in layers
    }
    content = light.replaced(light.parse(path.read_bytes(), "net"), pieces, {})
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    wanted = run(open_session(rewrite(network, {o: (o, c) for o, c in chains.items()})), x)
    found = run(open_file(content), x)
    assert difference(found["logits"], wanted["logits"]) < 1e-5


def test_nothing_replaced_is_the_same_network(path):
    content = light.replaced(light.parse(path.read_bytes(), "net"), {}, {"conv0.out": "renamed"})
    model = onnx.load_from_string(content)
    assert model.graph.node[0].name == "renamed"
    x = {"x": noise(2, 16, 16, 16)}
    assert np.array_equal(run(open_file(content), x)["logits"], run(open_file(path), x)["logits"])


def test_the_skeleton_forgets_weights_only(path, tmp_path):
    other = make_net(tmp_path / "other.onnx", channels=(16, 32, 32), size=16, seed=5)
    wider = make_net(tmp_path / "wider.onnx", channels=(16, 48, 32), size=16)
    mine, same, different = (
        light.skeleton(light.parse(p.read_bytes(), "net")) for p in (path, other, wider)
    )
    assert mine == same != different


ADDED = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, wa)
    r = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (r, wb)
    s = Conv (x, ws)
    t = Add(b, s)
    z = Relu(t)
}"""


def test_a_layer_fused_into_an_addition_gets_its_own_time():
    weights = {"wa": noise(16, 16, 3, 3), "wb": noise(16, 16, 3, 3), "ws": noise(16, 16, 1, 1)}
    content = from_text(ADDED, **weights).SerializeToString()
    table = profile.measure(content, "net", {})
    assert [layer.output for layer in table.layers] == ["a", "b", "s"]
    assert min(layer.ms for layer in table.layers) > 0
    assert table.layers[1].ms > table.layers[2].ms  # 9 times the work


@pytest.mark.parametrize("block", [8, 16])
def test_a_ladder_climbs_in_blocks_and_saves_something(path, block):
    for layer in survey(load(path), {"x": noise(*SHAPES["x"])}):
        rungs = rank_grid(layer.conv, layer.size, block)
        for form, rank in rungs:
            assert form == "decoupled" or all(r % block == 0 for r in rank)
            chain = skeleton(layer.conv, find_form(form), rank)
            assert chain.macs(layer.size) <= MAX_MACS_SHARE * layer.macs
        for form in {form for form, _ in rungs}:
            ranks = [rank for name, rank in rungs if name == form]
            assert ranks == sorted(set(ranks))


def test_a_computed_weight_is_not_read():
    graph = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        v = Relu (w)
        z = Conv <pads = [1, 1, 1, 1]> (a, v)
    }"""
    model = light.parse(from_text(graph, w=noise(16, 16, 3, 3)).SerializeToString(), "net")
    places = sites.find_sites(model, {"x": noise(1, 16, 8, 8)})
    assert [place.output for place in places] == ["a"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"not onnx", "not a valid ONNX"), (b"", "no outputs")],
)
def test_what_is_no_network_is_refused(content, words):
    with pytest.raises(ConverterError, match=words):
        profile.measure(content, "net.onnx", {})


def test_weights_elsewhere_are_found_beside_the_file_and_nowhere_else(path, tmp_path):
    model = onnx.load(path)
    apart = tmp_path / "apart.onnx"
    onnx.save(model, apart, save_as_external_data=True, size_threshold=512)
    spec = light.inputs(light.parse(apart.read_bytes(), "apart", tmp_path))
    feeds = {name: noise(*[size or 1 for size in shape]) for name, (shape, _) in spec.items()}
    with pytest.raises(ConverterError, match="in another file"):
        light.parse(apart.read_bytes(), "apart.onnx")
    parsed = light.parse(apart.read_bytes(), "apart.onnx", tmp_path)
    found = sites.find_sites(parsed, feeds, tmp_path)
    whole = light.parse(path.read_bytes(), "net.onnx")
    assert [place.kernel for place in found] == [
        place.kernel for place in sites.find_sites(whole, feeds)
    ]


def test_a_free_size_is_asked_for(tmp_path):
    graph = """g (float[1, 16, H, W] x) => (float[1, 16, H, W] z) {
        z = Conv <pads = [1, 1, 1, 1]> (x, w)
    }"""
    onnx.save(from_text(graph, w=noise(16, 16, 3, 3)), tmp_path / "net.onnx")
    with pytest.raises(ConverterError, match="--input-shape"):
        measure_file(tmp_path / "net.onnx", tmp_path / "latency.json")
    shape = ("1,16,8,8",)
    table = measure_file(tmp_path / "net.onnx", tmp_path / "latency.json", input_shape=shape)
    assert table.input_shapes == {"x": (1, 16, 8, 8)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["missing.onnx", "-o", "latency.json"], "cannot be read"),
        (["net.onnx", "-o", "no/such/folder/latency.json"], "cannot be written"),
        (["net.onnx", "-o", "latency.json", "--provider", "Abacus"], "not available"),
        (["net.onnx", "-o", "latency.json", "--input-shape", "y:1,2"], "no input 'y'"),
    ],
)
def test_the_small_command_line_refuses(options, words, tmp_path, path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(path.read_bytes())
    assert main(["measure", *options]) == 2
    assert words in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]


def test_the_target_needs_nothing_but_onnxruntime_and_numpy(path, tmp_path):
    absent = ["torch", "onnx", "onnx_ir", "tensorly", "scipy", "cyclopts", "rich", "joblib", "PIL"]
    absent += ["plotly", "jinja2", "safetensors", "platformdirs", "onnxscript"]
    program = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
from converter.timing import profile
profile.PROFILE_S, profile.RACED, profile.ROUNDS, profile.BLOCK_S = 0.02, 2, 3, 0.005
from converter.timing.target import main
sys.exit(main(["measure", {str(path)!r}, "-o", "latency.json", "--batch-size", "2"]))
"""
    root = Path(converter.__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    table = LatencyTable.from_json((tmp_path / "latency.json").read_text())
    assert table.input_shapes == {"x": (2, 16, 16, 16)}
    assert len(table.layers) == 3


def test_the_table_is_that_of_the_graph_that_is_converted(path):
    network = load(path)
    again = profile.measure(ir.to_proto(network).SerializeToString(), "net", SHAPES)
    assert len(again.layers) == 3
