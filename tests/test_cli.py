"""The command line: what each command gives, and one sentence for every mistake."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import flatconv, make_net, noise, work_in
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import converter
from converter import ConverterError, Plan, cli
from converter.models.export import find_callable

ROOT = Path(converter.__file__).parent.parent
EVALUATE = """
import numpy as np


def share(predict):
    return float(np.mean(predict({"x": np.ones((8, 3, 8, 8), np.float32)})["logits"] > 0))
"""


def make_images(folder):
    """Write two images of each of two classes."""
    for number in range(4):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def make_chaotic(path):
    """Write a network that blows any rounding up."""
    model = onnx.load(make_net(path))
    large = numpy_helper.from_array(np.array(1e9, np.float32), "large")
    model.graph.initializer.append(large)
    model.graph.node[-1].output[0] = "tame"
    model.graph.node.append(helper.make_node("Mul", ["tame", "large"], ["wild"]))
    model.graph.node.append(helper.make_node("Sin", ["wild"], ["logits"]))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder of this module's tests, with sound and broken files of every kind."""
    with work_in(tmp_path_factory.mktemp("cli")) as folder:
        build = find_callable("toy:build", "Factory")
        make_net("net.onnx")
        make_net("other.onnx", seed=1)
        make_net("free.onnx", size="S")
        make_chaotic("chaotic.onnx")
        content = (folder / "net.onnx").read_bytes()
        (folder / "truncated.onnx").write_bytes(content[: len(content) // 2])
        (folder / "empty.onnx").write_bytes(b"")
        (folder / "text.onnx").write_text("hello\n")
        (folder / "folder.onnx").mkdir()

        state = build().state_dict()
        state["fc.bias"] += 3
        torch.save(state, "weights.pt")
        torch.save(build(4).state_dict(), "narrow.pt")
        torch.save(state | {"fc.bias": state["fc.bias"] * float("nan")}, "nan.pt")
        torch.save(build(), "module.pt")
        content = (folder / "weights.pt").read_bytes()
        (folder / "truncated.pt").write_bytes(content[: len(content) // 2])
        (folder / "empty.pt").write_bytes(b"")
        (folder / "text.pt").write_text("hello\n")
        (folder / "text.safetensors").write_text("hello\n")

        x = noise(40, 3, 8, 8)
        np.savez("data.npz", x=x, y=np.arange(40) % 4)
        np.savez("large.npz", x=noise(4, 3, 9, 9))
        np.savez("z.npz", z=x)
        (folder / "text.npz").write_text("hello\n")
        make_images(folder / "images")
        (folder / "plan.json").write_text("{")
        (folder / "score.py").write_text(EVALUATE)
        (folder / "foreign").mkdir()
        (folder / "foreign" / "thesis.tex").write_text("mine")
        yield folder


@pytest.fixture
def out(place, tmp_path):
    """A folder that does not exist yet."""
    return tmp_path / "out"


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


# what the commands give


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


def test_convert_writes_a_folder(out):
    arguments = ("convert", "net.onnx", "-o", out, "--form", "channel", "--rank", "8", "-v")
    status, text, err = flatconv(*arguments)
    assert status == 0 and "Traceback" not in err
    assert "speedup" in text and "conv1" in text and str(out / "report.html") in text
    report = json.loads((out / "report.json").read_text())
    assert report["met"] is True
    *rows, linear = [(entry["form"], entry["rank"]) for entry in report["layers"]]
    assert (rows, linear) == ([("channel", 8)] * 2, (None, None))
    assert report["command"].split()[:4] == ["flatconv", "convert", "net.onnx", "-o"]
    assert run(out / "model.onnx", noise(2, 3, 8, 8)).shape == (2, 4)


def test_convert_gives_its_report_as_json(out):
    status, text, _ = flatconv("convert", "net.onnx", "-o", out, "--rank", "conv1=8", "--json")
    assert status == 0
    assert json.loads(text) == json.loads((out / "report.json").read_text())


def test_convert_obeys_every_option(out):
    arguments = """convert net.onnx --form channel --form conv1=tucker --rank 0.5 --rank conv1=4,8
        --calib images --eval images --mean 0.5,0.4,0.3 --std 0.2 --resize 9 --crop 8
        --channels bgr --samples 2 --batch-size 3 --seed 7 --evaluate score:share -q -o"""
    assert flatconv(*arguments.split(), out)[:2] == (0, "")
    report = json.loads((out / "report.json").read_text())
    rows = [(entry["form"], entry["rank"]) for entry in report["layers"]]
    assert rows == [("channel", 8), ("tucker", [4, 8]), (None, None)]
    assert (report["batch_size"], report["seed"], report["threads"]) == (3, 7, 1)
    assert report["examples"] == 4 and report["data"] == "images"
    ones = np.ones((8, 3, 8, 8), np.float32)
    for side, name in (("original", "original.onnx"), ("converted", "model.onnx")):
        assert report[side]["accuracy"] == pytest.approx(np.mean(run(out / name, ones) > 0))


def test_convert_only_some_layers(out):
    arguments = ("convert", "net.onnx", "-o", out, "--form", "channel", "--keep", "conv0", "-q")
    assert flatconv(*arguments)[0] == 0
    first, second, _ = json.loads((out / "report.json").read_text())["layers"]
    assert (first["form"], first["reason"]) == (None, "the user keeps it")
    assert second["form"] == "channel"


def test_a_dry_run_writes_nothing(place):
    before = sorted(place.rglob("*"))
    arguments = ("convert", "net.onnx", "--form", "channel", "--dry-run")
    status, text, _ = flatconv(*arguments)
    assert status == 0 and "conv0" in text and "channel" in text
    status, text, err = flatconv(*arguments, "--json")
    assert (status, err) == (0, "")
    chosen = {
        name: (form.name, rank) for name, (form, rank) in Plan.from_json(text).chosen().items()
    }
    assert chosen == {"conv0": ("channel", (8,)), "conv1": ("channel", (8,))}
    assert sorted(place.rglob("*")) == before


def test_a_plan_is_replayed(out):
    first, again = out / "first", out / "again"
    options = ("--form", "flattened", "--rank", "4", "-q")
    assert flatconv("convert", "net.onnx", "-o", first, *options)[0] == 0
    plan = first / "plan.json"
    assert flatconv("convert", "net.onnx", "-o", again, "--plan", plan, "-q")[0] == 0
    assert (first / "model.onnx").read_bytes() == (again / "model.onnx").read_bytes()


def test_a_missed_check_is_status_1(out):
    arguments = ("convert", "chaotic.onnx", "-o", out, "--form", "channel", "--rank", "8", "-q")
    status, _, err = flatconv(*arguments)
    report = json.loads((out / "report.json").read_text())
    assert status == 1
    assert report["met"] is False
    assert "differs from its own dense kernels" in report["reason"]
    assert err.strip() == report["reason"]
    assert (out / "model.onnx").exists() and (out / "report.html").exists()


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
    found = converter.commands.compare(*files)
    assert 0 < found.networks[1].rel_output_error < 1e-2
    assert found.networks[1].bytes < found.networks[0].bytes
    with pytest.raises(ConverterError, match="takes other inputs"):
        converter.commands.compare(files[0], linear(out / "whole.onnx", TensorProto.INT32))


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
        np.savez("columns.npz", x=data["x"], y=data["y"][:, None])
    for option in ("--data", "--eval"):
        outcome = flatconv("compare", "net.onnx", "other.onnx", option, "columns.npz", "-q")
        assert_refused(outcome, "columns.npz", "not one class an example")


def test_words_among_the_outputs_are_left_out(place, out):
    out.mkdir()
    files = linear(out / "one.onnx", words=True), linear(out / "two.onnx", words=True)
    found = converter.commands.compare(*files)
    assert (found.networks[1].agreement, found.networks[1].rel_output_error) == (1.0, 0.0)
    status, _, err = flatconv("convert", files[0], "-o", out / "made", "--form", "channel", "-q")
    assert status in (0, 1), err


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


@pytest.fixture(scope="module")
def from_factory(place):
    """What convert made of the factory with its checkpoint."""
    arguments = """convert toy:build --checkpoint weights.pt --factory-args {"width":8}
        --input-shape x:1,3,8,8 --rank conv2=4 --calib data.npz -q -o out_factory"""
    assert flatconv(*arguments.split())[:2] == (0, "")
    return place / "out_factory"


def test_the_checkpoint_s_weights_are_converted(from_factory):
    model = converter.load(from_factory)
    assert torch.equal(model.fc.bias, torch.load("weights.pt")["fc.bias"])
    with torch.no_grad():
        wanted = model(torch.from_numpy(noise(2, 3, 8, 8))).numpy()
    np.testing.assert_allclose(run(from_factory / "model.onnx", noise(2, 3, 8, 8)), wanted, 1e-3)
    source = json.loads((from_factory / "source.json").read_text())
    assert source["factory_args"] == {"width": 8} and len(source["checkpoint_sha256"]) == 64


def test_finetune_trains_the_folder_further(from_factory):
    before = {path.name: path.read_bytes() for path in from_factory.iterdir()}
    arguments = ("--train", "data.npz", "--epochs", 30, "--lr", 0.01, "--json")
    status, text, _ = flatconv("finetune", from_factory, *arguments)
    after = {path.name: path.read_bytes() for path in from_factory.iterdir()}
    assert status == 0
    assert set(after) == set(before)
    assert json.loads(text) == json.loads(after["report.json"])
    assert json.loads(text)["met"] is True
    plans = [Plan.from_json(files["plan.json"].decode()) for files in (before, after)]
    assert plans[0].chosen() == plans[1].chosen() != {}
    assert after["original.onnx"] == before["original.onnx"]
    assert after["model.safetensors"] != before["model.safetensors"]
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        wanted = converter.load(from_factory)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(from_factory / "model.onnx", x), wanted, 1e-3, 1e-3)


def test_export_writes_one_file(from_factory, tmp_path):
    status, text, _ = flatconv("export", from_factory, "-o", tmp_path / "net.onnx")
    assert status == 0 and "net.onnx" in text
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    x = noise(5, 3, 8, 8)
    shipped = run(from_factory / "model.onnx", x)
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x), shipped, 1e-3, 1e-3)


def test_help_and_version(place):
    status, text, _ = flatconv()
    assert status == 0 and all(name in text for name in ("convert", "compare", "inspect"))
    status, text, _ = flatconv("convert", "--help")
    assert status == 0 and "--factory-args" in text
    assert flatconv("--version")[0] == 0


def test_without_a_terminal_progress_is_told_in_lines(monkeypatch):
    monkeypatch.setattr(cli, "LOG_INTERVAL_S", -1.0)
    err = io.StringIO()
    with contextlib.redirect_stderr(err), cli._progress(False) as progress:
        for done in (0.25, 0.5, 1.0, 0.0, 0.25, 0.5):  # twice, as in a schedule
            progress("training", done)
            time.sleep(0.01)
    lines = err.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"training: {done} %" for done in (25, 50, 100, 0, 25, 50)
    ]
    assert lines[-1].endswith(" left") and lines[-1] != "training: 50 %, 0:00:00 left"
    err = io.StringIO()
    with contextlib.redirect_stderr(err), cli._progress(True) as progress:
        progress("training", 0.5)
    assert err.getvalue() == ""


# mistakes


def assert_refused(outcome, *words):
    """Status 2, nothing on standard output, one sentence on standard error."""
    status, text, err = outcome
    assert status == 2
    assert text == ""
    assert "Traceback" not in err
    (sentence,) = err.splitlines()
    assert sentence.startswith("flatconv: ")
    for word in words:
        assert word in sentence


MODELS = {
    "missing file": ("missing.onnx", "missing.onnx does not exist"),
    "folder": ("folder.onnx", "folder.onnx is a folder; name an .onnx file"),
    "empty": ("empty.onnx", "empty.onnx is not a valid ONNX file"),
    "text": ("text.onnx", "text.onnx is not a valid ONNX file"),
    "truncated": ("truncated.onnx", "truncated.onnx is not a valid ONNX file"),
    "text named .pt": ("text.pt", "text.pt is not an ONNX file; name a factory"),
    "pickled module": ("module.pt", "pass --trust-pickle"),
    "unknown module": ("nowhere:build", "module 'nowhere' cannot be imported"),
    "unknown factory": ("toy:bild", "toy has no callable named 'bild'"),
    "nameless factory": ("toy:", "must be written package.module:name"),
    "factory that raises": (
        "toy:fails",
        "Factory 'toy:fails' failed: RuntimeError: no such backbone",
    ),
    "factory of a number": ("toy:number", "gave a int, not an nn.Module"),
    "no input shape": ("toy:build", "input 'x' is not known; give --input-shape x:1,3,32,32"),
    "free sizes": ("free.onnx", "give --input-shape x:"),
}
OPTIONS = {
    "shape of other channels": ("--input-shape 1,4,8,8", "Input 'x' takes shape ?,3,8,8"),
    "shape of fewer axes": ("--input-shape 1,3,8", "Input 'x' takes shape ?,3,8,8"),
    "shape of words": ("--input-shape 1x3x8x8", "must be written [NAME:]1,3,32,32"),
    "shape of another input": ("--input-shape z:1,3,8,8", "there is no input 'z'"),
    "rank 0": ("--rank 0", "Rank '0' must be above 0"),
    "rank of words": ("--rank many", "Rank 'many' is not a number"),
    "rank too large": ("--form channel --rank conv1=17", "Layer conv1: rank 17 does not fit"),
    "unknown form": ("--form flat", "There is no form 'flat'; use one of flattened"),
    "form of an unknown layer": ("--form conv2=channel", "no layer 'conv2'"),
    "rank of an unknown layer": ("--rank conv2=4", "no layer 'conv2'"),
    "only an unknown layer": ("--only conv2", "no layer 'conv2'; it has, for example, conv"),
    "keep an unknown layer": ("--keep conv2", "no layer 'conv2'; it has, for example, conv"),
    "missing plan": ("--plan missing.json", "Plan missing.json cannot be read"),
    "damaged plan": ("--plan plan.json", "Plan plan.json cannot be used"),
    "missing data": ("--calib missing.npz", "Data missing.npz does not exist"),
    "data of another shape": ("--calib large.npz", "3,9,9"),
    "evaluation data of another shape": ("--rank conv1=4 --eval large.npz", "shape 3,9,9"),
    "data of another input": ("--calib z.npz", "it lacks the network's input 'x'"),
    "damaged data": ("--calib text.npz", "text.npz is not a sound .npz file"),
    "images of another size": ("--calib images --resize 9 --crop 9", "3,9,9"),
    "images and words for means": ("--calib images --mean half", "--mean 'half' must be numbers"),
    "unknown evaluation": ("--evaluate score:shar", "score has no callable named 'shar'"),
    "unknown provider": ("--rank conv1=4 --provider NoProvider", "'NoProvider' is not available"),
    "unknown option": ("--from channel", "--from"),
    "words for a number": ("--threads many", "--threads"),
    "unknown channel order": ("--channels grb", "--channels"),
    "no thread": ("--threads 0", "--threads must be at least 1"),
    "no sample": ("--samples 0", "--samples must be at least 1"),
    "no learning": ("--lr 0", "--lr must be a number above 0"),
    "tuning without data": ("--finetune 1", "give --train"),
    "a schedule without a budget": ("--schedule 2 --finetune 2", "--schedule needs a budget"),
    "resuming what was not begun": ("--resume", "--resume needs --finetune"),
    "an empty batch": ("--train-batch 0", "--train-batch must be at least 1"),
    "no loss": ("--finetune 1 --train data.npz --loss nowhere:loss", "'nowhere' cannot be"),
}
FACTORIES = {
    "missing checkpoint": ("--checkpoint missing.pt", "missing.pt does not exist"),
    "folder for a checkpoint": ("--checkpoint images", "images is a folder"),
    "empty checkpoint": ("--checkpoint empty.pt", "empty.pt is empty"),
    "truncated checkpoint": ("--checkpoint truncated.pt", "truncated.pt is truncated or damaged"),
    "text checkpoint": ("--checkpoint text.pt", "Checkpoint text.pt is"),
    "text safetensors": ("--checkpoint text.safetensors", "not a sound safetensors file"),
    "NaN weights": ("--checkpoint nan.pt", "nan.pt holds NaN or infinite values in fc.bias"),
    "other model's weights": ("--checkpoint narrow.pt", "conv1.weight (4x3x3x3 in the file, 8x"),
    "pickled code": ("--checkpoint module.pt", "pass --trust-pickle"),
    "arguments that are no JSON": ("--factory-args width=8", "--factory-args is not JSON"),
    "arguments that are a list": ("--factory-args [8]", "must be a JSON object"),
    "unknown argument": ('--factory-args {"depth":8}', "unexpected keyword argument 'depth'"),
    "shape of other channels": ("--input-shape 1,4,8,8", "does not run on inputs of shape"),
}


def check_refusal(out, *arguments, words):
    assert_refused(flatconv("convert", *arguments, "-o", out, "-q"), words)
    assert not out.exists()
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(("model", "words"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_used(out, model, words):
    check_refusal(out, model, words=words)


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_do_not_fit(out, options, words):
    check_refusal(out, "net.onnx", *options.split(), words=words)


@pytest.mark.parametrize(("options", "words"), FACTORIES.values(), ids=FACTORIES)
def test_factories_that_cannot_be_filled(out, options, words):
    shape = () if "--input-shape" in options else ("--input-shape", "1,3,8,8")
    check_refusal(out, "toy:build", *options.split(), *shape, words=words)


def test_convert_needs_an_output_folder(place):
    assert_refused(flatconv("convert", "net.onnx", "-q"), "Name the output folder with -o")


@pytest.mark.parametrize("folder", ["net.onnx", "net.onnx/out", "net.onnx/deep/out"])
def test_a_file_cannot_hold_the_output(place, folder):
    content = (place / "net.onnx").read_bytes()
    arguments = ("convert", "net.onnx", "-o", folder, "--form", "channel", "-q")
    assert_refused(flatconv(*arguments), "net.onnx")
    assert (place / "net.onnx").read_bytes() == content


def test_foreign_files_survive(place):
    arguments = ("convert", "net.onnx", "-o", "foreign", "--form", "channel", "-q")
    assert_refused(flatconv(*arguments), "foreign holds other files (thesis.tex)")
    assert [path.name for path in (place / "foreign").iterdir()] == ["thesis.tex"]
    assert (place / "foreign" / "thesis.tex").read_text() == "mine"


def test_an_earlier_output_survives_a_mistake(out):
    arguments = ("convert", "net.onnx", "-o", out, "--form", "channel", "-q")
    assert flatconv(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert_refused(flatconv(*arguments, "--rank", "0"), "must be above 0")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("compare net.onnx", "at least two"),
        ("compare net.onnx missing.onnx", "missing.onnx does not exist"),
        ("compare net.onnx text.onnx", "text.onnx is not a valid ONNX file"),
        ("compare net.onnx other.onnx --data large.npz", "shape 3,9,9"),
        ("compare net.onnx other.onnx --json missing/a.json", "cannot be written"),
        ("compare net.onnx other.onnx --html missing/a.html", "cannot be written"),
        ("finetune images --train data.npz --epochs 1", "not an output folder of flatconv"),
        ("finetune images --train data.npz --epochs 0", "Give --epochs or --reconstruct"),
        ("convrt net.onnx", "convrt"),
    ],
)
def test_other_commands_refuse_too(place, arguments, words):
    before = sorted(place.rglob("*"))
    assert_refused(flatconv(*arguments.split(), "-q"), words)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "command", [("inspect", "net.onnx"), ("compare", "net.onnx", "other.onnx")]
)
def test_an_unexpected_error_is_one_sentence_too(place, monkeypatch, command):
    def surprise(model):
        raise ZeroDivisionError("nobody saw this coming")

    monkeypatch.setattr("converter.graph.network.inputs", surprise)
    outcome = flatconv(*command)
    assert_refused(outcome, "unexpected ZeroDivisionError: nobody saw this coming", "-v")
    status, _, err = flatconv(*command, "-v")
    assert status == 2 and "Traceback" in err and err.splitlines()[-1] == outcome[2].strip()


# in a process of its own


def test_a_mistake_ends_the_process_with_status_2(place):
    command = [sys.executable, "-m", "converter", "convert", "missing.onnx", "-o", "out", "-q"]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert_refused((ended.returncode, ended.stdout, ended.stderr), "missing.onnx does not exist")
    assert not (place / "out").exists()


def test_json_can_be_piped(place):
    command = [sys.executable, "-m", "converter", "inspect", "toy:build", "--json"]
    shape = ["--input-shape", "1,3,8,8"]
    ended = subprocess.run(command + shape, cwd=place, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0
    assert [layer["name"] for layer in json.loads(ended.stdout)] == ["conv1", "conv2", "fc"]


def test_an_interrupted_command_says_so_and_ends(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import sys, time\ndef build():\n    print('begun', flush=True)\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "converter", "convert", "slow:build", "-o", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "flatconv: interrupted; nothing was written.\n"
    assert not (tmp_path / "out").exists()
