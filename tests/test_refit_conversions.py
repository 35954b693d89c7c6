"""Conversions whose layers were refitted: torch model and graph agree, biases are saved."""

import pytest
import torch
from conv_cases import difference
from networks import noise, observe
from refit_networks import (
    smooth,
)
from torch import nn

import converter

HALVED = {
    "form": ("channel", "fc=channel"),
    "rank": ("0.5",),
    "only": ("conv0", "conv1", "conv2", "fc"),
}


class Normed(nn.Module):
    """BatchNorm behind convolutions without a bias, a shortcut, pooling and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 12, bias=False)

    def forward(self, x):
        x = torch.relu(self.norm0(self.conv0(x)))
        x = torch.relu(self.norm1(self.conv1(x)) + x)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def normed():
    """A model with uneven norms, one of whose channels is dead, and its conversion."""
    torch.manual_seed(0)
    model = Normed()
    for norm in (model.norm0, model.norm1):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.3, 1.5)
    with torch.no_grad():
        model.norm0.weight[3] = 0
    x = smooth((3, 8, 8), 64)
    result = converter.convert(model.eval(), x[:1], options=converter.Options.of(**HALVED), calib=x)
    assert set(result.plan.chosen()) == {"conv0", "conv1", "conv2", "fc"}
    return model, result, x


def converted_network(result):
    return result.report.verified.converted.network


def outputs_of(network, x):
    (value,), (output,) = network.graph.inputs, network.graph.outputs
    return observe(network, [output.name], {value.name: x})[output.name]


def output_of(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def test_the_torch_copy_is_the_twin_of_the_graph(normed):
    model, result, x = normed
    assert result.report.met
    found = outputs_of(converted_network(result), x)
    assert difference(found, output_of(result.model, x)) < 1e-4
    assert difference(found, output_of(model, x)) > 1e-3
    kinds = [type(module) for module in result.model.modules()]
    assert kinds.count(nn.BatchNorm2d) == 2
    for name in ("conv0", "conv1", "conv2", "fc"):
        assert result.model.get_submodule(name)[-1].bias is not None


def test_a_new_bias_is_saved_and_loaded(normed, tmp_path):
    _, result, x = normed
    result.save(tmp_path / "out")
    loaded = converter.load(tmp_path / "out")
    assert difference(output_of(loaded, x), output_of(result.model, x)) < 1e-5


def test_a_factory_is_loaded_with_a_new_bias(workplace):
    x = noise(32, 3, 8, 8)
    config = converter.Options.of(form=("channel",), rank=("4",), input_shape=("1,3,8,8",))
    result = converter.convert("toy:build", options=config, calib=x)
    result.save(workplace / "out")
    loaded = converter.load(workplace / "out")
    saved, kept = (m.get_submodule("conv2")[-1].bias for m in (loaded, result.model))
    assert torch.equal(saved, kept)
    assert saved.abs().max() > 0
    assert difference(output_of(loaded, x), output_of(result.model, x)) < 1e-6


def test_the_network_is_nearer_to_the_original_than_without(normed):
    model, result, x = normed
    config = converter.Options.of(**HALVED, correct=False)
    blind = converter.convert(model, x[:1], options=config, calib=x)
    wanted = outputs_of(result.original, x)
    after, before = (
        difference(outputs_of(converted_network(r), x), wanted) for r in (result, blind)
    )
    assert after < before
    rows = [row for row in result.report.layers if row.form]
    assert len(rows) == 4
    assert all(0 < row.rel_error < 1 for row in rows)
