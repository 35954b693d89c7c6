"""The suite of networks in packages: archives, proposals and what counts as a fault."""

import io
import json
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
from networks import from_text, noise

from scripts.benchmarks.suites import wild


def test_the_list_names_every_file_once():
    files = wild.listed()
    assert len({file.sha256 for file in files}) == len(files)
    assert {file.registry for file in files} == {"pypi", "npm"}
    assert len({file.name for file in files}) == len(files)


@pytest.mark.parametrize("kind", ["wheel", "tar"])
def test_a_file_is_read_from_either_archive(kind, tmp_path):
    archive = tmp_path / "package"
    if kind == "wheel":
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.writestr("models/net.onnx", b"net")
    else:
        with tarfile.open(archive, "w:gz") as tar:
            entry = tarfile.TarInfo("models/net.onnx")
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"net"))
    assert wild.member(archive, "models/net.onnx") == b"net"


def test_a_file_that_is_not_the_one_of_the_list_is_refused(tmp_path):
    file = wild.WildFile("pypi", "nets", "1.0", "nets/net.onnx", "0" * 64, "none")
    path = tmp_path / file.sha256[:16] / "net.onnx"
    path.parent.mkdir()
    path.write_bytes(b"another")
    with pytest.raises(OSError, match=r"nets/net\.onnx of nets has another SHA-256"):
        wild.fetched(file, tmp_path)


def test_a_proposed_shape_is_followed(tmp_path):
    text = "g (float[N, 3, H, W] x) => (float[N, 4, H, W] y) { y = Conv (x, w) }"
    onnx.save(from_text(text, w=noise(4, 3, 3, 3)), tmp_path / "net.onnx")
    attempt, options = wild.with_proposal("inspect", tmp_path / "net.onnx", "--json")
    assert options == ["--input-shape", "x:1,3,224,224"]
    assert attempt.outcome == "done"
    assert wild.convolutions(json.loads(attempt.output)) == 1


@pytest.mark.parametrize(
    ("content", "outcome"), [(b"no network", "refused"), (None, "refused")], ids=["bytes", "none"]
)
def test_a_refusal_is_no_fault(content, outcome, tmp_path):
    if content is not None:
        (tmp_path / "net.onnx").write_bytes(content)
    attempt = wild.attempt("inspect", tmp_path / "net.onnx")
    assert attempt.outcome == outcome
    assert attempt.sentence.startswith("flatconv: ")


def test_faults_and_outcomes_are_counted():
    rows = [
        {"name": "a", "inspect": "done", "outcome": "converted"},
        {"name": "b", "inspect": "done", "outcome": "kept"},
        {"name": "c", "inspect": "refused", "outcome": "refused"},
    ]
    whole = wild.summarize(rows)[-1]
    counts = [whole[name] for name in ("files", "inspected", "converted_files", "faults")]
    assert counts == [3, 2, 1, 0]
    assert not whole["met"]
    assert wild.summarize([*rows, {"name": "d", "reason": "it failed"}])[-1]["faults"] == 1
    many = [rows[0] | {"name": str(number)} for number in np.arange(100)]
    assert wild.summarize(many)[-1]["met"]
