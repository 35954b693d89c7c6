"""Comparisons of files: figures by name, held against the first, with a verdict."""

import onnx
import pytest
from networks import make_net

import converter
from converter import ConverterError
from converter.evaluation.comparison import verdict
from converter.timing.race import Interval

pytestmark = pytest.mark.usefixtures("place")


def test_three_files_are_held_against_the_first(place, from_onnx, tmp_path):
    other = make_net(tmp_path / "other.onnx", (3, 64, 64, 16), seed=9)
    paths = (place / "net.onnx", from_onnx.folder / "model.onnx", other)
    found = converter.compare(*paths, data="eval.npz")
    assert list(found.networks) == list(map(str, paths))
    assert [figures.name for figures in found.networks.values()] == list(found.networks)
    first, second, third = (found[str(path)] for path in paths)
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
