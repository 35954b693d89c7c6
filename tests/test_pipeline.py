"""Conversions end to end: the same again, what ships when, and what is refused before the work."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conversions import X, converted, outputs
from networks import from_text, make_net, noise
from torch import nn

import converter
from converter import ConverterError, Options, Plan
from converter.commands import dry_run, inspect
from converter.evaluation import compare
from converter.evaluation.check import difference
from converter.job import check_options
from converter.timing import table as timing
from converter.timing.race import Interval, Race

pytestmark = pytest.mark.usefixtures("place")


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
    converter.convert(model, torch.zeros(1, 3, 8, 8), rank=("2",))
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
    converter.convert("net.onnx", rank=("conv1=8",))
    assert (place / "net.onnx").read_bytes() == content
    assert sorted(place.iterdir()) == before


def test_full_rank_loses_nothing(place):
    options = {"form": ("channel", "conv1=flattened"), "rank": ("1.0", "conv1=144")}
    comparison = converter.convert("net.onnx", **options).comparison
    assert comparison.converted.rel_output_error < 1e-5
    assert comparison.converted.agreement == 1.0


def race_with(speedups):
    """Races in which the converted network is as fast as told, race after race."""
    told = iter(speedups)

    def race(sessions, *_, **__):
        speedup = next(told)
        values = [1.0, speedup]
        times, speedups = (tuple(Interval(v, v, v) for v in vs) for vs in (values[::-1], values))
        return Race(times, speedups, speedups[1], rounds=8)

    return race


@pytest.mark.parametrize(
    ("speedups", "count"), [([2.0], 3), ([0.5, 2.0], 1), ([0.5, 1.0, 0.5], 0), ([1.0, 0.5, 1.0], 0)]
)
def test_layers_are_reverted_until_the_network_is_faster(tmp_path, monkeypatch, speedups, count):
    monkeypatch.setattr(compare, "race", race_with(speedups))
    made = converted(tmp_path / "out", make_net(tmp_path / "net.onnx", (3, 32, 32, 32), loss=0.02))
    chosen, reverted = made.result.plan.chosen(), 3 - count
    assert len(chosen) == count
    assert made.report["met"] is True
    reasons = [layer["reason"] for layer in made.report["layers"][:-1]]
    assert sum("no faster" in (reason or "") for reason in reasons) == reverted
    if count:
        assert made.report["speedup"]["low"] == 2.0
        assert "for their weights alone" in made.report["reason"]
        assert made.report["converted"]["macs"] < made.report["original"]["macs"]
    else:
        assert "the network was no faster" in made.report["reason"]
        shipped, original = (made.folder / name for name in ("model.onnx", "original.onnx"))
        assert shipped.read_bytes() == original.read_bytes()


def test_nothing_is_converted_where_nothing_is_saved(from_onnx, tmp_path):
    made = converted(tmp_path / "out", "net.onnx")
    assert made.result.plan.chosen() == {}
    assert made.report["reason"].startswith("No layer was converted: no form saves 25%")
    assert made.report["rel_output_error"] == 0.0
    assert (tmp_path / "out/model.onnx").read_bytes() == (
        from_onnx.folder / "original.onnx"
    ).read_bytes()


def test_what_is_slower_is_obeyed_with_a_warning(place, monkeypatch):
    monkeypatch.setattr(compare, "race", race_with([0.5]))
    result = converter.convert("net.onnx", form=("conv1=flattened",), rank=("conv1=144",))
    comparison = result.comparison
    assert list(result.plan.chosen()) == ["conv1"]
    assert comparison.converted.macs > 2 * comparison.original.macs
    assert result.report.met
    assert "not faster in onnxruntime (2.00x slower)" in result.report.reason


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
    rows = converter.convert("net.onnx", form=("channel",)).report.layers
    assert any(row.form for row in rows)
    assert all(row.latency_before_ms is row.latency_after_ms is None for row in rows)


def test_inspecting_lists_the_layers(place):
    found = inspect("net.onnx", Options())
    layers, table = found.layers, found.table
    assert [task.name for task in found.tasks] == ["classify"]
    assert [timed.output for timed in table.layers] == [x.output for x in layers]
    assert [(x.name, x.size, x.params, x.macs) for x in layers] == [
        ("conv0", (8, 8), 16 * 3 * 9 + 16, 64 * 16 * 3 * 9),
        ("conv1", (8, 8), 16 * 16 * 9 + 16, 64 * 16 * 16 * 9),
        ("fc", (1,), 16 * 4 + 4, 16 * 4),
    ]


@pytest.mark.parametrize(
    "options", [{"form": "flat"}, {"form": ["spatial", "flat"]}, {"form": Path("flat")}]
)
def test_one_form_that_is_none_is_named_whole(options):
    with pytest.raises(ConverterError, match="There is no form 'flat'"):
        check_options(Options.of(**options))


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
    options = {"form": ("channel",)} | options
    with pytest.raises(ConverterError, match=words):
        converter.convert("net.onnx", progress=lambda stage, done: stages.append(stage), **options)
    assert set(stages) == {"loading"}
    with pytest.raises(ConverterError, match=words):
        dry_run("net.onnx", Options.of(**options))


def test_several_input_shapes_are_timed(tmp_path):
    path = make_net(tmp_path / "net.onnx", size="S")
    shapes = ("2,3,8,8", "2,3,16,16")
    comparison = converter.convert(path, input_shape=shapes, rank=("conv1=8",)).comparison
    assert comparison.input_shapes == {"x": (2, 3, 8, 8)} and comparison.batch_size == 2
    (further,) = comparison.further
    assert further.input_shapes == {"x": (2, 3, 16, 16)}
    assert list(further.latency_ms) == list(further.speedup) == ["original", "converted"]


def test_a_model_in_training_mode_is_converted_for_inference(build):
    model = build().train()
    options = {"form": ("conv1=channel",), "rank": ("conv1=1.0",)}
    result = converter.convert(model, torch.zeros(1, 3, 8, 8), **options)
    assert model.training and not result.model.training
    assert difference(outputs(result.model), outputs(model.eval())) < 1e-4


def test_a_plan_with_kept_layers_comes_back_from_json(place):
    plan = converter.convert("net.onnx", form=("conv1=channel",)).plan
    assert [choice.layer for choice in plan.choices if choice.reason] == ["conv0", "fc"]
    assert Plan.from_json(plan.to_json()) == plan


def test_fewer_examples_than_the_fixed_batch_are_enough(tmp_path):
    path = make_net(tmp_path / "fixed.onnx", batch=4)
    comparison = converter.convert(path, form=("channel",), calib=noise(3, 3, 8, 8)).comparison
    assert (comparison.batch_size, comparison.examples) == (4, 4)  # one of them twice
    assert 0 < comparison.converted.rel_output_error < np.inf


def test_a_network_without_convolutions_is_shipped_as_it_is(tmp_path):
    text = "g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"
    onnx.save(from_text(text), tmp_path / "net.onnx")
    result = converter.convert(tmp_path / "net.onnx")
    assert result.report.met and result.plan.chosen() == {}
    assert result.report.reason == "No layer was converted: there is no convolution."


def test_a_module_may_have_a_length():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def __len__(self):
            return 0

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    result = converter.convert(Empty().eval(), torch.zeros(1, 3, 8, 8), form=("channel",))
    assert isinstance(result.model, Empty) and isinstance(result.model.conv, nn.Sequential)
