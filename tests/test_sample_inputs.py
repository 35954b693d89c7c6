"""What is checked is checked on the user's inputs; random ones are those a network runs on."""

import numpy as np
import onnx
import pytest
from networks import from_text, make_net, noise

import converter
from converter.errors import ConverterError
from converter.evaluation.check import check_same
from converter.graph.differences import difference
from converter.models.source import open_source, samples
from converter.options import Options

X = noise(40, 3, 8, 8)
LOG = """g (float[N, 3, 8, 8] x) => (float[N, 6, 6, 6] y)
    { a = Log (x) y = Conv (a, w) }"""
SLICED = """g (float[N, 4, 12] x, int64[N] length) => (float[N, 6, T] y)
    { last = ReduceMax <keepdims = 1> (length) a = Slice (x, zero, last, two) y = Conv (a, w) }"""


def write(folder, text, **weights):
    onnx.save(from_text(text, **weights), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.fixture
def log(tmp_path):
    return write(tmp_path, LOG, w=noise(6, 3, 3, 3))


@pytest.fixture
def sliced(tmp_path):
    weights = {"zero": np.array([0]), "two": np.array([2]), "w": noise(6, 4, 5)}
    return write(tmp_path, SLICED, **weights)


def opened(path, **options):
    return open_source(path, None, Options.of(**options))


def test_with_sample_inputs_nothing_random_is_checked(log):
    x = np.exp(X)
    source = opened(log, calib=x)
    found = samples(source, 0)
    assert list(found) == ["real inputs", "one real input"]
    np.testing.assert_array_equal(found["real inputs"]["x"], x[:2])
    assert check_same(source.original, source.network, found) is None


def test_random_inputs_of_a_logarithm_are_positive(log):
    source = opened(log)
    assert list(samples(source, 0)) == ["random inputs", "one random input"]
    assert (samples(source, 0)["random inputs"]["x"] >= 0).all()


def test_a_length_is_as_long_as_the_input(sliced):
    lengths = samples(opened(sliced), 0)["random inputs"]["length"]
    np.testing.assert_array_equal(lengths, [12, 12])


def test_a_network_that_runs_on_no_random_input_needs_others(tmp_path):
    text = "g (float[N, 4] x, int64[3] shape) => (float[P, Q, R] y) { y = Reshape (x, shape) }"
    with pytest.raises(ConverterError, match=r"does not run on random inputs; give .* --calib"):
        opened(write(tmp_path, text))


def test_a_network_with_a_fixed_batch_is_checked_on_one_batch(tmp_path):
    source = opened(make_net(tmp_path / "net.onnx", batch=1), calib=X)
    found = samples(source, 0)
    assert {name: x["x"].shape for name, x in found.items()} == {"real inputs": (1, 3, 8, 8)}


@pytest.mark.parametrize("options", [{"max_error": 0.1}, {"max_drop": 0.01}, {}])
def test_one_sample_input_cannot_judge_a_loss(options, tmp_path):
    net = make_net(tmp_path / "net.onnx")
    with pytest.raises(ConverterError, match="calib holds one"):
        converter.convert(net, calib=X[:1], **options)


def test_few_sample_inputs_are_told(tmp_path):
    net = make_net(tmp_path / "net.onnx")
    assert any("holds one example" in note for note in opened(net, calib=X[:1]).notes)
    assert any("holds 5 examples" in note for note in opened(net, calib=X[:5]).notes)
    assert not opened(net, calib=X).notes


def test_nan_beside_nan_is_no_difference():
    a = np.array([1.0, np.nan, np.inf])
    assert difference(a, a) == 0
    assert np.isnan(difference(a, np.array([1.0, 2.0, np.inf])))
    assert np.isnan(difference(a, np.array([1.0, np.nan, -np.inf])))
    assert not difference(np.array([1.0, 2.0]), np.array([1.0, np.nan])) <= 1
