"""Outputs whose shape depends on the data: compared at what they are made of."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import from_text, macs_stopwatch, noise, table_by_macs

import converter
from converter.data.data import from_arrays
from converter.errors import ConverterError
from converter.evaluation.compare import Conditions, compare_models
from converter.evaluation.loss import LossEstimator
from converter.evaluation.recognize import recognize
from converter.graph.network import open_session
from converter.graph.outputs import comparison_outputs, data_dependent_shapes, with_outputs
from converter.graph.survey import survey
from converter.processes import Resources
from converter.runtime import stopwatch
from converter.runtime.ort import OnnxRuntime, run

# A detector: a box and a score a position, and of those the ones that overlap least.
DETECTOR = """g (float[1, 3, 8, 8] x) => (float[K, 4] found, float[1, 64, 4] all) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w1)
    few = Constant <value_ints = [4, 1]> ()
    raw, seen = Split <axis = 1> (c, few)
    rows = Constant <value_ints = [1, 4, 64]> ()
    flat = Reshape (raw, rows)
    all = Transpose <perm = [0, 2, 1]> (flat)
    classes = Constant <value_ints = [1, 1, 64]> ()
    scores = Reshape (seen, classes)
    most = Constant <value = int64[1] {20}> ()
    overlap = Constant <value = float[1] {0.5}> ()
    least = Constant <value = float[1] {0.0}> ()
    picked = NonMaxSuppression (all, scores, most, overlap, least)
    last = Constant <value = int64 {2}> ()
    which = Gather <axis = 1> (picked, last)
    one = Constant <value_ints = [64, 4]> ()
    table = Reshape (all, one)
    found = Gather <axis = 0> (table, which)
}"""
HEADED = """g (float[1, 4, 6, 6] x) => (float[K, 5] y) {
    a = Conv (x, w0)
    b = Relu (a)
    at = NonZero (b)
    turned = Transpose (at)
    hits = Cast <to = 1> (turned)
    y = MatMul (hits, head)
}"""
MADE_INSIDE = """g (float[1, 4] x, bool ask) => (float[K] y) {
    y = If (ask) <
        then_branch = one () => (float[K] t) { t = Compress (x, mask) },
        else_branch = two () => (float[K] e) { e = Identity (row) }
    >
}"""


def detector(seed=0):
    w0, w1 = noise(16, 3, 3, 3, seed=seed) / 5, noise(5, 16, 3, 3, seed=seed + 1) / 12
    return ir.from_proto(from_text(DETECTOR, w0=w0, w1=w1))


def images(count=12):
    return from_arrays({"x": noise(count, 3, 8, 8, seed=4)}, "made up")


def test_what_counts_hits_has_no_fixed_shape():
    assert data_dependent_shapes(detector()) == {"picked", "which", "found"}


def test_an_output_of_varying_shape_is_compared_at_what_it_is_made_of():
    assert comparison_outputs(detector()) == ["all", "table", "scores"]


def test_outputs_of_fixed_shape_are_compared_themselves(tmp_path):
    text = DETECTOR.replace("float[K, 4] found, ", "")
    model = ir.from_proto(from_text(text, w0=noise(16, 3, 3, 3), w1=noise(5, 16, 3, 3)))
    assert comparison_outputs(model) == ["all"]


def test_what_a_branch_counts_varies_too():
    model = ir.from_proto(
        from_text(MADE_INSIDE, mask=np.array([True, False, True, True]), row=noise(1))
    )
    assert data_dependent_shapes(model) == {"y"}


def test_exposed_values_are_those_of_the_network():
    model = detector()
    feeds = images().read(np.arange(1))
    actual = run(open_session(with_outputs(model, ["scores", "all"])), feeds)
    assert list(actual) == ["scores", "all"]
    assert np.array_equal(actual["all"], run(open_session(model), feeds)["all"])
    assert [value.name for value in model.graph.outputs] == ["found", "all"]


def test_a_value_that_is_not_there_is_refused():
    with pytest.raises(ConverterError, match="no value 'boxes'"):
        with_outputs(detector(), ["boxes"])


def test_a_layer_behind_the_count_is_kept():
    model = ir.from_proto(from_text(HEADED, w0=noise(8, 4, 3, 3), head=noise(4, 5)))
    first, second = survey(model, {"x": noise(1, 4, 6, 6)})
    assert first.reason is None
    assert second.reason == "the shape of its input depends on the data"


def test_boxes_that_move_are_a_loss():
    estimator = LossEstimator.of(detector(), images(), 1, recognize(detector(), images(), {}))
    assert estimator.loss(detector()).output_error == 0
    assert estimator.loss(detector(seed=3)).output_error > 0.5


def test_a_comparison_says_where_it_was_made():
    comparison = compare_models(
        {"one": detector(), "other": detector(seed=3)},
        Conditions(OnnxRuntime()),
        Resources(),
        images(),
    )
    assert comparison.compared == ("all", "table", "scores")
    assert 0.5 < comparison["other"].rel_output_error < 5
    assert comparison["other"].agreement is None


def test_a_detector_is_converted_within_its_error(tmp_path, monkeypatch):
    by_macs = stopwatch.TimingSettings(
        pause_s=0, race_s=0, min_rounds=8, max_rounds=8, stopwatch=macs_stopwatch
    )
    monkeypatch.setattr(stopwatch, "DEFAULT_SETTINGS", by_macs)
    low_rank = (noise(48, 4, seed=6) @ noise(4, 27, seed=7)).reshape(48, 3, 3, 3) / 10
    path, table = tmp_path / "detector.onnx", tmp_path / "table.json"
    onnx.save(from_text(DETECTOR, w0=low_rank, w1=noise(5, 48, 3, 3, seed=1) / 20), path)
    table.write_text(table_by_macs(path, (1, 3, 8, 8)).to_json())
    images = noise(40, 3, 8, 8, seed=5)
    result = converter.convert(path, max_error=0.3, calib=images, latency=table)
    report = result.report.to_dict()
    assert report["compared"] == ["all", "table", "scores"]
    assert report["met"], report["reason"]
    assert result.plan.chosen()
    assert 0 < report["rel_output_error"] <= 0.3
