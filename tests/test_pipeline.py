"""End to end: networks go in, and what is written, measured and read back is held to its word."""

import contextlib
import copy
import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from helpers import fixed_race, make_net, noise, work_in
from torch import nn

import converter
from converter import ConverterError, Options
from converter.commands import dry_run, export, inspect
from converter.decomposition.decompose import decompose
from converter.decomposition.forms import FORMS
from converter.evaluation import compare
from converter.evaluation.check import check, check_graph, difference, tolerance
from converter.evaluation.comparison import verdict, version_of
from converter.graph import network as onnx_network
from converter.graph.network import load as load_onnx
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.job import check_options
from converter.models import match as torch_network
from converter.models.export import find_callable
from converter.report.tables import layer_cells
from converter.timing import table as timing
from converter.timing.race import Interval
from converter.training.checkpoint import Checkpoint
from converter.training.losses import distillation_loss
from converter.training.phases import budget_test, list_phases
from converter.training.schedule import increment, split_schedule

FILES = {"original.onnx", "model.onnx", "plan.json", "report.json", "report.html", "source.json"}
TORCH_FILES = {"model.safetensors", "model.pt2"}
X = noise(5, 3, 8, 8)


def outputs(model, x):
    """What a network gives for ``x``: an ONNX file or model, or a torch module."""
    if isinstance(model, nn.Module):
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def converted(folder, model, example_input=None, **options):
    """Convert and save; give the result, the folder and its report."""
    result = converter.convert(model, example_input, Options.of(**options))
    result.save(folder)
    report = json.loads((folder / "report.json").read_text())
    return SimpleNamespace(result=result, folder=folder, report=report)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder of this module's tests, with a factory, a network and data."""
    with work_in(tmp_path_factory.mktemp("pipeline")) as folder:
        make_net(folder / "net.onnx", seed=1)
        x = noise(60, 3, 8, 8, seed=2)
        np.savez(folder / "calib.npz", x=x)
        np.savez(folder / "eval.npz", x=x, y=np.random.default_rng(0).integers(0, 4, len(x)))
        yield folder


@pytest.fixture(scope="module")
def build(place):
    return find_callable("toy:build", "Factory")


@pytest.fixture(scope="module")
def from_factory(place):
    shape = ("1,3,8,8",)
    return converted(place / "out_f", "toy:build", input_shape=shape, rank=("conv2=6",))


@pytest.fixture(scope="module")
def from_module(place, build):
    options = {"form": ("conv1=channel", "conv2=separable"), "rank": ("2",)}
    return converted(place / "out_m", build(6).eval(), torch.zeros(1, 3, 8, 8), **options)


@pytest.fixture(scope="module")
def from_onnx(place):
    options = {"calib": "calib.npz", "eval": "eval.npz", "seed": 5}
    return converted(place / "out_o", place / "net.onnx", form=("flattened",), **options)


@pytest.fixture(params=["from_factory", "from_module", "from_onnx"])
def conversion(request):
    return request.getfixturevalue(request.param)


# what is written, and read back


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
    source = json.loads((from_factory.folder / "source.json").read_text())
    assert (source["factory"], source["factory_args"]) == ("toy:build", {})


def test_data_is_recorded_with_its_whole_path(from_onnx, place):
    recorded = json.loads((from_onnx.folder / "source.json").read_text())["config"]
    assert (recorded["calib"], recorded["eval"]) == tuple(
        str((place / name).resolve()) for name in ("calib.npz", "eval.npz")
    )


@pytest.mark.parametrize(
    "recorded", [None, [], {"calib": 3}, {"threads": "4"}, {"seed": True}, {"depth": 3}, {"lr": 0}]
)
def test_damaged_options_name_their_file(from_factory, tmp_path, recorded):
    from_factory.result.save(tmp_path)
    source = json.loads((tmp_path / "source.json").read_text()) | {"config": recorded}
    (tmp_path / "source.json").write_text(json.dumps(source))
    with pytest.raises(ConverterError, match=r"source\.json is damaged\. "):
        converter.finetune(tmp_path, train="calib.npz", finetune=1)


def test_options_may_be_given_as_one_writes_them():
    given = Options.of(checkpoint="net.pth", form="spatial", rank=["0.5"], eval=Path("a.npz"))
    meant = Options.of(checkpoint=Path("net.pth"), form=("spatial",), rank=("0.5",), eval="a.npz")
    assert given == meant and hash(given) == hash(meant)
    assert Options.of(rank=0.5) == Options.of(rank=("0.5",))
    assert Options.of(form="", rank=[""], plan="", checkpoint="") == Options()


@pytest.mark.parametrize(
    "options", [{"form": "flat"}, {"form": ["spatial", "flat"]}, {"form": Path("flat")}]
)
def test_one_form_that_is_none_is_named_whole(options):
    with pytest.raises(ConverterError, match=r"\bflat\b"):
        check_options(Options.of(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "form": ("channel",),
            "rank": ("4", "conv1=0.5"),
            "lr": 1,
            "batch_size": 3,
            "calib": "a:b",
        },
        {"plan": Path("/plan.json"), "checkpoint": Path("/w.pt"), "channels": "bgr"},
    ],
)
def test_options_come_back_from_json(options):
    config = Options.of(**options)
    assert Options.from_json(json.loads(json.dumps(config.to_json()))) == config


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


def test_an_export_is_the_same_network(from_onnx, tmp_path):
    export(from_onnx.folder, tmp_path / "model.onnx")
    shipped = outputs(from_onnx.folder / "model.onnx", X)
    np.testing.assert_array_equal(outputs(tmp_path / "model.onnx", X), shipped)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_export_keeps_every_node(place, tmp_path):
    shape = ("1,3,8,8",)
    made = converted(tmp_path / "out", "toy:build", input_shape=shape, form=("conv2=decoupled",))
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


# the report

INTERVAL = {"median": float, "low": float, "high": float}
NETWORK = {
    "params": int,
    "macs": int,
    "bytes": int,
    "latency_ms": INTERVAL,
    "accuracy": (float, type(None)),
}
LAYER = {
    "name": str,
    "form": (str, type(None)),
    "rank": (int, list, type(None)),
    "macs_before": int,
    "macs_after": int,
    "rel_error": (float, type(None)),
    "latency_before_ms": (float, type(None)),
    "latency_after_ms": (float, type(None)),
    "reason": (str, type(None)),
}
REPORT = {
    "original": NETWORK,
    "converted": NETWORK,
    "speedup": INTERVAL,
    "drop_points": (float, type(None)),
    "agreement": (float, type(None)),
    "rel_output_error": float,
    "met": bool,
    "reason": (str, type(None)),
    "budget": dict,
    "threads": int,
    "provider": str,
    "batch_size": int,
    "cpu": str,
    "versions": dict,
    "seed": int,
    "command": str,
    "layers": list,
}


def assert_is(value, kind):
    if isinstance(kind, dict):
        assert set(value) == set(kind)
        for name, inner in kind.items():
            assert_is(value[name], inner)
    else:
        assert isinstance(value, kind)


def test_a_report_has_the_names_that_scripts_rely_on(conversion):
    report = conversion.report
    assert set(report) >= set(REPORT)
    assert_is({name: report[name] for name in REPORT}, REPORT)
    for entry in report["layers"]:
        assert_is(entry, LAYER)
    assert [entry["name"] for entry in report["layers"]] == [
        choice.layer for choice in conversion.result.plan.choices
    ]
    for side, name in (("original", "original.onnx"), ("converted", "model.onnx")):
        assert report[side]["bytes"] == (conversion.folder / name).stat().st_size
    assert report["met"] is True


def test_versions_are_told_also_of_a_source_tree_that_is_not_installed(conversion):
    assert conversion.report["versions"]["numpy"] == np.__version__
    assert version_of("no-such-package") == "not installed"


def test_a_report_adds_up(from_onnx):
    report = from_onnx.report
    before, after = (sum(entry[k] for entry in report["layers"]) for k in LAYER if "macs" in k)
    rest = 16 * 4  # the linear layer
    assert before == 64 * (16 * 3 * 9 + 16 * 16 * 9) + rest
    assert report["original"]["macs"] == before
    assert report["converted"]["macs"] == after
    assert after == 64 * 16 * ((3 + 3 + 3 + 16) + (16 + 3 + 3 + 16)) + rest  # rank O = 16
    assert report["original"]["params"] == 16 * 3 * 9 + 16 * 16 * 9 + 32 + 16 * 4 + 4
    assert report["seed"] == 5 and report["command"] == "converter.convert"


def test_accuracy_is_what_numpy_says(from_onnx, place):
    data, report = np.load(place / "eval.npz"), from_onnx.report
    before, after = (
        outputs(from_onnx.folder / name, data["x"]) for name in ("original.onnx", "model.onnx")
    )
    accuracy = [float(np.mean(y.argmax(1) == data["y"])) for y in (before, after)]
    assert report["original"]["accuracy"] == pytest.approx(accuracy[0])
    assert report["converted"]["accuracy"] == pytest.approx(accuracy[1])
    assert report["drop_points"] == pytest.approx(100 * (accuracy[0] - accuracy[1]))
    assert report["agreement"] == pytest.approx(np.mean(before.argmax(1) == after.argmax(1)))
    assert report["rel_output_error"] == pytest.approx(difference(before, after), rel=1e-3)
    assert report["examples"] == 60


def test_weight_errors_are_those_of_the_shipped_kernels(from_module, build):
    forms = [entry["form"] for entry in from_module.report["layers"]]
    assert forms == ["channel", "separable", None]
    original = build(6).conv1.weight.detach().numpy().reshape(6, -1)
    first, second = (step.weight.detach().numpy() for step in from_module.result.model.conv1)
    found = second.reshape(6, 2) @ first.reshape(2, -1)
    entry = from_module.report["layers"][0]
    assert entry["rel_error"] == pytest.approx(difference(original, found), rel=1e-4)
    assert entry["rank"] == 2


def test_evaluate_takes_the_place_of_accuracy(place):
    seen = []

    def evaluate(predict):
        seen.append(predict({"x": X})["logits"])
        return float(np.abs(seen[-1]).sum())

    config = Options.of(form=("conv1=channel",), rank=("4",))
    report = converter.convert("net.onnx", None, config, evaluate=evaluate).report.to_dict()
    scores = [float(np.abs(y).sum()) for y in seen]
    assert len(seen) == 2
    assert report["original"]["accuracy"] == pytest.approx(scores[0])
    assert report["converted"]["accuracy"] == pytest.approx(scores[1])
    assert report["drop_points"] == pytest.approx(100 * (scores[0] - scores[1]))


# the same again


def test_a_replayed_plan_gives_the_same_bytes(from_onnx, tmp_path):
    plan = from_onnx.folder / "plan.json"
    again = converted(tmp_path / "out", "net.onnx", plan=plan, calib="calib.npz")
    assert (tmp_path / "out" / "plan.json").read_text() == plan.read_text()
    for name in ("model.onnx", "original.onnx"):
        assert (tmp_path / "out" / name).read_bytes() == (from_onnx.folder / name).read_bytes()
    assert again.report["converted"]["macs"] == from_onnx.report["converted"]["macs"]


def test_a_replayed_plan_brings_its_seed(place, tmp_path):
    options = {"calib": "calib.npz", "samples": 20}
    first = converted(tmp_path / "first", "net.onnx", form=("channel",), seed=5, **options)
    again = converted(tmp_path / "again", "net.onnx", plan=first.folder / "plan.json", **options)
    assert again.report["seed"] == 5
    model, same = (made.folder / "model.onnx" for made in (first, again))
    assert model.read_bytes() == same.read_bytes()


def test_a_replayed_plan_gives_the_same_torch_model(from_factory, tmp_path):
    plan = from_factory.folder / "plan.json"
    converted(tmp_path / "out", "toy:build", plan=plan, input_shape=("1,3,8,8",))
    for name in ("model.onnx", "original.onnx", "model.safetensors", "plan.json"):
        assert (tmp_path / "out" / name).read_bytes() == (from_factory.folder / name).read_bytes()


def test_the_same_seed_gives_the_same_bytes(place, from_onnx, tmp_path):
    converted(tmp_path / "out", "net.onnx", form=("flattened",), seed=5, calib="calib.npz")
    found = (tmp_path / "out" / "model.onnx").read_bytes()
    assert found == (from_onnx.folder / "model.onnx").read_bytes()


def test_a_model_is_left_as_it_is(place, build):
    model = build(4).eval()
    model.conv2.train()
    before = copy.deepcopy(model)
    converter.convert(model, torch.zeros(1, 3, 8, 8), Options.of(rank=("2",)))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_model_in_half_precision_stays_in_it(place, build, tmp_path):
    options = {"form": ("channel",), "calib": "calib.npz"}
    made = converted(tmp_path / "out", build().eval().half(), **options)
    assert made.report["met"] is True
    assert list(made.result.plan.chosen()) == ["conv1", "conv2"]
    x = X.astype(np.float16)
    assert outputs(made.folder / "model.onnx", x).dtype == np.float16
    for model in (made.result.model, converter.load(made.folder)):
        found = outputs(model, x)
        assert found.dtype == np.float16
        assert difference(outputs(made.folder / "model.onnx", x), found) < 1e-2


@pytest.mark.parametrize("kind", ["bfloat16", "float64"])
def test_a_precision_that_onnxruntime_lacks_is_refused(build, kind):
    model = build().to(getattr(torch, kind))
    with pytest.raises(ConverterError, match=f"The model is in {kind}, .* give it as float32"):
        converter.convert(model, torch.zeros(1, 3, 8, 8))


def test_a_file_is_left_as_it_is(place, tmp_path):
    content = (place / "net.onnx").read_bytes()
    before = sorted(place.iterdir())
    converter.convert("net.onnx", None, Options.of(rank=("conv1=8",)))
    assert (place / "net.onnx").read_bytes() == content
    assert sorted(place.iterdir()) == before


def test_full_rank_loses_nothing(place):
    config = Options.of(form=("channel", "conv1=flattened"), rank=("1.0", "conv1=144"))
    report = converter.convert("net.onnx", None, config).report
    assert report.comparison.networks[1].rel_output_error < 1e-5
    assert report.comparison.networks[1].agreement == 1.0


# what is shipped when


@pytest.mark.parametrize(
    ("channels", "size"), [((3, 48, 48, 48), 16), ((16, 16, 16, 16, 16), 2)], ids=["large", "tiny"]
)
def test_nothing_slower_is_shipped_unless_asked_for(tmp_path, channels, size):
    model = make_net(tmp_path / "net.onnx", channels, size, loss=0.02)
    made = converted(tmp_path / "out", model)
    if made.result.plan.chosen():
        assert made.report["speedup"]["low"] > 1
        assert "for their weights alone" in made.report["reason"]
        assert made.report["converted"]["macs"] < made.report["original"]["macs"]
    else:
        assert "the network was no faster" in made.report["reason"]
        shipped, original = (made.folder / name for name in ("model.onnx", "original.onnx"))
        assert shipped.read_bytes() == original.read_bytes()
        assert all("no faster" in layer["reason"] for layer in made.report["layers"][:-1])
    assert made.report["met"] is True


def test_nothing_is_converted_where_nothing_is_saved(from_onnx, tmp_path):
    made = converted(tmp_path / "out", "net.onnx")
    assert made.result.plan.chosen() == {}
    assert made.report["reason"].startswith("No layer was converted: no form saves 25%")
    assert made.report["rel_output_error"] == 0.0
    assert (tmp_path / "out/model.onnx").read_bytes() == (
        from_onnx.folder / "original.onnx"
    ).read_bytes()


def test_what_is_slower_is_obeyed_with_a_warning(place):
    config = Options.of(form=("conv1=flattened",), rank=("conv1=144",))
    result = converter.convert("net.onnx", None, config)
    figures = result.comparison.networks
    assert list(result.plan.chosen()) == ["conv1"]
    assert figures[1].macs > 2 * figures[0].macs
    assert result.report.met
    assert "not faster in onnxruntime" in result.report.reason


def test_a_dry_run_plans_the_same(place, from_onnx):
    before = sorted(place.iterdir())
    config = Options.of(form=("flattened",), calib="calib.npz", seed=5)
    plan, rows = dry_run("net.onnx", config)
    assert plan == from_onnx.result.plan
    untimed = {"latency_before_ms": None, "latency_after_ms": None}
    assert [replace(row, **untimed) for row in rows] == [
        replace(row, **untimed) for row in from_onnx.result.report.layers
    ]
    assert sorted(place.iterdir()) == before


def test_what_is_too_large_to_be_timed_by_layer_is_converted_all_the_same(place, monkeypatch):
    monkeypatch.setattr(timing, "MAX_FILE_BYTES", 100)
    rows = converter.convert("net.onnx", None, Options.of(form=("channel",))).report.layers
    assert any(row.form for row in rows)
    assert all(row.latency_before_ms is row.latency_after_ms is None for row in rows)


def test_inspecting_lists_the_layers(place):
    layers, table = inspect("net.onnx", Options())
    assert [timed.output for timed in table.layers] == [x.output for x in layers]
    assert [(x.name, x.size, x.params, x.macs) for x in layers] == [
        ("conv0", (8, 8), 16 * 3 * 9 + 16, 64 * 16 * 3 * 9),
        ("conv1", (8, 8), 16 * 16 * 9 + 16, 64 * 16 * 16 * 9),
        ("fc", (1,), 16 * 4 + 4, 16 * 4),
    ]


def test_a_model_without_a_factory_cannot_be_tuned_further(from_module):
    with pytest.raises(ConverterError, match="was not made from a factory"):
        converter.finetune(from_module.folder, train="calib.npz", finetune=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"provider": "NoProvider"}, "'NoProvider' is not available"),
        ({"device": "nowhere"}, "Device 'nowhere' cannot be used"),
        ({"device": "meta"}, "Device 'meta' cannot be used"),
        ({"device": "cuda:99"}, "Device 'cuda:99' cannot be used"),
        ({"form": ("conv1=flat",), "keep": ("conv1",)}, "There is no form 'flat'"),
        ({"eval": "missing.npz"}, "Data missing.npz does not exist"),
        ({"train": "missing.npz"}, "Data missing.npz does not exist"),
        ({"train": "large.npz", "finetune": 1}, "examples of shape 3,9,9 for input 'x'"),
    ],
)
def test_what_is_used_last_is_checked_first(place, options, words):
    np.savez("large.npz", x=noise(4, 3, 9, 9))
    stages = []
    config = Options.of(**{"form": ("channel",), "input_shape": ("1,3,8,8",)} | options)
    with pytest.raises(ConverterError, match=words):
        converter.convert(
            "toy:build", None, config, progress=lambda stage, done: stages.append(stage)
        )
    assert set(stages) <= {"loading"}
    with pytest.raises(ConverterError, match=words):
        dry_run("toy:build", config)


@pytest.mark.parametrize("name", ["form", "rank", "only", "keep"])
def test_a_plan_leaves_nothing_to_choose(name):
    with pytest.raises(ConverterError, match="--plan says what happens to each layer"):
        Options.of(plan=Path("plan.json"), **{name: ("conv1=8",)})


@contextlib.contextmanager
def files_of_at_most(size):
    """Let no file grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_space_for_any_of_the_files_the_old_output_stays(from_factory, tmp_path):
    from_factory.result.save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for size in sorted(map(len, before.values())):
        with files_of_at_most(size - 1), pytest.raises(ConverterError, match="cannot"):
            from_factory.result.save(tmp_path / "out")
        after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert after == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_skipped(tmp_path):
    checkpoint = Checkpoint(3, {"w": torch.zeros(1000)}, {}, {}, {}, 1.0, 1.0)
    with files_of_at_most(1000):
        checkpoint.save(tmp_path / "state.safetensors")
    assert list(tmp_path.iterdir()) == []


# tuning


def loss_of(model, x, wanted):
    return distillation_loss(torch.from_numpy(outputs(model, x)), torch.from_numpy(wanted)).item()


def test_a_tuned_conversion_ships_the_tuned_weights(from_factory, tmp_path):
    train = noise(512, 3, 8, 8, seed=3)
    np.savez(tmp_path / "train.npz", x=train)
    options = {"input_shape": ("1,3,8,8",), "rank": ("conv2=6",), "lr": 1e-2}
    options |= {"finetune": 20, "train": str(tmp_path / "train.npz")}
    made = converted(tmp_path / "out", "toy:build", **options)
    assert made.report["met"] is True
    assert made.result.plan == from_factory.result.plan
    assert [layer["rel_error"] for layer in made.report["layers"]] == [None] * 3
    assert [layer_cells(row)[7] for row in made.result.report.layers] == ["", "-", ""]
    test = noise(128, 3, 8, 8, seed=4)
    wanted = outputs(from_factory.folder / "original.onnx", test)
    before, after = (loss_of(f.folder / "model.onnx", test, wanted) for f in (from_factory, made))
    assert after < 0.5 * before
    loaded = outputs(converter.load(made.folder), X)
    assert difference(outputs(made.folder / "model.onnx", X), loaded) < 1e-4


@pytest.fixture(scope="module")
def training(place):
    np.savez(place / "train.npz", x=noise(400, 3, 8, 8, seed=3))
    return {"input_shape": ("1,3,8,8",), "train": "train.npz", "lr": 1e-2}


def test_reconstruction_alone_brings_the_outputs_closer(from_factory, training, place):
    made = converter.convert(
        "toy:build", None, Options.of(rank=("conv2=6",), reconstruct=10, **training)
    )
    test = noise(128, 3, 8, 8, seed=4)
    wanted = outputs(from_factory.folder / "original.onnx", test)
    before, after = (loss_of(m, test, wanted) for m in (from_factory.result.model, made.model))
    assert after < 0.8 * before
    assert made.plan == from_factory.result.plan


def test_a_network_is_converted_and_trained_in_steps(place, monkeypatch):
    monkeypatch.setattr(compare, "race", fixed_race)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()
    np.savez("wide.npz", x=noise(80, 3, 16, 16, seed=3))
    progress = []
    options = Options.of(
        max_macs=0.4, schedule=2, finetune=2, calib="wide.npz", input_shape=("1,3,16,16",)
    )
    made = converter.convert(
        model, None, options, progress=lambda stage, done: progress.append(stage)
    )
    before, after = made.comparison.networks
    assert after.macs <= 0.4 * before.macs and made.report.met
    assert before.params == sum(p.numel() for p in model.parameters()) - 32 * 2
    stages = [a for a, b in zip(progress, [*progress[1:], ""]) if a != b]
    assert stages.count("fine-tuning") == 2
    x = noise(5, 3, 16, 16)
    assert difference(outputs(made.model, x), outputs(model, x)) < 0.5


def test_dense_twins_of_trained_chains_compute_what_they_do(from_factory, build):
    model, chains = build().eval(), from_factory.result.model
    twin = torch_network.dense(model, chains, from_factory.result.plan.chosen())
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert difference(outputs(twin, X), outputs(chains, X)) < 1e-5


def test_the_steps_of_a_schedule_divide_the_budget():
    config = Options.of(max_macs=0.25, max_drop=0.02, schedule=2, finetune=5, calib="c.npz")
    first, last = split_schedule(config)
    assert (first.limits, first.training.epochs) == ({"max_macs": 0.5, "max_drop": 0.01}, 2)
    assert (last.limits, last.training.epochs) == ({"max_macs": 0.25, "max_drop": 0.02}, 3)
    assert [increment(step, config).limits["max_drop"] for step in (first, last)] == [0.01, 0.01]
    assert increment(last, config).limits["max_macs"] == 0.25
    assert split_schedule(config.changed(schedule=1)) == [config.changed(schedule=1)]


def test_an_interrupted_training_resumes(training, place, monkeypatch, tmp_path):
    monkeypatch.setenv("FLATCONV_CACHE", str(tmp_path / "cache"))
    options = Options.of(rank=("conv2=6",), finetune=4, **training)

    def interrupt(stage, done):
        if stage == "fine-tuning" and done > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converter.convert("toy:build", None, options, progress=interrupt)
    done = []
    resumed = converter.convert(
        "toy:build",
        None,
        options.changed(resume=True),
        progress=lambda stage, share: done.append(share) if stage == "fine-tuning" else None,
    ).model.state_dict()
    whole = converter.convert("toy:build", None, options.changed(cache=False)).model.state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    assert min(done) > 0.4


def with_budget(made, folder, **report):
    """A copy of an output folder whose report tells another budget."""
    shutil.copytree(made.folder, folder)
    (folder / "report.json").write_text(json.dumps(made.report | report))
    return folder


@pytest.mark.parametrize(
    ("budget", "met", "after"),
    [
        ({"max_error": 1e-9}, False, False),
        ({"max_error": 10.0}, False, True),
        ({"max_error": 10.0}, True, True),
        ({"max_macs": 0.01}, False, False),
    ],
)
def test_a_folder_keeps_its_budget(from_factory, training, budget, met, after, tmp_path):
    folder = with_budget(from_factory, tmp_path / "out", budget=budget, met=met)
    steps = []
    made = converter.finetune(
        folder,
        train="train.npz",
        finetune=1,
        cache=False,
        progress=lambda stage, done: steps.append(done) if stage == "fine-tuning" else None,
    )
    assert made.report.budget == budget and made.report.met is after
    assert max(steps) == 1  # what was asked for is trained, even where the budget is kept
    if not after:
        option = "--" + next(iter(budget)).replace("_", "-")
        assert option in made.report.reason


def test_a_budget_that_nothing_measures_is_not_reported_as_kept(from_factory, training, tmp_path):
    folder = with_budget(from_factory, tmp_path / "out", budget={"max_drop": 1e-9}, met=True)
    made = converter.finetune(folder, train="train.npz", finetune=1)
    assert made.report.met is False and "too few to say" in made.report.reason
    made = converter.finetune(folder, train="train.npz", finetune=1, int8=True, calib="calib.npz")
    assert made.report.met is False and "int8" in made.report.reason


@pytest.mark.parametrize(
    "report", [{"budget": {"lr": 1}}, {"budget": [1]}, {"budget": {"max_drop": "a"}}]
)
def test_a_budget_that_is_none_is_refused(from_factory, training, report, tmp_path):
    folder = with_budget(from_factory, tmp_path / "out", **report)
    with pytest.raises(ConverterError, match=r"report\.json is damaged"):
        converter.finetune(folder, train="train.npz", finetune=1)


@pytest.mark.parametrize(("after", "met"), [(0.7, True), (0.4, False)])
def test_a_measure_of_the_user_says_whether_the_budget_is_kept(
    from_factory, training, after, met, tmp_path
):
    folder = with_budget(from_factory, tmp_path / "out", budget={"max_drop": 0.1}, met=False)
    scores = iter([0.75, after])
    made = converter.finetune(
        folder, train="train.npz", finetune=1, evaluate=lambda predict: next(scores)
    )
    assert made.report.met is met
    assert made.comparison.networks[1].accuracy == after


@pytest.mark.parametrize(
    ("options", "budget", "wanted"),
    [
        ({"finetune": 2}, {"max_drop": 0.01}, ["fine-tuning!"]),
        ({"finetune": 2}, {"max_macs": 0.5}, ["fine-tuning"]),
        ({"finetune": 2, "int8": True}, {"max_drop": 0.01}, ["fine-tuning", "evaluating!"]),
        ({"reconstruct": 2}, {"max_drop": 0.01}, ["reconstructing", "evaluating!"]),
        ({"reconstruct": 2}, {}, ["reconstructing"]),
        ({"reconstruct": 2, "finetune": 1}, {"max_error": 0.1}, ["reconstructing", "fine-tuning!"]),
    ],
)
def test_the_last_phase_tests_the_budget(options, budget, wanted):
    phases = list_phases(Options.of(**options), budget)
    assert [phase.name + "!" * (phase.stop_when is not None) for phase in phases] == wanted
    to_the_end = [phase.name for phase in list_phases(Options.of(**options), budget, True)]
    judged = "evaluating" in to_the_end
    assert judged == bool({"max_drop", "max_error"} & set(budget))


@pytest.mark.parametrize(("count", "words"), [(2100, None), (400, "40 training inputs were held")])
def test_reconstruction_alone_can_keep_a_budget(from_factory, count, words, tmp_path):
    np.savez(tmp_path / "train.npz", x=noise(count, 3, 8, 8, seed=3))
    folder = with_budget(from_factory, tmp_path / "out", budget={"max_drop": 0.5}, met=False)
    made = converter.finetune(folder, train=str(tmp_path / "train.npz"), reconstruct=1)
    assert made.report.met is (words is None)
    assert words is None or words in made.report.reason


LOSSES = """
import functools

import torch


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, outputs, targets, labels):
        return self.scale * (outputs[0] - targets[0]).square().mean()


def plain(scale, outputs, targets, labels):
    return scale * (outputs[0] - targets[0]).square().mean()


def fails(outputs, targets, labels):
    return outputs[0] @ targets[0]


def squeezed(outputs, targets, labels):
    return torch.nn.functional.cross_entropy(outputs[0], labels.squeeze())


LOSS = Scaled(2.0)
PARTIAL = functools.partial(plain, 2.0)
"""


@pytest.mark.parametrize("name", ["LOSS", "PARTIAL", "squeezed"])
def test_a_loss_may_be_any_callable(training, place, name):
    (place / "losses.py").write_text(LOSSES)
    with np.load("train.npz") as train:
        np.savez("columns.npz", x=train["x"], y=np.arange(400)[:, None] % 4)
    how = training | {"train": "columns.npz", "loss": f"losses:{name}"}
    options = Options.of(rank=("conv2=6",), finetune=1, **how)
    assert converter.convert("toy:build", None, options).plan.chosen()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": "far.npz"}, "labels of .*far.npz do not fit"),
        ({"train": "floats.npz"}, "labels of .*floats.npz do not fit"),
        ({"loss": "losses:fails"}, "--loss losses:fails failed"),
        ({"train": "two.npz"}, "2 examples; too few to train on"),
        ({"eval": "floats.npz"}, "not one class an example"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(training, place, options, words):
    (place / "losses.py").write_text(LOSSES)
    x = noise(100, 3, 8, 8, seed=3)
    np.savez("far.npz", x=x, y=np.where(np.arange(100) == 99, 4, 0))
    np.savez("floats.npz", x=x, y=np.zeros(100))
    np.savez("two.npz", x=x[:2])
    stages = []
    with pytest.raises(ConverterError, match=words):
        converter.convert(
            "toy:build",
            None,
            Options.of(max_macs=0.9, finetune=1, **(training | options)),
            progress=lambda stage, done: stages.append(stage),
        )
    assert set(stages) == {"loading"}


def test_an_original_that_has_changed_is_refused(from_factory, training, place, tmp_path):
    shutil.copytree(from_factory.folder, tmp_path / "out")
    origin = json.loads((tmp_path / "out" / "source.json").read_text())
    (place / "other.py").write_text(
        "import toy\n"
        "def build():\n"
        "    model = toy.build()\n"
        "    model.fc.bias.data += 1\n"
        "    return model\n"
    )
    origin["factory"] = "other:build"
    (tmp_path / "out" / "source.json").write_text(json.dumps(origin))
    with pytest.raises(ConverterError, match="its factory gives another model than it did"):
        converter.finetune(tmp_path / "out", train="train.npz", finetune=1)


def test_a_schedule_is_for_torch_models(place):
    options = Options.of(max_macs=0.5, schedule=2, finetune=2, calib="calib.npz")
    with pytest.raises(ConverterError, match="--schedule needs a torch model"):
        converter.convert(place / "net.onnx", None, options)


@pytest.mark.parametrize(
    ("budget", "off", "kept"),
    [
        ({"max_error": 0.1}, 0.05, True),
        ({"max_error": 0.1}, 0.2, False),
        ({"max_drop": 0.05}, 0.01, True),
        ({"max_drop": 0.05}, 2.0, False),
        ({"max_drop": 0.05, "max_error": 0.01}, 0.05, False),
    ],
)
def test_held_out_outputs_say_whether_a_budget_is_kept(budget, off, kept):
    before = 5 * noise(300, 10)
    after = before + off * 5 * noise(300, 10, seed=1)
    within_budget = budget_test(budget, Options())
    assert within_budget([before[:200], before[200:]], [after[:200], after[200:]], None) == kept
    assert budget_test({"max_macs": 0.5}, Options()) is None


# checking


@pytest.fixture(scope="module")
def rewritten(place):
    """A network, its layers, chains for both, and the rewritten network."""
    network = load_onnx(place / "net.onnx")
    layers = survey(network, {"x": X})[:2]
    chains = {
        "conv0": decompose(layers[0].conv, FORMS["channel"], (4,)),
        "conv1": decompose(layers[1].conv, FORMS["tucker"], (8, 4)),
    }
    named = {layer.output: (layer.name, chains[layer.name]) for layer in layers}
    return network, layers, chains, rewrite(network, named)


def test_a_sound_rewrite_passes(rewritten):
    network, layers, chains, result = rewritten
    assert check(network, result, layers, chains, {"random inputs": {"x": X}}) is None


@pytest.mark.parametrize("name", ["conv0", "conv1"])
def test_a_sabotaged_layer_is_named(rewritten, name):
    network, layers, chains, result = rewritten
    broken = result.clone()
    weight = broken.graph.initializers[f"{name}.1.weight"]
    kernel = weight.const_value.numpy().copy()
    kernel[0] *= -1
    weight.const_value = ir.tensor(kernel, name=weight.name)
    problem = check(network, broken, layers, chains, {"random inputs": {"x": X}})
    assert f"on random inputs, beginning at layer {name}." in problem


def test_a_sabotaged_rest_is_named_by_its_output(rewritten):
    network, layers, chains, result = rewritten
    broken = result.clone()
    bias = broken.graph.initializers["fc.bias"]
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(1), name="fc.bias")
    problem = check(network, broken, layers, chains, {"real inputs": {"x": X}})
    assert "on real inputs, beginning at output logits." in problem


def test_nan_is_a_difference(rewritten):
    network, layers, chains, result = rewritten
    broken = result.clone()
    weight = broken.graph.initializers["conv1.0.weight"]
    kernel = np.full_like(weight.const_value.numpy(), np.nan)
    weight.const_value = ir.tensor(kernel, name=weight.name)
    problem = check(network, broken, layers, chains, {"random inputs": {"x": X}})
    assert "beginning at layer conv1." in problem


def test_an_invalid_graph_is_found(rewritten):
    network, layers, chains, result = rewritten
    broken = result.clone()
    broken.graph.initializers.pop("conv1.1.weight")
    assert check_graph(result) is None
    samples = {"random inputs": {"x": X}}
    for problem in (check_graph(broken), check(network, broken, layers, chains, samples)):
        assert problem.startswith("The rewritten network is not valid ONNX: ")


def test_a_rewritten_network_that_does_not_run_is_found(rewritten):
    network, layers, chains, result = rewritten
    broken = result.clone()
    broken.graph.inputs[0].name = "other"
    problem = check(network, broken, layers, chains, {"random inputs": {"x": X}})
    assert problem.startswith("The rewritten network does not run on random inputs: ")


@pytest.mark.parametrize(("flips", "wanted"), [(0, 0.0), (1, 0.0), (3, 0.02), (100, 0.99)])
def test_of_class_indices_the_share_that_differs_counts(flips, wanted):
    classes = np.arange(100) % 10
    other = np.where(np.arange(100) < flips, (classes + 5) % 10, classes)
    assert difference(classes, other) == pytest.approx(
        min(wanted, difference(1.0 * classes, other))
    )
    assert (difference(classes, other) <= tolerance(classes)) == (flips < 3)


def test_of_rounded_pixels_the_distance_counts():
    pixels = np.random.default_rng(0).integers(100, 200, 500).astype(np.uint8)
    assert (
        difference(pixels, pixels + np.uint8(1))
        < tolerance(pixels)
        < difference(pixels, pixels // 2)
    )


@pytest.mark.parametrize(
    ("expected", "got", "wanted"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([0.0, 0.0], [0.0, 2.0], 2.0),
        ([3.0, 4.0], [3.0, 4.0, 5.0], np.inf),
        ([3.0, 4.0], [[3.0, 4.0]], np.inf),
    ],
)
def test_a_difference_is_relative(expected, got, wanted):
    assert difference(np.array(expected), np.array(got)) == pytest.approx(wanted)


# comparing


def test_three_files_are_held_against_the_first(place, from_onnx, tmp_path):
    other = make_net(tmp_path / "other.onnx", (3, 64, 64, 16), seed=9)
    paths = (place / "net.onnx", from_onnx.folder / "model.onnx", other)
    found = converter.compare(*paths, data="eval.npz")
    assert [figures.name for figures in found.networks] == list(map(str, paths))
    first, second, third = found.networks
    assert (first.speedup.median, first.agreement, first.rel_output_error) == (1.0, 1.0, 0.0)
    assert first.drop_points.median == 0.0
    assert second.macs == from_onnx.report["converted"]["macs"]
    assert second.accuracy == pytest.approx(from_onnx.report["converted"]["accuracy"])
    assert second.rel_output_error == pytest.approx(from_onnx.report["rel_output_error"], rel=1e-3)
    assert third.macs > 10 * first.macs
    assert third.verdict == verdict(third.speedup)
    assert found.examples == 60 and found.input_shapes == {"x": (1, 3, 8, 8)}


@pytest.mark.parametrize(
    ("low", "median", "high", "told"),
    [
        (1.9, 2.0, 2.1, "2.00x faster"),
        (0.4, 0.5, 0.6, "2.00x slower"),
        (0.9, 2.0, 2.1, "no difference"),
        (0.4, 0.5, 1.1, "no difference"),
    ],
)
def test_only_an_interval_that_leaves_no_doubt_has_a_verdict(low, median, high, told):
    assert verdict(Interval(median, low, high)) == told


def test_several_input_shapes_are_timed(tmp_path):
    path = make_net(tmp_path / "net.onnx", size="S")
    config = Options.of(input_shape=("2,3,8,8", "2,3,16,16"), rank=("conv1=8",))
    comparison = converter.convert(path, None, config).comparison
    assert comparison.input_shapes == {"x": (2, 3, 8, 8)} and comparison.batch_size == 2
    (further,) = comparison.further
    assert further.input_shapes == {"x": (2, 3, 16, 16)}
    assert len(further.latency_ms) == len(further.speedup) == 2


def test_a_comparison_needs_two_files_that_match(place, tmp_path):
    with pytest.raises(ConverterError, match="at least two"):
        converter.compare("net.onnx")
    with pytest.raises(ConverterError, match="named once"):
        converter.compare("net.onnx", "net.onnx")
    path = make_net(tmp_path / "two.onnx")
    model = onnx.load(path)
    features = onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", 16])
    model.graph.output.append(features)
    onnx.save(model, path)
    with pytest.raises(ConverterError, match="number of their outputs"):
        converter.compare("net.onnx", path)
