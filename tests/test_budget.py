"""Budgets, end to end: kept, missed, combined, refused; times are counts of MACs."""

import json

import numpy as np
import pytest
from networks import flatconv, macs_stopwatch, make_net, noise, table_by_macs, work_in

import converter
from converter.errors import ConverterError
from converter.graph.network import load, open_session
from converter.job import open_job
from converter.options import Options
from converter.runtime import stopwatch
from converter.runtime.ort import run
from converter.timing.table import latency_table, measured_speedup

CHANNELS = (3, 32, 32, 32)


@pytest.fixture(autouse=True, scope="module")
def counted_time():
    """Races count multiply-accumulates: no outcome depends on the clock."""
    settings = stopwatch.TimingSettings(
        pause_s=0.0, race_s=0.0, min_rounds=8, max_rounds=8, stopwatch=macs_stopwatch
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "DEFAULT_SETTINGS", settings)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network whose kernels are nearly of low rank, its times, and data."""
    with work_in(tmp_path_factory.mktemp("budget")) as here:
        make_net(here / "net.onnx", channels=CHANNELS, size=16, loss=0.02)
        np.savez(here / "calib.npz", x=noise(64, 3, 16, 16, seed=1))
        (here / "table.json").write_text(table_by_macs("net.onnx", (1, 3, 16, 16)).to_json())
        yield here


def convert(place, output="out", **options):
    values = {"calib": "calib.npz", "latency": "table.json"} | options
    result = converter.convert("net.onnx", **values)
    result.save(place / output)
    return result, json.loads((place / output / "report.json").read_text())


@pytest.fixture(scope="module")
def by_error(place):
    return convert(place, "by_error", max_error=0.2)


def test_an_error_budget_is_kept(by_error, place):
    result, report = by_error
    assert report["budget"] == {"max_error": 0.2}
    assert report["rel_output_error"] <= 0.2
    assert report["met"] is True
    assert report["speedup"]["low"] > 1
    assert result.plan.chosen()


def test_layers_have_their_times(by_error):
    _, report = by_error
    changed = [layer for layer in report["layers"] if layer["form"]]
    assert all(layer["latency_before_ms"] > 0 for layer in report["layers"])
    assert any(layer["latency_after_ms"] is not None for layer in changed)
    assert report["predicted_speedup"] > 1


def test_kept_layers_behind_a_converted_one_are_refit(by_error):
    result, _ = by_error
    forms = [choice.form for choice in result.plan.choices]
    first = next(n for n, form in enumerate(forms) if form)
    assert all(forms[first:])
    assert set(forms) - {None, "dense"}


def test_the_same_table_gives_the_same_plan(by_error, place):
    result, _ = by_error
    again, _ = convert(place, "same", max_error=0.2)
    assert again.plan == result.plan


def test_the_plan_is_replayed(by_error, place):
    result, _ = by_error
    again, _ = convert(place, "again", plan=place / "by_error" / "plan.json", latency=None)
    assert again.plan.choices == result.plan.choices


def test_macs_are_cut_to_the_share_wanted(place):
    _, report = convert(place, "macs", max_macs=0.5)
    assert report["converted"]["macs"] <= 0.5 * report["original"]["macs"]
    assert report["met"] is True


@pytest.mark.parametrize(("limit", "share"), [(0.5, 0.5), (50_000.0, None)])
def test_bytes_are_cut_to_a_share_or_a_number(place, limit, share):
    _, report = convert(place, "bytes", max_bytes=limit)
    most = share * report["original"]["bytes"] if share else limit
    assert report["converted"]["bytes"] <= most
    assert report["met"] is True


def test_a_smaller_share_than_there_is_ends_in_a_miss(place):
    _, report = convert(place, "least", max_macs=0.001)
    assert report["met"] is False
    assert "no choice of faster forms leaves less than" in report["reason"]
    _, report = convert(place, "smallest", max_bytes=100.0)
    assert report["met"] is False
    assert "no choice of faster forms leaves less than" in report["reason"]
    assert "of the bytes" in report["reason"]


def test_a_speedup_is_reached(place):
    _, report = convert(place, "faster", target_speedup=2.0)
    assert report["met"] is True
    assert report["speedup"]["median"] >= 2.0


def test_a_speedup_out_of_reach_is_missed(place):
    _, report = convert(place, "fastest", target_speedup=1000.0)
    assert report["met"] is False
    assert "out of reach" in report["reason"]


def test_all_budgets_hold_together(place):
    limits = {"max_error": 0.3, "target_speedup": 2.0, "max_macs": 0.5, "max_bytes": 0.7}
    _, report = convert(place, "all", **limits)
    assert report["met"] is True
    assert report["budget"] == limits
    assert report["rel_output_error"] <= 0.3
    assert report["speedup"]["median"] >= 2.0
    assert report["converted"]["macs"] <= 0.5 * report["original"]["macs"]
    assert report["converted"]["bytes"] <= 0.7 * report["original"]["bytes"]


def test_an_error_and_a_speedup_that_contradict_each_other_are_named(place):
    _, alone = convert(place, "speed_alone", target_speedup=6.0)
    assert alone["met"] is True
    error = alone["rel_output_error"] / 4
    _, report = convert(place, "both", max_error=error, target_speedup=6.0)
    assert report["met"] is False
    assert "No network found keeps all budgets" in report["reason"]
    assert f"without max_error {error:g} the others are kept" in report["reason"]
    assert "without target_speedup 6 the others are kept" in report["reason"]
    assert "at best it is" in report["reason"]


def test_without_a_budget_there_is_one(place):
    _, report = convert(place, "default")
    assert report["budget"] == {"max_drop": 0.005}


def test_layers_that_the_user_keeps_are_kept(place):
    result, _ = convert(place, "kept", max_error=0.3, keep=("conv1",))
    choice = next(c for c in result.plan.choices if c.layer == "conv1")
    assert (choice.form, choice.reason) == (None, "the user keeps it")


def test_a_layer_without_timed_forms_is_kept(place):
    table = json.loads((place / "table.json").read_text())
    table["layers"][1]["options"] = []
    (place / "fewer.json").write_text(json.dumps(table))
    result, _ = convert(place, "elsewhere", max_error=0.3, latency="fewer.json")
    assert {c.layer: c.form for c in result.plan.choices}["conv1"] in (None, "dense")


def test_inputs_that_a_network_overflows_on_are_refused(place):
    np.savez("far.npz", x=np.full((16, 3, 16, 16), 3e38, np.float32))
    arguments = ("--calib", "far.npz", "--max-macs", "0.5", "--no-correct")
    status, _, error = flatconv("convert", "net.onnx", "-o", "far", *arguments)
    assert status == 2
    assert "NaN or infinite values for far.npz" in error
    assert not (place / "far").exists()


def test_the_times_of_another_network_are_refused(place):
    make_net(place / "other.onnx", channels=(3, 16, 16), size=16)
    (place / "other.json").write_text(table_by_macs("other.onnx", (1, 3, 16, 16)).to_json())
    status, _, error = flatconv(
        "convert", "net.onnx", "-o", "x", "--max-error", "0.1", "--latency", "other.json"
    )
    assert status == 2
    assert "another network" in error
    assert not (place / "x").exists()


def test_a_missed_budget_ends_with_status_1(place):
    arguments = ("--target-speedup", "1000", "--calib", "calib.npz", "--latency", "table.json")
    status, _, error = flatconv("convert", "net.onnx", "-o", "missed", *arguments)
    assert status == 1
    assert "A speedup of 1000x is out of reach" in error
    assert (place / "missed" / "model.onnx").exists()


def test_a_contradiction_speaks_of_command_line_options(place):
    arguments = ("--calib", "calib.npz", "--latency", "table.json", "--max-error", "0.001")
    status, _, error = flatconv(
        "convert", "net.onnx", "-o", "words", *arguments, "--target-speedup", "6"
    )
    assert status == 1
    assert "without --max-error 0.001 the others are kept" in error


@pytest.mark.parametrize(("allowed", "met"), [(0.5, True), (1e-9, True)])
def test_a_users_measure_is_kept_to(place, allowed, met):
    x = {"x": noise(32, 3, 16, 16, seed=7)}
    original = run(open_session(load(place / "net.onnx")), x)["logits"]

    def evaluate(predict):
        return -float(np.abs(predict(x)["logits"] - original).mean())

    values = {"calib": "calib.npz", "latency": "table.json", "max_drop": allowed}
    result = converter.convert("net.onnx", evaluate=evaluate, **values)
    assert result.report.met is met
    assert result.comparison.converted.drop_points.median <= 100 * allowed
    assert bool(result.plan.chosen()) is (allowed > 1e-3)


def test_a_drop_without_inputs_cannot_be_judged(place):
    with pytest.raises(ConverterError, match="max_drop needs sample inputs; give calib"):
        converter.convert("net.onnx", max_drop=0.01)


def test_a_drop_without_classes_is_that_of_the_variance(place):
    make_net(place / "single.onnx", channels=(3, 16), size=16, classes=1)
    options = {"calib": "calib.npz", "task": "regress", "max_macs": 0.9}
    result = converter.convert("single.onnx", max_drop=0.9, **options)
    report = result.report.to_dict()
    assert report["task"] == "regress"
    assert report["lost"]["of"] == "variance of the worst channel"
    assert report["drop_points"] == pytest.approx(100 * report["rel_output_error"] ** 2, rel=1e-4)


def test_a_task_that_does_not_fit_is_refused(place):
    with pytest.raises(ConverterError, match="task detect"):
        converter.convert("net.onnx", max_drop=0.01, calib="calib.npz", task="detect")


def test_a_resumed_conversion_takes_the_result_of_an_earlier_race(place, monkeypatch, tmp_path):
    monkeypatch.setenv("FLATCONV_CACHE", str(tmp_path))
    options = Options.of(finetune=1, calib="calib.npz", latency="table.json")
    job = open_job("net.onnx", options)
    table = latency_table(job.problem, options, job.resources)
    seconds = iter(range(1, 10_000))
    uneven = stopwatch.TimingSettings(
        pause_s=0.0,
        race_s=0.0,
        min_rounds=8,
        max_rounds=8,
        stopwatch=lambda session, feeds, calls: next(seconds),
    )
    monkeypatch.setattr(stopwatch, "DEFAULT_SETTINGS", uneven)

    def race(chosen, options):
        return measured_speedup(job.problem, chosen, table, options, job.resources)

    chosen = {"conv1": ("separable", (4,))}
    before = race(chosen, options)
    resumed = options.changed(resume=True)
    assert race(chosen, resumed) == before
    assert race(chosen, options) != before
    assert race({"conv1": ("separable", (8,))}, resumed) != before


def test_other_budgets_are_drawn_where_none_is_kept(place):
    _, report = convert(place, "none", max_error=1e-6, frontier=True)
    assert not any(layer["form"] for layer in report["layers"])
    assert len(report["frontier"]) > 1
