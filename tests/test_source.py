"""The input of a conversion: models in memory and in files, data from Python, and refusals."""

import numpy as np
import onnx
import pytest
import torch
from networks import from_text, make_net, noise

from converter.errors import ConverterError
from converter.graph.network import load
from converter.graph.survey import survey
from converter.models.problem import make_problem
from converter.models.source import open_source
from converter.options import Options

X, Y = noise(40, 3, 8, 8), np.arange(40) % 4


@pytest.fixture
def net(tmp_path):
    return make_net(tmp_path / "net.onnx")


def opened(model, **options):
    return open_source(model, None, Options.of(**options))


def test_a_model_in_memory_is_read_as_its_file(net):
    file, memory = opened(net), opened(onnx.load(net))
    protos = [s.original.graph.initializers for s in (file, memory)]
    assert list(protos[0]) == list(protos[1])
    assert file.shapes == memory.shapes and file.inputs == memory.inputs


def test_a_model_in_memory_that_is_not_valid_is_refused(net):
    model = onnx.load(net)
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(ConverterError, match=r"^The onnx\.ModelProto cannot be used: it is not"):
        opened(model)


def test_calibration_evaluation_and_training_data_may_be_python_objects(net):
    loader = torch.utils.data.DataLoader(list(zip(X, Y)), batch_size=8)
    source = opened(net, calib=[X[:30], X[30:]], eval=(X, Y), train=loader, epochs=1)
    for data in (source.calib, source.eval, source.train):
        np.testing.assert_array_equal(data.read(np.arange(40))["x"], X)
    assert source.calib.labels is None
    np.testing.assert_array_equal(source.eval.labels, Y)
    np.testing.assert_array_equal(source.train.labels, Y)


@pytest.mark.parametrize("name", ["calib", "eval", "train"])
def test_data_of_another_shape_is_refused(name, net):
    with pytest.raises(ConverterError, match="3,9,8"):
        opened(net, **{name: noise(4, 3, 9, 8)})


def test_images_of_a_network_that_takes_bytes_stay_bytes(tmp_path):
    text = "g (uint8[N, 8, 8, 3] x) => (float[N, 8, 8, 3] y) { y = Cast <to = 1> (x) }"
    onnx.save(from_text(text), tmp_path / "net.onnx")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=images)
    source = opened(tmp_path / "net.onnx", calib=str(tmp_path / "x.npz"), layout="nhwc")
    found = source.calib.read(np.arange(4))["x"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images)


def problem(net, **options):
    source = opened(net, **options)
    return make_problem(source, survey(load(net), {"x": X[:1]}), 0)


def rows(data):
    return {x.tobytes() for x in data.read(np.arange(data.count))["x"]}


def test_inputs_to_fit_and_to_judge_are_apart(net):
    made = problem(net, calib=X)
    assert (made.fit.count, made.holdout.count, made.calib.count) == (24, 16, 40)
    assert rows(made.fit) | rows(made.holdout) == rows(made.calib)
    assert made.batch_size is None


def test_inputs_beyond_the_samples_judge_if_there_are_enough(net):
    made = problem(net, calib=X, samples=20)
    assert (made.fit.count, made.holdout.count) == (20, 20)
    assert not rows(made.fit) & rows(made.holdout)


def test_without_sample_inputs_random_ones_judge(net):
    made = problem(net)
    assert made.fit is None and made.calib is None and made.holdout.count == 16
