"""``flatconv convert``, ``finetune`` and ``export``: what they write, print and return."""

import json

import numpy as np
import pytest
import torch
from cli_files import run, write_files
from networks import flatconv, noise, work_in

import converter
from converter import Plan


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
    assert err.splitlines()[-1] == report["reason"]
    assert err.splitlines()[:-1] == [f"Warning: {warning}" for warning in report["warnings"]]
    assert (out / "model.onnx").exists() and (out / "report.html").exists()


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
    origin = json.loads((from_factory / "conversion.json").read_text())["origin"]
    assert origin["factory_args"] == {"width": 8} and len(origin["checkpoint_sha256"]) == 64


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


def test_a_pickled_checkpoint_is_read_again_only_by_those_who_trust_it(place, out):
    arguments = """convert toy:build --checkpoint module.pt --trust-pickle --input-shape x:1,3,8,8
        --rank conv2=4 --calib data.npz -q -o"""
    assert flatconv(*arguments.split(), out)[0] == 0
    training = ("finetune", out, "--train", "data.npz", "--epochs", 1, "-q")
    status, _, error = flatconv(*training)
    assert status == 2 and "pass --trust-pickle" in error
    assert flatconv(*training, "--trust-pickle")[0] == 0


def test_export_writes_one_file(from_factory, tmp_path):
    status, text, _ = flatconv("export", from_factory, "-o", tmp_path / "net.onnx")
    assert status == 0 and "net.onnx" in text
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    x = noise(5, 3, 8, 8)
    shipped = run(from_factory / "model.onnx", x)
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x), shipped, 1e-3, 1e-3)
