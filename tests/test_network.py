"""ONNX networks: loaded, saved, opened, observed; files of another kind refused."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conv_cases import compute, difference, make_conv
from networks import from_text, observe
from onnx import TensorProto, helper
from two_layers import TWO_LAYERS, TWO_WEIGHTS, X, random

from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.graph.network import open_session
from converter.graph.survey import survey
from converter.runtime.ort import OnnxRuntime, run


@pytest.fixture
def two_layers():
    return ir.from_proto(from_text(TWO_LAYERS, **TWO_WEIGHTS))


@pytest.fixture
def two_layer_file(tmp_path):
    path = tmp_path / "two.onnx"
    onnx.save(from_text(TWO_LAYERS, **TWO_WEIGHTS), path)
    return path


def outputs(model, x):
    return run(open_session(model), {"x": x})


def test_a_file_is_loaded_and_saved(two_layer_file, tmp_path):
    model = onnx_network.load(two_layer_file)
    onnx_network.save(model, tmp_path / "again.onnx")
    again = onnx_network.load(tmp_path / "again.onnx")
    session = onnxruntime.InferenceSession(two_layer_file)
    (wanted,) = session.run(None, {"x": X})
    assert difference(outputs(again, X)["y"], wanted) < 1e-5


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConverterError, match=r"nowhere\.onnx does not exist"):
        onnx_network.load(tmp_path / "nowhere.onnx")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConverterError, match=r"is a folder; name an \.onnx file"):
        onnx_network.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"This is a text.\n" * 9, b"{}", b"\x00" * 64])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        onnx_network.load(path)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(fraction, two_layer_file):
    content = two_layer_file.read_bytes()
    two_layer_file.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        onnx_network.load(two_layer_file)


def test_weights_beside_the_graph_are_read_unless_they_are_lost(tmp_path):
    path = tmp_path / "net.onnx"
    model = from_text(TWO_LAYERS, **TWO_WEIGHTS)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    first, _ = survey(onnx_network.load(path), {"x": X})
    assert first.conv.kernel.tobytes() == TWO_WEIGHTS["first"].tobytes()
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        onnx_network.load(path)


def test_a_graph_that_uses_an_unknown_tensor_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(from_text("g (float[1] x) => (float[1] y) { y = Add (x, nothing) }"), path)
    with pytest.raises(ConverterError, match="is not a valid ONNX file"):
        onnx_network.load(path)


def test_the_inputs_are_those_that_a_caller_feeds():
    text = """g (float[N, 4, 9, 8] x, int64[M] index, float16 scale, float[6, 4, 3, 3] w)
        => (float[N, 6, P, Q] y) { y = Conv (x, w) }"""
    model = ir.from_proto(from_text(text, w=random(6, 4, 3, 3)))
    actual = {item.name: (item.shape, item.dtype) for item in onnx_network.inputs(model)}
    assert actual == {
        "x": ((None, 4, 9, 8), np.float32),
        "index": ((None,), np.int64),
        "scale": ((), np.float16),
    }


@pytest.mark.parametrize("size", [-1, -2])
def test_a_size_below_0_is_free(size, tmp_path):
    text = "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { y = Conv (x, w) }"
    model = from_text(text, w=random(6, 4, 3, 3))
    for value in (model.graph.input[0], model.graph.output[0]):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(model, tmp_path / "net.onnx")
    for network in (ir.from_proto(model), onnx_network.load(tmp_path / "net.onnx")):
        assert [item.shape for item in onnx_network.inputs(network)] == [(None, 4, None, None)]
        for feeds in ({"x": random(2, 4, 9, 8)}, {"x": random(3, 4, 5, 6)}):
            (layer,) = survey(network, feeds)
            assert layer.reason is None and layer.size == feeds["x"].shape[2:]
    assert not any(isinstance(n, int) and n < 0 for n in network.graph.outputs[0].shape)


def test_an_input_that_is_not_a_tensor_is_refused():
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["x"], ["y"])], "g", [sequence], [output]
    )
    model = ir.from_proto(helper.make_model(graph, ir_version=8))
    with pytest.raises(ConverterError, match=r"Input 'x' .* has no tensor type or shape"):
        onnx_network.inputs(model)


def test_an_input_of_unknown_rank_is_refused():
    model = from_text("g (float[] x) => (float[] y) { y = Relu (x) }")
    with pytest.raises(ConverterError, match=r"Input 'x' .* has no tensor type or shape"):
        onnx_network.inputs(ir.from_proto(model))


def test_a_session_names_the_providers_that_there_are(two_layers):
    with pytest.raises(ConverterError, match=r"'NoSuchProvider' is not available .* CPUExecution"):
        open_session(two_layers, runtime=OnnxRuntime(provider="NoSuchProvider"))


def test_a_graph_that_onnxruntime_does_not_know_is_refused():
    model = from_text("g (float[1] x) => (float[1] y) { y = NoSuchOperator (x) }")
    with pytest.raises(ConverterError, match="onnxruntime cannot open the network"):
        open_session(ir.from_proto(model))


@pytest.mark.parametrize(
    "feeds", [{}, {"x": X[:, :3]}, {"x": X.astype(np.float64)}, {"x": X, "z": X}]
)
def test_inputs_that_do_not_fit_are_refused(feeds, two_layers):
    with pytest.raises(ConverterError, match="onnxruntime cannot run the network on inputs"):
        run(open_session(two_layers), feeds)


def test_inner_tensors_are_observed(two_layers):
    actual = observe(two_layers, ["b", "y", "b", "x"], {"x": X})
    conv = make_conv((6, 4, 3, 3), dtype=np.float32, padding=((1, 1), (1, 1)))
    wanted = compute([conv], X) - conv.bias[:, None, None] + TWO_WEIGHTS["bias"][:, None, None]
    assert set(actual) == {"b", "y", "x"}
    assert difference(actual["b"], np.maximum(wanted, 0)) < 1e-5
    assert actual["x"].tobytes() == X.tobytes()
    assert difference(actual["y"], outputs(two_layers, X)["y"]) < 1e-5


def test_observing_leaves_the_graph_as_it_is(two_layers):
    before = ir.to_proto(two_layers).SerializeToString(deterministic=True)
    observe(two_layers, ["a"], {"x": X})
    onnx_network.compute_shapes(two_layers, ["a"], {"x": X})
    assert ir.to_proto(two_layers).SerializeToString(deterministic=True) == before


def test_shapes_are_observed(two_layers):
    actual = onnx_network.compute_shapes(two_layers, ["x", "a", "y"], {"x": X})
    assert actual == {"x": (2, 4, 9, 8), "a": (2, 6, 9, 8), "y": (2, 5, 4, 7)}


def test_the_free_batch_axis_gets_its_name(two_layers):
    named = onnx_network.name_batch_axis(two_layers)
    assert [str(dim) for dim in named.graph.inputs[0].shape] == ["batch", "4", "9", "8"]
    assert [str(dim) for dim in two_layers.graph.inputs[0].shape] == ["N", "4", "9", "8"]
    assert difference(outputs(named, X)["y"], outputs(two_layers, X)["y"]) < 1e-5
