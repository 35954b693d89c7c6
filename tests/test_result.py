"""Output folders: what is written, whole or not at all, and read back or exported."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conversions import X, converted, files_of_at_most, outputs
from torch import nn

import converter
from converter import ConverterError
from converter.commands import export
from converter.evaluation.check import difference
from converter.graph import network as onnx_network

FILES = {
    "original.onnx",
    "model.onnx",
    "plan.json",
    "report.json",
    "report.html",
    "conversion.json",
}
TORCH_FILES = {"model.safetensors", "model.pt2"}

pytestmark = pytest.mark.usefixtures("place")


def test_the_loaded_network_is_the_one_that_ships(conversion):
    shipped = outputs(conversion.folder / "model.onnx", X)
    for model in (converter.load(conversion.folder), conversion.result.model):
        assert difference(shipped, outputs(model, X)) < 1e-4


def test_the_original_ships_too(conversion, place, build):
    model = place / "net.onnx"
    if conversion.folder.name != "out_o":
        model = build(6 if conversion.folder.name == "out_m" else 8).eval()
    assert difference(outputs(model, X), outputs(conversion.folder / "original.onnx", X)) < 1e-4


def test_the_batch_axis_is_free(conversion):
    together = outputs(conversion.folder / "model.onnx", X)
    one_by_one = np.concatenate([outputs(conversion.folder / "model.onnx", x[None]) for x in X])
    assert together.shape == (5, 4)
    assert difference(together, one_by_one) < 1e-5


def test_a_loaded_torch_model_takes_any_batch(from_factory, from_module):
    for made in (from_factory, from_module):
        model = converter.load(made.folder)
        one_by_one = np.concatenate([outputs(model, x[None]) for x in X])
        assert difference(outputs(model, X), one_by_one) < 1e-5


def test_a_folder_holds_what_it_should(conversion):
    more = set() if conversion.folder.name == "out_o" else TORCH_FILES
    assert {path.name for path in conversion.folder.iterdir()} == FILES | more
    onnx.checker.check_model(str(conversion.folder / "model.onnx"), full_check=True)
    page = (conversion.folder / "report.html").read_text()
    assert "<html" in page and "layer" in page
    assert not list(conversion.folder.parent.glob(".out*"))


def test_the_factory_s_class_comes_back_with_plain_layers(from_factory, build):
    loaded = converter.load(from_factory.folder)
    assert isinstance(loaded, type(build())) and not loaded.training
    assert isinstance(loaded.norm, nn.BatchNorm2d)
    assert isinstance(loaded.conv1, nn.Conv2d)  # not named, so kept
    assert [type(step) for step in loaded.conv2] == [nn.Conv2d] * 4
    assert [step.groups for step in loaded.conv2] == [1, 6, 6, 1]


def test_a_factory_is_recorded(from_factory):
    origin = json.loads((from_factory.folder / "conversion.json").read_text())["origin"]
    assert (origin["factory"], origin["factory_args"]) == ("toy:build", {})


def test_data_is_recorded_with_its_whole_path(from_onnx, place):
    recorded = json.loads((from_onnx.folder / "conversion.json").read_text())["options"]
    assert (recorded["calib"], recorded["eval"]) == tuple(
        str((place / name).resolve()) for name in ("calib.npz", "eval.npz")
    )


@pytest.mark.parametrize(
    "recorded", [None, [], {"calib": 3}, {"threads": "4"}, {"seed": True}, {"depth": 3}, {"lr": 0}]
)
def test_damaged_options_name_their_file(from_factory, tmp_path, recorded):
    from_factory.result.save(tmp_path)
    record = json.loads((tmp_path / "conversion.json").read_text()) | {"options": recorded}
    (tmp_path / "conversion.json").write_text(json.dumps(record))
    with pytest.raises(ConverterError, match=r"conversion\.json is damaged\. "):
        converter.finetune(tmp_path, train="calib.npz", finetune=1)


def test_a_folder_that_is_no_output_is_refused(tmp_path):
    with pytest.raises(ConverterError, match="not an output folder of flatconv"):
        converter.load(tmp_path)
    with pytest.raises(ConverterError, match="not an output folder of flatconv"):
        export(tmp_path, tmp_path / "model.onnx")


def test_an_earlier_output_is_replaced_whole(from_onnx, from_module, tmp_path):
    folder = tmp_path / "deep" / "out"
    from_module.result.save(folder)
    from_onnx.result.save(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "plan.json").read_text() == from_onnx.result.plan.to_json()
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("interrupted", ["old", "new"])
def test_an_interrupt_keeps_the_earlier_output(from_onnx, tmp_path, monkeypatch, interrupted):
    folder = tmp_path / "out"
    from_onnx.result.save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = Path.rename

    def interrupt(path, target):
        if path.name == interrupted or Path(target).name == interrupted:
            monkeypatch.undo()
            if interrupted == "old":
                rename(path, target)
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        from_onnx.result.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_plan_is_named(from_onnx, tmp_path):
    from_onnx.result.save(tmp_path / "out")
    for text in ("{", '{"format": "flatconv-plan", "version": 1, "layers": {"a": {"form": "b"}}}'):
        (tmp_path / "out" / "plan.json").write_text(text)
        with pytest.raises(ConverterError, match=r"out.plan\.json cannot be used"):
            converter.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["thesis.tex", "sub/weights.bin"])
def test_foreign_files_are_never_replaced(from_onnx, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConverterError, match="holds other files"):
        from_onnx.result.save(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_no_folder(from_onnx, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConverterError, match="is a file; name a folder"):
        from_onnx.result.save(tmp_path / "out")
    with pytest.raises(ConverterError, match="not a writable folder"):
        from_onnx.result.save(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"


def test_without_space_for_any_of_the_files_the_old_output_stays(from_factory, tmp_path):
    from_factory.result.save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for size in sorted(map(len, before.values())):
        with files_of_at_most(size - 1), pytest.raises(ConverterError, match="cannot"):
            from_factory.result.save(tmp_path / "out")
        after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert after == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_is_the_same_network(from_onnx, tmp_path):
    export(from_onnx.folder, tmp_path / "model.onnx")
    shipped = outputs(from_onnx.folder / "model.onnx", X)
    np.testing.assert_array_equal(outputs(tmp_path / "model.onnx", X), shipped)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_export_keeps_every_node(place, tmp_path):
    made = converted(tmp_path / "out", "net.onnx", form=("conv1=decoupled",))
    export(made.folder, tmp_path / "model.onnx")
    shipped, exported = (onnx.load(f / "model.onnx") for f in (made.folder, tmp_path))
    kinds = [node.op_type for node in exported.graph.node]
    assert kinds == [node.op_type for node in shipped.graph.node]
    assert "Concat" in kinds


def test_an_export_that_is_interrupted_leaves_nothing(from_onnx, tmp_path, monkeypatch):
    def interrupted(model, path):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_network, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(from_onnx.folder, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_damaged_network_is_not_exported(from_onnx, tmp_path):
    folder = tmp_path / "out"
    from_onnx.result.save(folder)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:500])
    with pytest.raises(ConverterError, match=r"model\.onnx is not a valid ONNX file"):
        export(folder, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["", "missing/model.onnx"])
def test_an_export_needs_a_file_in_a_folder(from_onnx, tmp_path, name):
    with pytest.raises(ConverterError, match="name a file in an existing folder"):
        export(from_onnx.folder, tmp_path / name)


def test_weights_outside_the_file_are_written_into_it(place, tmp_path):
    model = onnx.load(place / "net.onnx")
    where = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 0}
    onnx.save(model, tmp_path / "net.onnx", **where)
    made = converted(tmp_path / "out", tmp_path / "net.onnx", form=("channel",))
    assert {path.name for path in made.folder.iterdir()} == FILES
    np.testing.assert_allclose(
        outputs(made.folder / "original.onnx"), outputs(place / "net.onnx"), rtol=1e-5
    )
    assert difference(outputs(made.folder / "model.onnx"), outputs(made.result.model)) < 1e-6
