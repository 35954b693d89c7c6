"""ONNX files as users hold them: old and new, wrong, with weights in files of their own."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import at_full_rank, difference, from_text, make_net, noise

import converter
from converter import ConverterError, Options
from converter.data.data import from_arrays
from converter.decomposition.forms import FORMS
from converter.evaluation.check import check_graph, check_same
from converter.graph import external
from converter.graph import network as onnx_network
from converter.graph.canonicalize import canonicalize
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.reconstruction.moments import second_moments
from converter.reconstruction.refit import refit_layers
from converter.runtime.ort import run

NEWEST = onnx.defs.onnx_opset_version()
IMAGE, RESULT = "float[N, 4, 9, 8] x", "float[N, C, P, Q] y"
W = noise(6, 4, 3, 3)
X = noise(2, 4, 9, 8, seed=1)


def written(opset, body, ir_version=8, **weights):
    text = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    model = onnx.parser.parse_model(f"{text} g ({IMAGE}) => ({RESULT}) {{ {body} }}")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return model


def full(model, feeds):
    """A network with every layer in the form `channel` that loses nothing, in normal form."""
    read = canonicalize(model)
    layers = [layer for layer in survey(read, feeds) if layer.reason is None]
    chains = {la.output: (la.name, at_full_rank(la.conv, "channel")) for la in layers}
    return rewrite(read, chains)


def outputs(model, feeds):
    return run(open_session(model), feeds)


def unlike(path, other, feeds):
    """Relative difference of the first outputs of two files."""
    first, second = (next(iter(outputs(file, feeds).values())) for file in (path, other))
    return difference(second, first)


# what files there are


@pytest.mark.parametrize("opset", [*range(7, NEWEST + 1)])
def test_a_graph_of_any_opset_keeps_it(opset):
    bias = np.arange(6, dtype=np.float32)
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) y = Conv (r, v)"
    model = ir.from_proto(written(opset, body, w=W, b=bias, v=noise(5, 6, 3, 3)))
    result = full(model, {"x": X})
    assert check_graph(result) is None
    assert result.opset_imports == {"": opset}
    assert difference(outputs(result, {"x": X})["y"], outputs(model, {"x": X})["y"]) < 1e-4


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_a_graph_older_than_the_runtime_is_refused(opset):
    model = ir.from_proto(written(opset, "y = Relu (x)"))
    with pytest.raises(ConverterError, match=f"written in opset {opset}; convert it to 7"):
        canonicalize(model)


def test_an_old_file_that_must_list_weights_as_inputs_is_converted():
    proto = written(9, "y = Conv (x, w)", ir_version=3, w=W)
    kernel = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, W.shape)
    proto.graph.input.append(kernel)
    onnx.checker.check_model(proto)
    model = ir.from_proto(proto)
    result = full(model, {"x": X})
    assert check_graph(result) is None
    assert [value.name for value in result.graph.inputs] == ["x"]
    assert difference(outputs(result, {"x": X})["y"], outputs(model, {"x": X})["y"]) < 1e-4


@dataclass(frozen=True)
class Refused:
    """A graph that is refused as a whole, and part of the sentence."""

    name: str
    body: str
    words: str
    given: dict


POISON = np.full_like(W, np.inf)
ONE = np.ones(6, np.float32)
REFUSED = [
    Refused("infinite", "y = Conv (x, w)", "The weight of layer w holds NaN", {"w": POISON}),
    Refused(
        "behind Cast",
        "v = Cast <to = 1> (h) y = Conv (x, v)",
        "The weight of layer v holds NaN",
        {"h": POISON.astype(np.float16)},
    ),
    Refused(
        "behind Div",
        "v = Div (w, z) y = Conv (x, v)",
        "The weight of layer v holds NaN",
        {"w": W, "z": np.zeros((), np.float32)},
    ),
    Refused(
        "transposed",
        "y = ConvTranspose (x, w)",
        "The weight of layer w holds NaN",
        {"w": np.full((4, 6, 3, 3), np.nan, np.float32)},
    ),
    Refused(
        "linear",
        "y = MatMul (x, w)",
        "The weight of layer w holds NaN",
        {"w": np.full((8, 6), np.nan, np.float32)},
    ),
    Refused(
        "a bias", "y = Conv (x, w, b)", "The bias of layer w holds NaN", {"w": W, "b": np.nan * ONE}
    ),
    Refused(
        "a computed bias",
        "c = Log (b) y = Conv (x, w, c)",
        "The bias of layer w holds NaN",
        {"w": W, "b": -ONE},
    ),
    Refused(
        "a negative variance",
        "a = Conv (x, w) y = BatchNormalization (a, g, g, g, v)",
        "of layer w holds NaN",
        {"w": W, "g": ONE, "v": -2 * ONE},
    ),
    Refused(
        "a shape that does not fit",
        "y = Conv (x, w)",
        "onnxruntime cannot",
        {"w": noise(6, 5, 3, 3)},
    ),
    Refused(
        "an unknown operator",
        "a = Conv (x, w) y = NoSuchThing (a)",
        "onnxruntime cannot open the network",
        {"w": W},
    ),
    Refused(
        "a weight of an unknown operator",
        "v = NoSuchThing (w) y = Conv (x, v)",
        "onnxruntime cannot open the network",
        {"w": W},
    ),
    Refused(
        "a name that is taken",
        "y = Conv (x, w)",
        "already has a tensor named 'w.0.weight'",
        {"w": W, "w.0.weight": W},
    ),
]


@pytest.mark.filterwarnings("ignore:.*invalid value")
@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_graph_that_is_wrong_is_refused(case):
    body = case.body
    if case.words.startswith("already"):
        body += " u = Relu (w.0.weight)"
    proto = written(19, body.replace("u = Relu (w.0.weight)", ""), **case.given)
    if case.words.startswith("already"):
        proto.graph.node.add(op_type="Relu", input=["w.0.weight"], output=["u"])
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("u"))
    with pytest.raises(ConverterError, match=case.words):
        full(ir.from_proto(proto), {"x": X})


@pytest.mark.parametrize(
    ("size", "words"), [(-3, "has a size below 0"), (2**40, "is too large to be made")]
)
@pytest.mark.parametrize("axis", [0, 2])
def test_an_input_of_an_impossible_size_is_refused(size, words, axis, tmp_path):
    proto = written(19, "y = Conv (x, w)", w=W)
    proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(ConverterError, match=words):
        converter.convert(tmp_path / "net.onnx", options=Options.of(form=("channel",)))


def test_a_weight_with_fewer_numbers_than_its_shape_says_is_refused(tmp_path):
    proto = written(19, "y = Conv (x, w)", w=W)
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        converter.convert(tmp_path / "net.onnx", options=Options.of(form=("channel",)))


def test_statistics_of_another_shape_are_not_folded():
    body = "a = Conv (x, w) y = BatchNormalization (a, g, g, g, v)"
    model = ir.from_proto(written(19, body, w=W, g=ONE, v=W))
    assert [node.op_type for node in canonicalize(model).graph] == ["Conv", "BatchNormalization"]


def test_a_layer_of_a_constant_is_listed(tmp_path):
    proto = written(19, "a = Conv (c, v) y = Conv (x, w)", w=W, v=W, c=X)
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("a"))
    layers = survey(canonicalize(ir.from_proto(proto)), {"x": X})
    assert [layer.name for layer in layers] == ["v", "w"]


def test_a_network_without_inputs_is_refused(tmp_path):
    proto = from_text("g () => (float[6, 4, 3, 3] y) { y = Relu (w) }", w=W)
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(ConverterError, match="has no inputs; there is nothing to feed it"):
        converter.convert(tmp_path / "net.onnx", options=Options.of(form=("channel",)))


# weights in files of their own


@pytest.fixture
def apart(tmp_path):
    """A file whose weights are in another, and the same as one file."""
    make_net(tmp_path / "whole.onnx")
    onnx.save(
        onnx.load(tmp_path / "whole.onnx"),
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return tmp_path


@pytest.mark.parametrize("place", ["../weights.bin", "/etc/hostname", "a/../../weights.bin"])
def test_weights_outside_of_the_folder_are_refused(place, apart):
    proto = onnx.load(apart / "net.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = place
    (apart / "inner").mkdir()
    (apart / "inner" / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConverterError, match="names weights outside of its folder"):
        onnx_network.load(apart / "inner" / "net.onnx")


def test_weights_beside_a_small_network_are_inside_of_what_is_written(apart):
    model = onnx_network.load(apart / "net.onnx")
    assert external.external_nbytes(model) == 0
    onnx_network.save(model, apart / "again.onnx")
    (apart / "weights.bin").unlink()
    x = {"x": noise(2, 3, 8, 8)}
    assert unlike(apart / "whole.onnx", apart / "again.onnx", x) < 1e-6


def test_a_network_that_is_too_large_for_one_file_stays_mapped(apart):
    x = {"x": noise(3, 3, 8, 8)}
    model = onnx_network.load(apart / "net.onnx", max_nbytes=1)
    held = external.external_nbytes(model)
    assert held > 0.8 * (apart / "weights.bin").stat().st_size
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert len(before) < 5000
    result = full(model, x)
    assert check_graph(result) is None
    assert (
        difference(outputs(result, x)["logits"], outputs(apart / "whole.onnx", x)["logits"]) < 1e-4
    )
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert onnx_network.nbytes(model) == pytest.approx(
        (apart / "whole.onnx").stat().st_size, rel=0.2
    )


def test_a_network_that_is_too_large_for_one_file_is_written_as_two(apart):
    x = {"x": noise(3, 3, 8, 8)}
    model = onnx_network.load(apart / "net.onnx", max_nbytes=1)
    result = full(model, x)
    onnx_network.save(result, apart / "out.onnx", max_nbytes=1)
    assert {path.name for path in apart.glob("out*")} == {"out.onnx", "out.onnx.data"}
    assert unlike(apart / "whole.onnx", apart / "out.onnx", x) < 1e-4
    onnx_network.save(model, apart / "same.onnx", max_nbytes=1)
    assert unlike(apart / "whole.onnx", apart / "same.onnx", x) < 1e-6
    assert external.weights_folder(model) == apart


def test_mapped_weights_give_the_same_moments_and_corrections(apart):
    data = from_arrays({"x": noise(40, 3, 8, 8)}, "noise", ["x"])
    actual = []
    for model in (
        canonicalize(onnx_network.load(apart / "net.onnx", max_nbytes=1)),
        canonicalize(onnx_network.load(apart / "whole.onnx")),
    ):
        layers = survey(model, data.read(np.arange(1)))
        chosen = {layer.name: (FORMS["channel"], (4,)) for layer in layers}
        chains, _ = refit_layers(model, layers, chosen, data)
        moments = second_moments(model, layers, data)
        actual.append(
            ([c.dense().kernel for c in chains.values()], [m.full for (m,) in moments.values()])
        )
    for one, other in zip(*actual):
        for a, b in zip(one, other):
            assert difference(a, b) < 1e-5


def test_moments_are_taken_in_several_passes_where_memory_is_short(tmp_path):
    make_net(tmp_path / "net.onnx", channels=(3, 16, 16, 16))
    model = onnx_network.load(tmp_path / "net.onnx")
    data = from_arrays({"x": noise(30, 3, 8, 8)}, "noise", ["x"])
    layers = survey(model, data.read(np.arange(1)))
    read = []

    def note(indices):
        read.extend(indices.tolist())
        return data.read(indices)

    noted = replace(data, read=note)
    whole = second_moments(model, layers, noted, coarse=True)
    assert len(read) == 1 + 30
    read.clear()
    parts = second_moments(model, layers, noted, coarse=True, memory=4 * 4.0 * 16 * 64)
    assert len(read) == 1 + 4 * 30  # a layer at a time
    for name, (metric,) in whole.items():
        assert difference(parts[name][0].channels, metric.channels) < 0.3


def test_constants_in_a_file_of_their_own_are_read_and_outside_of_the_folder_refused(tmp_path):
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv (x, w) }"
    model = from_text(text, w=noise(4, 3, 3, 3))
    weight = model.graph.initializer.pop()
    node = onnx.helper.make_node("Constant", [], ["w"], value=weight)
    model.graph.node.insert(0, node)
    feeds = {"x": noise(2, 3, 8, 8)}
    before = run(open_session(ir.from_proto(model)), feeds)["y"]
    options = {"save_as_external_data": True, "convert_attribute": True, "size_threshold": 0}
    onnx.save_model(model, tmp_path / "net.onnx", location="w.bin", **options)
    loaded = onnx_network.load(tmp_path / "net.onnx")
    assert [layer.reason for layer in survey(canonicalize(loaded), feeds)] == [None]
    assert difference(before, run(open_session(loaded), feeds)["y"]) <= 1e-6
    stolen = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    (place,) = (e for e in stolen.graph.node[0].attribute[0].t.external_data if e.key == "location")
    place.value = "../w.bin"
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "net.onnx").write_bytes(stolen.SerializeToString())
    with pytest.raises(ConverterError, match=r"outside of its folder \(\.\./w\.bin\)"):
        onnx_network.load(tmp_path / "inner" / "net.onnx")


def test_a_bias_for_each_row_is_no_bias_of_the_outputs():
    text = """g (float[4,3] x) => (float[4,4] y) {
        a = Gemm (x, w, c)
        y = BatchNormalization (a, s, h, m, v)
    }"""
    numbers = {"s": 1 + noise(4), "h": noise(4), "m": noise(4), "v": noise(4) ** 2 + 1}
    model = ir.from_proto(from_text(text, w=noise(3, 4), c=noise(4, 1), **numbers))
    feeds = {"x": noise(4, 3)}
    assert difference(outputs(model, feeds)["y"], outputs(canonicalize(model), feeds)["y"]) <= 1e-6


def test_half_precision_that_cannot_hold_the_product_is_not_folded():
    text = """g (float16[N,3,8,8] x) => (float16[N,4,6,6] y) {
        a = Conv (x, w)
        y = BatchNormalization (a, s, h, m, v)
    }"""
    numbers = {"w": 200 + noise(4, 3, 3, 3), "s": 2 + 0 * noise(4), "h": noise(4), "m": noise(4)}
    halves = {name: array.astype(np.float16) for name, array in numbers.items()}
    model = ir.from_proto(from_text(text, v=np.full(4, 1e-6, np.float16), **halves))
    feeds = {"x": noise(1, 3, 8, 8).astype(np.float16)}
    assert [layer.reason for layer in survey(canonicalize(model), feeds)] == [None]


def test_layers_of_one_name_are_told_apart():
    text = """g (float[N,3,8,8] x, bool b) => (float[N,4,6,6] y) {
        a = Conv (x, w)
        y = If (b) <
            then_branch = t () => (float[N,4,6,6] z) { z = Conv (x, w) },
            else_branch = e () => (float[N,4,6,6] z) { z = Conv (x, a_w) }
        >
    }"""
    model = from_text(text, w=noise(4, 3, 3, 3), a_w=noise(4, 3, 3, 3))
    for node in model.graph.node[1].attribute:
        node.g.node[0].name = "w"
    feeds = {"x": noise(1, 3, 8, 8), "b": np.array(True)}
    layers = survey(ir.from_proto(model), feeds)
    assert [layer.name for layer in layers] == ["w", "w#2", "w#3"]
    assert [layer.reason is None for layer in layers] == [True, False, False]


def test_a_weight_on_the_left_is_kept_with_the_reason():
    text = "g (float[3,5] x) => (float[4,5] y) { y = MatMul (w, x) }"
    (layer,) = survey(ir.from_proto(from_text(text, w=noise(4, 3))), {"x": noise(3, 5)})
    assert layer.conv is None and "left factor" in layer.reason


def test_outputs_that_are_no_numbers_are_left_out_of_the_check():
    text = """g (float[N,3] x) => (float[N,4] y, string[N,4] z) {
        y = MatMul (x, w)
        z = Cast <to = 8> (y)
    }"""
    model = ir.from_proto(from_text(text, w=noise(3, 4)))
    assert check_same(model, canonicalize(model), {"noise": {"x": noise(2, 3)}}) is None
