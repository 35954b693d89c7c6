"""Models as .pt2 programs: exported to ONNX and converted there; damaged ones refused."""

import json
import zipfile

import numpy as np
import onnx
import pytest
import torch
from conv_cases import difference
from networks import flatconv, noise
from torch import nn

import converter
from converter.errors import ConverterError
from converter.graph.network import inputs, load, open_session
from converter.graph.survey import survey
from converter.models.program import export_program
from converter.runtime.ort import run

X = noise(2, 3, 8, 8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


@pytest.fixture(scope="module")
def program(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    free = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(model, (torch.from_numpy(X),), dynamic_shapes=free), path)
    return path


def test_a_program_becomes_a_graph_that_computes_the_same(program, model):
    network = export_program(program, trust_pickle=True)
    (item,) = inputs(network)
    assert (item.shape, item.dtype) == ((None, 3, 8, 8), np.float32)
    (found,) = run(open_session(network), {item.name: X}).values()
    with torch.no_grad():
        assert difference(found, model(torch.from_numpy(X)).numpy()) < 1e-5
    layers = survey(network, {item.name: X})
    assert [(layer.name, layer.reason) for layer in layers] == [
        ("0", None),
        ("3", None),
        ("6", None),
    ]


def test_a_program_is_converted_by_the_command_line(program, model, tmp_path):
    options = ("--trust-pickle", "--form", "channel", "--rank", "9999", "-q")
    status, _, err = flatconv("convert", program, "-o", tmp_path / "out", *options)
    assert status == 0
    assert "Warning: The weights of the network look random" in err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [entry["form"] for entry in report["layers"]] == ["channel", "channel", None]
    assert not (tmp_path / "out" / "model.pt2").exists()
    network = load(tmp_path / "out" / "model.onnx")
    (found,) = run(open_session(network), {inputs(network)[0].name: X}).values()
    with torch.no_grad():
        assert difference(found, model(torch.from_numpy(X)).numpy()) < 1e-4
    assert isinstance(converter.load(tmp_path / "out"), onnx.ModelProto)


def test_a_program_is_read_only_if_it_is_trusted(program, tmp_path):
    status, _, err = flatconv("convert", program, "-o", tmp_path / "out")
    assert status == 2 and "can run code from it; pass --trust-pickle" in err
    assert not (tmp_path / "out").exists()


def damaged(program, path, how):
    content = program.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "a text":
        path.write_text("This is a text.\n" * 9)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other/file.txt", "nothing of torch's")
    return path


@pytest.mark.parametrize("how", ["truncated", "a text", "empty", "another archive"])
def test_a_damaged_program_is_refused(how, program, tmp_path):
    path = damaged(program, tmp_path / "net.pt2", how)
    status, _, err = flatconv("convert", path, "-o", tmp_path / "out", "--trust-pickle")
    assert status == 2
    assert "net.pt2 is not a sound .pt2 program" in err.replace("\n", " ")
    assert "Traceback" not in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nowhere.pt2", "folder.pt2"])
def test_a_missing_program_is_refused(name, tmp_path):
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ConverterError, match="does not exist, or is no file"):
        export_program(tmp_path / name, trust_pickle=True)


def test_a_program_is_tuned_as_the_onnx_that_it_becomes(program):
    config = converter.Options.of(form=("channel",), finetune=1, trust_pickle=True)
    result = converter.convert(program, options=config, calib=np.concatenate([X] * 10))
    assert result.plan.chosen() and all(row.rel_error is None for row in result.report.layers)
