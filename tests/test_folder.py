"""Output folders: those of version 0.1 are read, other versions are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conv_cases import difference
from networks import flatconv, noise, work_in
from torch import nn

import converter
from converter.commands import export
from converter.errors import ConverterError
from converter.options import Options
from converter.report.folder import read_record
from converter.search.plan import read_plan

OLD = Path(__file__).parent / "data" / "version_0_1"
KINDS = ["of_onnx", "of_torch"]
X = noise(4, 3, 8, 8)
TRAINING = {"train": "calib.npz", "epochs": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folders of version 0.1, with the data and the checkpoint that they name."""
    with work_in(tmp_path_factory.mktemp("folder")) as here:
        shutil.copytree(OLD / "onnx", here / "of_onnx")
        shutil.copytree(OLD / "torch", here / "of_torch")
        shutil.copy(OLD / "toy.pt", here)
        np.savez("calib.npz", x=noise(32, 3, 8, 8, seed=1))
        np.savez("eval.npz", x=noise(32, 3, 8, 8, seed=2), y=np.arange(32) % 4)
        yield here


@pytest.fixture(scope="module", params=KINDS)
def old(request, place):
    return Path(request.param)


@pytest.fixture(scope="module")
def new(place):
    """A folder of this version."""
    options = {"checkpoint": "toy.pt", "calib": str(place / "calib.npz"), "form": "channel"}
    result = converter.convert("toy:build", **options)
    result.save("of_today")
    return result, Path("of_today")


def outputs(model, x=X):
    if isinstance(model, nn.Module):
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def rewritten(folder, target, name, change):
    """A copy of a folder in which ``change`` was applied to the JSON file ``name``."""
    shutil.copytree(folder, target)
    document = json.loads((target / name).read_text())
    change(document)
    (target / name).write_text(json.dumps(document))
    return target


# folders of version 0.1


def test_the_network_of_an_old_folder_is_loaded(old):
    loaded = converter.load(old)
    assert isinstance(loaded, nn.Module if old.name == "of_torch" else onnx.ModelProto)
    assert difference(outputs(loaded), outputs(old / "model.onnx")) < 1e-5
    if isinstance(loaded, nn.Module):
        assert [type(step) for step in loaded.conv1] == [nn.Conv2d] * 3


def test_the_record_of_an_old_folder_is_read(old):
    record, report = read_record(old), json.loads((old / "report.json").read_text())
    assert [(row.name, row.form, row.rank) for row in record.layers] == [
        (row["name"], row["form"], row["rank"]) for row in report["layers"]
    ]
    assert record.budgets == ()
    assert record.options.data.calib == "calib.npz"
    assert record.options.layers.form == (("spatial" if old.name == "of_onnx" else "separable"),)
    assert "config" not in record.origin
    assert ("factory" in record.origin) is (old.name == "of_torch")


def test_an_old_folder_is_compared(old):
    comparison = converter.compare(old)
    report = json.loads((old / "report.json").read_text())
    assert list(comparison.networks) == [str(old / n) for n in ("original.onnx", "model.onnx")]
    reference, other = comparison.networks.values()
    assert [reference.macs, other.macs] == [report[n]["macs"] for n in ("original", "converted")]
    # the second folder names labelled inputs, the first does not
    assert (reference.accuracy, other.accuracy) == (
        report["original"]["accuracy"],
        report["converted"]["accuracy"],
    )
    status, out, _ = flatconv("compare", old, "--data", "eval.npz")
    assert status == 0 and "model.onnx against original.onnx" in " ".join(out.split())


def test_a_folder_is_compared_with_the_options_of_its_conversion(place, old, tmp_path):
    folder = rewritten(
        old, tmp_path / "out", "source.json", lambda d: d["config"].update(eval="eval.npz", seed=3)
    )
    for options, threads in ((), 1), (("--threads", 2), 2):
        figures = tmp_path / "figures.json"
        status, _, error = flatconv("compare", folder, *options, "--json", figures, "-q")
        assert status == 0, error
        found = json.loads(figures.read_text())
        assert (found["data"], found["threads"]) == ("eval.npz", threads)
    found = converter.compare(folder, threads=2)
    assert (found.data, found.threads) == ("eval.npz", 2)


def test_an_old_folder_is_trained_further_into_a_new_one(old, tmp_path):
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    arguments = ("--train", "calib.npz", "--epochs", 1)
    status, _, error = flatconv("finetune", old, *arguments, "-o", tmp_path / "out")
    assert status == 0, error
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "conversion.json" in names and "source.json" not in names
    record, earlier = read_record(tmp_path / "out"), read_record(old)
    assert [(row.name, row.form, row.rank) for row in record.layers] == [
        (row.name, row.form, row.rank) for row in earlier.layers
    ]
    assert record.origin == earlier.origin
    assert record.options.training.epochs == 1
    trained = outputs(tmp_path / "out" / "model.onnx")
    assert not np.array_equal(trained, outputs(old / "model.onnx"))
    if old.name == "of_torch":
        assert difference(outputs(converter.load(tmp_path / "out")), trained) < 1e-4


def test_the_plan_of_an_old_folder_is_replayed(old, tmp_path):
    plan = old / "plan.json"
    model = "toy:build" if old.name == "of_torch" else old / "original.onnx"
    more = ["--checkpoint", "toy.pt"] if old.name == "of_torch" else []
    arguments = ("--plan", plan, "--calib", "calib.npz", *more, "-o", tmp_path / "out")
    status, _, error = flatconv("convert", model, *arguments)
    assert status == 0, error
    assert read_plan(tmp_path / "out" / "plan.json") == read_plan(plan)
    macs = [
        json.loads((f / "report.json").read_text())["converted"] for f in (tmp_path / "out", old)
    ]
    assert macs[0]["macs"] == macs[1]["macs"]
    assert macs[0]["params"] == macs[1]["params"]


def test_an_old_folder_is_replaced_by_a_new_one(new, old, tmp_path):
    shutil.copytree(old, tmp_path / "out")
    new[0].save(tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {path.name for path in new[1].iterdir()}
    assert "source.json" not in written


def test_an_old_folder_without_its_report_is_named_as_damaged(old, tmp_path):
    shutil.copytree(old, tmp_path / "out")
    (tmp_path / "out" / "report.json").unlink()
    with pytest.raises(ConverterError, match=r"out.report\.json is damaged"):
        converter.load(tmp_path / "out")


# what is added later


def add_columns(report):
    report["carbon"] = {"grams": 3}
    for row in report["layers"]:
        row["energy_mj"] = 0.5


def test_further_columns_of_an_old_report_break_nothing(old, tmp_path):
    folder = rewritten(old, tmp_path / "more", "report.json", add_columns)
    assert read_record(folder) == read_record(old)
    assert difference(outputs(converter.load(folder)), outputs(old / "model.onnx")) < 1e-5


def test_further_columns_of_a_folder_break_nothing(new, tmp_path):
    folder = rewritten(new[1], tmp_path / "report", "report.json", add_columns)
    assert read_record(folder) == read_record(new[1])
    folder = rewritten(new[1], tmp_path / "record", "conversion.json", add_columns)
    assert read_record(folder) == read_record(new[1])
    assert isinstance(converter.load(folder), nn.Module)


# unknown versions


@pytest.fixture
def of_later(new, tmp_path):
    return rewritten(new[1], tmp_path / "later", "conversion.json", lambda d: d.update(version=2))


READERS = {
    "load": converter.load,
    "finetune": lambda folder: converter.finetune(folder, **TRAINING),
    "compare": converter.compare,
    "export": lambda folder: export(folder, folder.parent / "model.onnx"),
}


@pytest.mark.parametrize("reader", READERS)
def test_an_unknown_version_of_a_folder_is_refused(of_later, reader):
    with pytest.raises(ConverterError) as refused:
        READERS[reader](of_later)
    sentence = str(refused.value)
    path = str(of_later / "conversion.json")
    assert sentence.startswith(f"{path} is of version 2, but this flatconv reads version 1")
    assert sentence.count(". ") == 0 and sentence.endswith("wrote it.")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare",),
        ("finetune", "--train", "calib.npz", "--epochs", "1"),
        ("export", "-o", "exported.onnx"),
    ],
)
def test_the_command_line_refuses_an_unknown_version_and_writes_nothing(of_later, arguments):
    before = {path.name: path.read_bytes() for path in of_later.iterdir()}
    status, _, error = flatconv(arguments[0], of_later, *arguments[1:])
    assert status == 2
    assert "conversion.json is of version 2" in " ".join(error.split())
    assert {path.name: path.read_bytes() for path in of_later.iterdir()} == before
    assert not Path("exported.onnx").exists()


@pytest.mark.parametrize("name", ["conversion.json", "report.json", "source.json"])
@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff", '{"format": "other"}'])
def test_a_damaged_record_is_named(new, old, tmp_path, name, text):
    folder = new[1] if name == "conversion.json" else old
    shutil.copytree(folder, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConverterError, match=rf"out.{name} is damaged"):
        converter.load(tmp_path / "out")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_plan_of_an_unknown_version_is_refused(old, tmp_path, version):
    folder = rewritten(old, tmp_path / "out", "plan.json", lambda d: d.update(version=version))
    words = r"out.plan\.json cannot be used\. It is not a flatconv plan of version 1"
    for read in (
        converter.load,
        lambda folder: converter.finetune(folder, **TRAINING),
        lambda folder: converter.convert(folder / "original.onnx", plan=folder / "plan.json"),
    ):
        with pytest.raises(ConverterError, match=words):
            read(folder)


# written and read again


def test_a_saved_conversion_has_the_record_of_its_result(new):
    result, folder = new
    record = read_record(folder)
    assert record.origin == result.origin
    assert set(record.origin) == {"factory", "factory_args", "checkpoint", "checkpoint_sha256"}
    assert record.options == result.options.changed(checkpoint=Path("toy.pt").resolve())
    assert record.layers == result.report.layers
    document = json.loads((folder / "conversion.json").read_text())
    assert (document["format"], document["version"]) == ("flatconv-conversion", 1)
    assert Options.from_json(document["options"]) == record.options


def test_an_onnx_network_has_no_origin(place):
    result = converter.convert("of_onnx/original.onnx", form="channel", rank=2)
    assert dict(result.origin) == {}
