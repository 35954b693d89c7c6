"""The latency table: written down, read back, interpolated, refused."""

import json

import onnx
import pytest
from conv_cases import make_conv
from networks import make_net

from converter.errors import ConverterError
from converter.graph.network import load
from converter.graph.survey import Layer
from converter.timing.conditions import architecture
from converter.timing.latency import LatencyTable, LayerTimes, TimedCandidate

OPTIONS = (
    TimedCandidate("separable", (16,), 1.0),
    TimedCandidate("separable", (32,), 2.0),
    TimedCandidate("separable", (64,), 3.0),
    TimedCandidate("tucker", (16, 16), 1.5),
    TimedCandidate("tucker", (32, 32), 2.5),
)
LAYERS = (
    LayerTimes("a.out", (32, 16, 3, 3), (1, 1, 1, 1, 1), 4.0, OPTIONS),
    LayerTimes("b.out", (32, 32, 1, 1), (1, 1, 1, 1, 1), 1.0, ()),
)
TABLE = LatencyTable("a cpu", "1.0", "CPU", 2, {"x": (1, 16, 8, 8)}, 16, 6.0, LAYERS)


def test_a_table_is_read_back_as_it_was_written():
    assert LatencyTable.from_json(TABLE.to_json()) == TABLE


@pytest.mark.parametrize(
    ("form", "rank", "ms"),
    [
        ("separable", (16,), 1.0),
        ("separable", (24,), 1.5),
        ("separable", (48,), 2.5),
        ("tucker", (32, 32), 2.5),
        ("separable", (8,), None),
        ("separable", (80,), None),
        ("tucker", (16, 32), None),
        ("spatial", (16,), None),
    ],
)
def test_times_are_interpolated_between_ranks_and_not_beyond(form, rank, ms):
    assert LAYERS[0].ms_of(form, rank) == (None if ms is None else pytest.approx(ms))


def layer(name, shape, stride=1):
    conv = make_conv(shape, stride=(stride, stride))
    return Layer(name, f"{name}.out", "x", "w", conv, (8, 8), conv.kernel.size, 1)


A, B = layer("p", (32, 16, 3, 3)), layer("q", (32, 32, 1, 1))


def test_a_table_is_matched_to_another_copy_of_the_network():
    unread = Layer("r", "r.out", "x", "w", None, (8, 8), 0, 1, "its weight is computed")
    for layers in ([A, B], [B], [A, unread, B]):
        matched = TABLE.matched(layers).layers
        known = [layer for layer in layers if layer.conv is not None]
        assert [(t.name, t.output) for t in matched] == [(o.name, o.output) for o in known]


@pytest.mark.parametrize(
    "layers", [[layer("p", (32, 16, 5, 5))], [layer("p", (32, 16, 3, 3), stride=2)], [B, A]]
)
def test_the_table_of_another_network_is_refused(layers):
    with pytest.raises(ConverterError, match="another network"):
        TABLE.matched(layers)


def test_a_table_without_names_and_warnings_is_read():
    document = json.loads(TABLE.to_json())
    del document["warnings"]
    for timed in document["layers"]:
        del timed["name"]
    assert LatencyTable.from_json(json.dumps(document)) == TABLE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"format": "flatconv-plan", "version": 1}),
        TABLE.to_json().replace('"version": 1', '"version": 2'),
        TABLE.to_json().replace('"block"', '"blocks"'),
        TABLE.to_json().replace('"rank"', '"ranks"'),
    ],
)
def test_what_is_no_table_is_refused(text):
    with pytest.raises(ConverterError, match="is not a flatconv-latency"):
        LatencyTable.from_json(text)


def saved(model, path):
    onnx.save(model, path)
    return load(path)


def test_times_are_known_by_the_network_without_weights_and_notes(tmp_path):
    path = make_net(tmp_path / "net.onnx")
    plain = architecture(load(path))
    assert architecture(load(make_net(tmp_path / "other.onnx", seed=5))) == plain
    noted = onnx.load(path)
    for node in noted.graph.node:
        node.doc_string = "by somebody"
        node.metadata_props.add(key="stack_trace", value="net.py")
    assert architecture(saved(noted, tmp_path / "noted.onnx")) == plain
    wider = make_net(tmp_path / "wider.onnx", channels=(3, 16, 24))
    assert architecture(load(wider)) != plain
    noted.graph.node[0].attribute[0].ints[:] = [2, 2, 2, 2]
    assert architecture(saved(noted, tmp_path / "padded.onnx")) != plain
