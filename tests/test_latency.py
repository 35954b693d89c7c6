"""The latency table: written down, read back, interpolated, refused."""

import json

import onnx
import pytest
from helpers import make_net

from converter.errors import ConverterError
from converter.graph import onnx_proto as light
from converter.timing.latency import LatencyTable, LayerTimes, Timed

OPTIONS = (
    Timed("separable", (16,), 1.0),
    Timed("separable", (32,), 2.0),
    Timed("separable", (64,), 3.0),
    Timed("tucker", (16, 16), 1.5),
    Timed("tucker", (32, 32), 2.5),
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


def test_the_network_takes_what_its_layers_take():
    assert TABLE.predicted_ms({}) == 6.0
    assert TABLE.predicted_ms({"a.out": ("separable", (24,))}) == pytest.approx(3.5)


def test_a_table_is_matched_to_another_copy_of_the_network():
    places = [("p", (32, 16, 3, 3), (1, 1, 1, 1, 1)), ("q", (32, 32, 1, 1), (1, 1, 1, 1, 1))]
    assert [layer.output for layer in TABLE.matched(places).layers] == ["p", "q"]
    assert [layer.output for layer in TABLE.matched(places[1:]).layers] == ["q"]


@pytest.mark.parametrize(
    "places",
    [
        [("p", (32, 16, 5, 5), (1, 1, 1, 1, 1))],
        [("p", (32, 16, 3, 3), (2, 2, 1, 1, 1))],
        [("q", (32, 32, 1, 1), (1, 1, 1, 1, 1)), ("p", (32, 16, 3, 3), (1, 1, 1, 1, 1))],
    ],
)
def test_the_table_of_another_network_is_refused(places):
    with pytest.raises(ConverterError, match="another network"):
        TABLE.matched(places)


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


def test_what_exporters_note_on_nodes_does_not_change_what_a_network_is_known_by(tmp_path):
    path = make_net(tmp_path / "net.onnx")
    plain = light.parse(path.read_bytes(), "net")
    noted = onnx.load(path)
    for node in noted.graph.node:
        node.doc_string = "by somebody"
        node.metadata_props.add(key="stack_trace", value="/home/somebody/net.py")
    found = light.parse(noted.SerializeToString(), "net")
    assert light.skeleton(found) == light.skeleton(plain)
    noted.graph.node[0].op_type = "ConvInteger"
    assert light.skeleton(light.parse(noted.SerializeToString(), "net")) != light.skeleton(plain)
