"""``flatconv inspect`` and ``compare``: what they print and write."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_files import assert_refused, run, write_files
from networks import flatconv, noise, work_in
from onnx import TensorProto, helper, numpy_helper

import converter
from converter import ConverterError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder of this module's tests, with sound and broken files of every kind."""
    with work_in(tmp_path_factory.mktemp("cli")) as folder:
        write_files(folder)
        yield folder


@pytest.fixture
def out(place, tmp_path):
    """A folder that does not exist yet."""
    return tmp_path / "out"


def test_inspect_lists_the_layers(place):
    status, text, _ = flatconv("inspect", "net.onnx")
    assert status == 0
    assert "conv0" in text and "16x16x3x3" in text


def test_inspect_gives_json(place):
    status, text, err = flatconv("inspect", "net.onnx", "--json")
    assert (status, err) == (0, "")
    first, second, last = json.loads(text)
    assert [layer["name"] for layer in (first, second, last)] == ["conv0", "conv1", "fc"]
    assert second["kernel"] == [16, 16, 3, 3] and second["input_size"] == [8, 8]
    assert second["macs"] == 64 * 16 * 16 * 9 and second["reason"] is None


def test_times_in_int8_need_no_sample_inputs(place):
    status, text, err = flatconv("inspect", "net.onnx", "--int8", "--json")
    assert (status, err) == (0, "")
    assert all(layer["latency_ms"] > 0 for layer in json.loads(text)[:2])


def test_sample_images_give_the_shape_that_they_are_prepared_to(place):
    options = ("--calib", "images", "--crop", "8", "--json")
    status, text, err = flatconv("inspect", "toy:build", *options)
    assert status == 0, err
    assert json.loads(text)[0]["input_size"] == [8, 8]


def test_nothing_but_json_reaches_standard_output(place, capfd):
    shape = ("--input-shape", "1,3,8,8")
    status, text, _ = flatconv("inspect", "toy:build", *shape, "--json")  # the exporter is chatty
    assert status == 0
    assert [layer["name"] for layer in json.loads(text)] == ["conv1", "conv2", "fc"]
    assert capfd.readouterr().out == ""


def test_compare_writes_json_and_html(place, out):
    out.mkdir()
    files = ("--json", out / "figures.json", "--html", out / "page.html")
    status, text, _ = flatconv("compare", "net.onnx", "other.onnx", "--data", "data.npz", *files)
    assert status == 0
    assert "other.onnx against net.onnx" in text and "accuracy" in text
    figures = json.loads((out / "figures.json").read_text())
    assert [network["name"] for network in figures["networks"]] == ["net.onnx", "other.onnx"]
    data = np.load("data.npz")
    for network in figures["networks"]:
        accuracy = np.mean(run(network["name"], data["x"]).argmax(1) == data["y"])
        assert network["accuracy"] == pytest.approx(accuracy)
    page = (out / "page.html").read_text()
    assert "<html" in page and "flatconv compare net.onnx other.onnx" in page
    # every network with the nodes that the runtime makes of it
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition('id="layers"')[2], re.DOTALL)
    cells = [re.findall(r'data-value="([^"]*)"', row) for row in rows[1:]]
    assert {row[0] for row in cells} == {"net.onnx", "other.onnx"}
    assert "Conv" in {row[1] for row in cells}
    for name in ("net.onnx", "other.onnx"):  # of a tiny node the runtime may say 0
        assert sum(float(row[3]) for row in cells if row[0] == name) > 0
    assert "Time by kinds of nodes" in page


def test_compare_scores_on_eval_where_no_other_data_is_named(place):
    status, text, _ = flatconv("compare", "net.onnx", "other.onnx", "--eval", "data.npz")
    assert status == 0 and "data.npz" in text and "accuracy" in text


def test_names_are_no_markup(place, out):
    (out / "a[").mkdir(parents=True)
    for name in ("net[red]b.onnx", "a[/b].onnx"):
        (out / name).write_bytes(Path("net.onnx").read_bytes())
    status, text, err = flatconv("compare", out / "net[red]b.onnx", out / "a[/b].onnx")
    assert status == 0, err
    assert "net[red]b.onnx" in text and "a[/b].onnx" in text


FLOAT16 = TensorProto.FLOAT16


def linear(path, kind=TensorProto.FLOAT, words=False):
    """Write a linear layer; with ``words`` it gives the name of the likeliest class, too."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"])]
    outputs = [helper.make_tensor_value_info("y", kind, ["N", 4])]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 2)]
    if words:
        nodes.append(helper.make_node("ArgMax", ["y"], ["k"], axis=1, keepdims=0))
        names = {"keys_int64s": range(4), "values_strings": ["cat", "dog", "cow", "hen"]}
        nodes.append(helper.make_node("LabelEncoder", ["k"], ["s"], domain="ai.onnx.ml", **names))
        outputs.append(helper.make_tensor_value_info("s", TensorProto.STRING, ["N"]))
    weights = noise(8, 4).astype(helper.tensor_dtype_to_np_dtype(kind))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", kind, ["N", 8])],
        outputs,
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_networks_of_other_precision_are_compared(place, out):
    out.mkdir()
    files = linear(out / "single.onnx"), linear(out / "half.onnx", FLOAT16)
    found = converter.compare(*files)
    assert 0 < found[str(out / "half.onnx")].rel_output_error < 1e-2
    assert found[str(out / "half.onnx")].bytes < found[str(out / "single.onnx")].bytes
    with pytest.raises(ConverterError, match="takes other inputs"):
        converter.compare(files[0], linear(out / "whole.onnx", TensorProto.INT32))


@pytest.mark.parametrize("kind", ["UINT8", "INT8", "INT32", "BOOL", "INT64"])
def test_pages_are_drawn_of_networks_that_take_no_floats(place, out, kind):
    out.mkdir()
    value = helper.make_tensor_value_info("x", getattr(TensorProto, kind), ["N", 8])
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["f", "w"], ["y"]),
    ]
    found = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    weights = [numpy_helper.from_array(noise(8, 4), "w")]
    graph = helper.make_graph(nodes, "cast", [value], [found], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for name in ("one", "two"):
        onnx.save(model, out / f"{name}.onnx")
    files = out / "one.onnx", out / "two.onnx"
    status, _, err = flatconv("compare", *files, "--html", out / "page.html", "-q")
    assert status == 0, err
    assert "Gemm" in (out / "page.html").read_text()


def test_labels_that_are_no_classes_are_not_scored_on(place):
    with np.load("data.npz") as data:
        np.savez("columns.npz", x=data["x"], y=np.repeat(data["y"][:, None], 3, 1))
    for option in ("--data", "--eval"):
        outcome = flatconv("compare", "net.onnx", "other.onnx", option, "columns.npz", "-q")
        assert_refused(outcome, "columns.npz", "fit no output")


def test_words_among_the_outputs_are_left_out(place, out):
    out.mkdir()
    files = linear(out / "one.onnx", words=True), linear(out / "two.onnx", words=True)
    found = converter.compare(*files)
    two = found[str(files[1])]
    assert (two.drop_points.median, two.rel_output_error) == (0.0, 0.0)
    choice = ("--form", "w=channel", "--rank", "w=2")
    status, _, err = flatconv("convert", files[0], *choice, "-o", out / "made", "-q")
    assert status == 0
    assert (
        err.startswith("Warning: Output 'y' (N, 4) is judged as numbers; ") and err.count("\n") == 1
    )
    (layer,) = json.loads((out / "made" / "report.json").read_text())["layers"]
    assert (layer["form"], layer["rank"]) == ("channel", 2)


def test_networks_that_give_no_numbers_are_refused(place, out):
    out.mkdir()
    files = [linear(out / f"{name}.onnx", words=True) for name in ("one", "two")]
    for path in files:
        model = onnx.load(path)
        del model.graph.output[0]
        onnx.save(model, path)
    assert_refused(flatconv("compare", *files), "no arrays of numbers")


def test_networks_are_shown_by_what_tells_their_paths_apart(place, out):
    out.mkdir()
    twin = out / "net.onnx"
    twin.write_bytes(Path("net.onnx").read_bytes())
    page, figures = out / "page.html", out / "figures.json"
    files = (place / "net.onnx", twin)
    status, text, _ = flatconv("compare", *files, "--html", page, "--json", figures)
    assert status == 0
    assert f"against {place.name}/net.onnx" in " ".join(text.split())
    assert str(place.parent) not in text + page.read_text().partition("Made by")[0]
    named = [network["name"] for network in json.loads(figures.read_text())["networks"]]
    assert named == [str(file) for file in files]
