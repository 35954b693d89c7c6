"""Torch models and ONNX networks written for one example at a time, or for a batch."""

import numpy as np
import onnx
import pytest
import torch
from networks import from_text, noise
from torch import nn

import converter
from converter.errors import ConverterError
from converter.graph.network import inputs, open_session
from converter.models.export import export
from converter.models.own_batch import takes_batches
from converter.models.source import open_source
from converter.options import Options
from converter.runtime.ort import run


class Net(nn.Module):
    """A convolution, and a head that ``kind`` names."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.conv, self.fc = kind, nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        y = self.conv(x).relu()
        if self.kind == "view":
            return self.fc(y.mean((2, 3)).view(1, 8))
        if self.kind == "squeeze":
            return self.fc(y.mean((2, 3), keepdim=True).squeeze()).softmax(0)
        if self.kind == "noise":
            y = y + torch.randn_like(y)
        return self.fc(y.mean((2, 3)))


def outputs(network, x):
    (found,) = run(open_session(network), {"x": x}).values()
    return found


@pytest.mark.parametrize("kind", ["view", "squeeze"])
def test_a_model_for_one_example_is_exported_for_one(kind):
    model, x = Net(kind).eval(), noise(1, 3, 6, 6)
    network = export(model, {"x": x})
    assert [item.shape for item in inputs(network)] == [(1, 3, 6, 6)]
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs(network, x), expected, atol=1e-5)


def test_a_model_for_any_batch_keeps_it_free():
    network = export(Net("plain").eval(), {"x": noise(1, 3, 6, 6)})
    assert [item.shape for item in inputs(network)] == [(None, 3, 6, 6)]


def test_a_model_for_one_example_is_converted_and_says_so(tmp_path):
    model, x = Net("squeeze").eval(), noise(1, 3, 6, 6)
    result = converter.convert(model, x, form=("conv=channel",), rank=("conv=4",))
    result.save(tmp_path / "out")
    network = onnx.load(tmp_path / "out" / "model.onnx")
    assert network.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    source = open_source(model, x, Options())
    assert any("batch size 1" in note for note in source.notes)


def test_a_model_that_does_not_run_on_the_given_shape_names_it():
    with pytest.raises(ConverterError, match=r"inputs of shape \{'x': \(1, 4, 6, 6\)\}"):
        export(Net("plain").eval(), {"x": noise(1, 4, 6, 6)})


def test_a_model_that_draws_random_numbers_says_so_and_is_sound():
    model, x = Net("noise").eval(), noise(1, 3, 6, 6)
    source = open_source(model, x, Options())
    assert any("draws random numbers" in note for note in source.notes)
    result = converter.convert(model, x, form=("conv=channel",), rank=("conv=4",))
    assert result.report.verified.status.code != "unsound"


MIXING = "g (float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = 0> (x) }"
MERGING = "g (float[N, 4] x) => (float[P, Q] y) { y = Reshape (x, shape) }"
PLAIN = "g (float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = 1> (x) }"


@pytest.mark.parametrize(
    ("text", "weights", "takes"),
    [
        (PLAIN, {}, True),
        (MIXING, {}, False),
        (MERGING, {"shape": np.array([1, 4])}, False),
    ],
)
def test_a_network_that_mixes_examples_is_found(text, weights, takes, tmp_path):
    onnx.save(from_text(text, **weights), tmp_path / "net.onnx")
    source = open_source(tmp_path / "net.onnx", None, Options())
    assert (source.inputs[0].shape[0] is None) is takes
    assert takes_batches(source.network, {"x": noise(2, 4)[: source.inputs[0].shape[0] or 2]})
