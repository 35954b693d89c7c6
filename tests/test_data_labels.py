"""Labels as data sets have them: read as classes, left out, or refused before a search."""

import numpy as np
import pytest
from networks import make_net, noise

from converter.data.data import from_arrays
from converter.data.labels import as_classes, misfit, name_class
from converter.errors import ConverterError
from converter.models.source import open_source
from converter.options import Options

X, Y = noise(40, 3, 8, 8), np.arange(40) % 4


@pytest.mark.parametrize(
    "labels",
    [Y, Y[:, None], Y.astype(float), Y.astype(np.uint8), np.eye(4)[Y]],
    ids=["i", "N1", "f", "u1", "one-hot"],
)
def test_whole_numbers_are_classes(labels):
    np.testing.assert_array_equal(as_classes(labels), Y)
    data = from_arrays({"x": X, "y": labels}, "numbers").with_classes()
    np.testing.assert_array_equal(data.labels, Y)
    np.testing.assert_array_equal(data.take(np.array([5, 2])).batch(np.arange(2))[1], [1, 2])


def test_booleans_are_two_classes():
    assert as_classes(np.array([True, False])).tolist() == [1, 0]


@pytest.mark.parametrize("labels", [[0.5, 1], [np.nan, 1], [[0, 1], [1, 1]], [[0.0, 2.0], [1, 0]]])
def test_other_numbers_are_no_classes(labels):
    assert as_classes(np.array(labels)) is None


def test_labels_stay_as_they_are_for_training():
    data = from_arrays({"x": X, "y": Y[:, None].astype(np.float32)}, "numbers")
    _, told = data.batch(np.arange(4))
    assert told.shape == (4, 1) and told.dtype == np.float32


def test_255_names_a_class_only_of_a_large_network():
    labels = np.array([-1, 3, 255])
    assert name_class(labels, 10).tolist() == [False, True, False]
    assert name_class(labels, 1000).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 2, 3, 4], "run from 1 to 4; the network has 4 classes, 0 to 3. Subtract 1"),
        ([0, 7], "run from 0 to 7; the network has 4 classes"),
        ([-1, -1], "none of them names a class"),
    ],
)
def test_labels_of_other_classes_are_told(labels, words):
    assert words in misfit(np.array(labels), 4, "numbers")


def test_signs_are_no_labels_of_two_classes():
    assert "Give 0 for -1" in misfit(np.array([-1, 1]), 2, "numbers")


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0, 3], [255, 0], [-1, 1]])
def test_labels_of_the_network_pass(labels):
    assert misfit(np.array(labels), 4, "numbers") is None


@pytest.fixture
def net(tmp_path):
    return make_net(tmp_path / "net.onnx")


def opened(net, **options):
    return open_source(net, None, Options.of(**options))


@pytest.mark.parametrize("name", ["calib", "eval"])
def test_labels_from_1_on_are_refused(name, net):
    with pytest.raises(ConverterError, match="run from 1 to 4; the network has 4 classes"):
        opened(net, **{name: (X, Y + 1)})


@pytest.mark.parametrize("ignored", [-1, 255])
def test_examples_without_a_class_are_left_out_of_scores(ignored, net):
    labels = np.where(np.arange(40) < 3, ignored, Y)
    source = opened(net, eval=(X, labels), calib=(X, labels))
    np.testing.assert_array_equal(source.eval.labels, Y[3:])
    np.testing.assert_array_equal(source.eval.read(np.arange(37))["x"], X[3:])
    assert source.calib.count == 40 and source.calib.labels is None
    assert any("3 of 40 examples" in note for note in source.notes)


def test_another_task_may_have_more_labels_than_outputs(net):
    source = opened(net, eval=(X, np.arange(40)), task="embed")
    np.testing.assert_array_equal(source.eval.labels, np.arange(40))
