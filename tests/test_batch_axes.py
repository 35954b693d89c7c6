"""Networks whose batch is not in front: read with the examples in front, written as they were."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conv_cases import difference
from networks import fixed_race, from_text, noise

import converter
from converter import ConverterError, Options
from converter.data.inputs import Input, examples_in_front
from converter.evaluation import compare
from converter.graph.batch_axes import as_given, examples_first
from converter.graph.network import inputs
from converter.models.open_model import open_onnx
from converter.models.sample_inputs import read_sample_inputs

BODY = """{{
    a = Conv <pads = [1, 1]> (x, w)
    r = Relu (a)
    b = Conv <pads = [1, 1]> (r, v)
    last = Constant <value_ints = [2]> ()
    m = ReduceMean <keepdims = 0> (b, last)
    i = Constant <value_int = 0> ()
    h = Gather <axis = 0> (state, i)
    f = Cast <to = 1> (rate)
    s = Mul (m, table)
    t = Add (s, h)
    y = Div (t, f)
    next = Add (state, y)
}}"""
SIGNATURES = {
    "free": ("N", "float[N, 4, 16] x, float[2, N, 8] state, int64 rate, float[8] table"),
    "fixed": (1, "float[1, 4, 16] x, float[2, 1, 8] state, int64 rate, float[8] table"),
    "scalar first": (1, "int64 rate, float[1, 4, 16] x, float[2, 1, 8] state, float[8] table"),
    "state first, fixed": (
        1,
        "float[2, 1, 8] state, float[1, 4, 16] x, int64 rate, float[8] table",
    ),
    "state first": ("N", "float[2, N, 8] state, float[N, 4, 16] x, int64 rate, float[8] table"),
}
WEIGHTS = {"w": noise(16, 4, 3, seed=1) / 3, "v": noise(8, 16, 3, seed=2) / 6}


def network(name):
    batch, given = SIGNATURES[name]
    returned = f"float[{batch}, 8] y, float[2, {batch}, 8] next"
    return from_text(f"g ({given}) => ({returned}) {BODY.format()}", **WEIGHTS)


def feeds(count, seed=0):
    """Inputs as a caller gives them."""
    return {
        "x": noise(count, 4, 16, seed=seed),
        "state": noise(2, count, 8, seed=seed + 1),
        "rate": np.array(4),
        "table": noise(8, seed=9),
    }


def computed(model, values):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, values)))


def signature(model):
    graph = model.graph
    return [
        (v.name, [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim])
        for v in (*graph.input, *graph.output)
    ]


@pytest.mark.parametrize("name", SIGNATURES)
def test_examples_come_to_the_front_and_back(name):
    given = network(name)
    model = examples_first(ir.from_proto(given))
    listed = {item.name: item for item in inputs(model)}
    assert [listed[n].axis for n in ("x", "state", "rate", "table")] == [0, 1, None, None]
    assert [listed[n].shape[1:] for n in ("state", "rate", "table")] == [(2, 8), (), (8,)]
    values = feeds(1 if SIGNATURES[name][0] == 1 else 3)
    front = examples_in_front(values, list(listed.values()))
    expected, actual = computed(given, values), computed(ir.to_proto(model), front)
    assert difference(actual["y"], expected["y"]) < 1e-6
    assert difference(actual["next"], expected["next"].transpose(1, 0, 2)) < 1e-6
    back = ir.to_proto(as_given(model))
    assert signature(back) == signature(given)
    assert [node.op_type for node in back.graph.node] == [n.op_type for n in given.graph.node]
    assert not back.graph.input[1].metadata_props
    assert all(np.array_equal(a, expected[n]) for n, a in computed(back, values).items())


PLAIN = [
    "float[N, 4, 16] x",
    "float[N, 4, 16] x, float[N, 8] z",
    "float[batch, 4, 16] x, float[other, 8] z",
    "float[1, 4, 16] x, float[1, 2, 8] z",
    "float[2, 4, 16] x",
    "float[2, 4, 16] x, float[2, 1, 8] z",
    "float[?, 4, 16] x, float[?, ?, 8] z",
]


@pytest.mark.parametrize("given", PLAIN)
def test_a_network_with_its_batch_in_front_stays(given):
    model = ir.from_proto(from_text(f"g ({given}) => (float[N, 4, 16] y) {{ y = Relu (x) }}"))
    assert examples_first(model) is model
    assert as_given(model) is model


def test_a_size_without_a_name_is_the_batch_where_it_is_the_only_one():
    given = "float[?, 4, 16] x, float[2, ?, 8] h, float[2, ?, ?] two, float[5] z"
    text = f"g ({given}) => (float[?, 4, 16] y) {{ y = Relu (x) }}"
    listed = inputs(examples_first(ir.from_proto(from_text(text))))
    assert [item.axis for item in listed] == [0, 1, None, None]


def test_sequences_whose_batch_is_second_are_judged_example_by_example():
    text = "g (float[N, 4, 16] x) => (float[16, N, 4] y) { y = Transpose <perm = [2, 0, 1]> (x) }"
    model = examples_first(ir.from_proto(from_text(text)))
    (value,) = model.graph.outputs
    assert value.shape == ir.Shape(["N", 16, 4])
    assert computed(ir.to_proto(model), {"x": noise(3, 4, 16)})["y"].shape == (3, 16, 4)


@pytest.mark.parametrize("name", ["free", "fixed", "scalar first"])
def test_such_a_network_is_converted_and_keeps_its_inputs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "race", fixed_race)
    given, count = network(name), 40
    options = {"form": "channel", "rank": 4, "cache": False}
    result = converter.convert(given, calib=feeds(count), **options)
    result.save(tmp_path / "out")
    original, model = (onnx.load(tmp_path / "out" / f"{n}.onnx") for n in ("original", "model"))
    assert signature(original) == signature(model) == signature(given)
    assert signature(result.model) == signature(given)
    assert len(model.graph.node) > len(given.graph.node)
    values = feeds(1, seed=5)
    assert difference(computed(model, values)["y"], computed(given, values)["y"]) < 0.5
    np.savez(tmp_path / "data.npz", **feeds(count, seed=7))
    again = converter.compare(tmp_path / "out", data=tmp_path / "data.npz")
    assert again.examples == count


def test_the_shape_of_a_state_is_given_as_the_network_takes_it():
    model = open_onnx(network("free"), trust_pickle=False)
    options = Options.of(input_shape=("x:1,4,16", "state:2,1,8"))
    _, shapes, _ = read_sample_inputs(inputs(model), None, options, lambda: None)
    assert shapes == {"x": (1, 4, 16), "state": (1, 2, 8), "rate": (1,), "table": (1, 8)}


@pytest.mark.parametrize(
    ("item", "given", "front"),
    [
        (Input("a", (None, 2, 8), np.dtype("f"), 1), (2, 3, 8), (3, 2, 8)),
        (Input("a", (None, 2, 8, 4), np.dtype("f"), 2), (2, 8, 3, 4), (3, 2, 8, 4)),
        (Input("a", (None,), np.dtype("f"), None), (), (1,)),
        (Input("a", (None, 8), np.dtype("f"), None), (8,), (1, 8)),
        (Input("a", (None, 8), np.dtype("f")), (5, 8), (5, 8)),
    ],
)
def test_shapes_are_turned_forth_and_back(item, given, front):
    assert item.shape_from(given) == front
    assert item.shape_given(front) == given


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": noise(2, 7, 8)}, "must hold the same number of examples"),
        ({"table": noise(9)}, "Input 'table' takes shape 8, not 9"),
        ({"rate": np.array([1, 2, 3])}, "must hold the same number of examples"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ConverterError, match=words):
        converter.convert(network("free"), calib=feeds(40) | change, form="channel", rank=4)


def test_node_times_are_those_of_the_file(tmp_path):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        onnx.save(network("free"), path)
    raced = converter.compare(*paths)
    times = converter.commands.node_times(*paths, comparison=raced)
    assert all(nodes for nodes in times)
