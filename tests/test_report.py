"""Reports: under the names that scripts rely on, and equal to what numpy computes."""

import numpy as np
import pytest
from conversions import X, outputs

import converter
from converter.evaluation.check import difference
from converter.evaluation.comparison import version_of

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
    wanted = np.sqrt(np.square(before - after).mean(0) / before.var(0)).max()
    assert report["rel_output_error"] == pytest.approx(wanted, rel=1e-3)
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

    options = {"form": ("conv1=channel",), "rank": ("4",)}
    report = converter.convert("net.onnx", evaluate=evaluate, **options).report.to_dict()
    scores = [float(np.abs(y).sum()) for y in seen]
    assert len(seen) == 2
    assert report["original"]["accuracy"] == pytest.approx(scores[0])
    assert report["converted"]["accuracy"] == pytest.approx(scores[1])
    assert report["drop_points"] == pytest.approx(100 * (scores[0] - scores[1]))
