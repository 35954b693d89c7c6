"""Linear layers: convolutions over no axes, split in two products, in torch and in ONNX."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conv_cases import FEW, SPLITTING_FORMS, difference
from hypothesis import given
from hypothesis import strategies as st
from networks import noise
from torch import nn

from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import refusal, skeleton
from converter.decomposition.forms import FORMS
from converter.decomposition.metric import Metric
from converter.decomposition.refit import refit
from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.modules import read_module, to_modules
from converter.reconstruction.moments import choose_positions, cut_patches
from converter.runtime.ort import run

CHANNEL = FORMS["channel"]


def linear(O=6, I=8, bias=True, seed=0):
    return Conv(noise(O, I, seed=seed), noise(O, seed=seed + 1) if bias else None, (), (), ())


@FEW
@given(O=st.integers(1, 6), I=st.integers(1, 6), bias=st.booleans())
def test_full_rank_reproduces_a_linear_layer(O, I, bias):
    conv = linear(O, I, bias)
    chain = decompose(conv, CHANNEL, (min(O, I),))
    assert [step.kernel.shape for step in chain.steps] == [(min(O, I), I), (O, min(O, I))]
    assert relative_error(conv, chain) < 1e-5
    x = noise(5, I)
    with torch.no_grad():
        found = to_modules(chain)(torch.from_numpy(x)).numpy()
    wanted = x @ conv.kernel.T + (conv.bias if bias else 0)
    assert np.allclose(found, wanted, atol=1e-4)


def test_the_error_falls_to_zero_with_the_rank():
    conv = linear()
    errors = [relative_error(conv, decompose(conv, CHANNEL, (rank,))) for rank in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.5 > 1e-5 > errors[-1]


def test_it_costs_what_its_products_cost():
    conv = linear()
    chain, bones = decompose(conv, CHANNEL, (3,)), skeleton(conv, CHANNEL, (3,))
    assert conv.macs((5,)) == 5 * 48
    assert chain.macs((5,)) == bones.macs((5,)) == 5 * (24 + 18)
    assert chain.params == bones.params == 24 + 18 + 6


@pytest.mark.parametrize("name", [name for name in SPLITTING_FORMS if name != "channel"])
def test_other_forms_are_refused(name):
    assert refusal(FORMS[name], linear())
    with pytest.raises(ConverterError, match=r"a linear layer has nothing|not extend over two"):
        decompose(linear(), FORMS[name], (1,))


def test_it_does_not_stand_beside_convolutions():
    with pytest.raises(ConverterError, match="same number of spatial axes"):
        Chain((linear(bias=False), Conv(noise(6, 6, 1), None, (1,), ((0, 0),), (1,))))


@pytest.mark.parametrize("shape", [(50, 8), (10, 5, 8)])
def test_what_it_sees_are_vectors_of_the_last_axis(shape):
    x = noise(*shape)
    at = choose_positions(linear(), x.shape, 40, np.random.default_rng(0))
    found = cut_patches(x, linear(), at)
    assert found.shape == (1, 40, 8)
    assert np.array_equal(found[0], at.read(x))
    assert np.abs(found[0][:, None] - x.reshape(-1, 8)).max(-1).min(1).max() == 0


def test_the_last_step_is_solved_again():
    conv = linear()
    patches = noise(90, 8).cumsum(1).astype(np.float64)
    metrics = [Metric.of(patches.T @ patches / 90, conv.I)]
    chain = decompose(conv, CHANNEL, (3,))
    before = relative_error(conv, chain, metrics)
    assert relative_error(conv, refit(conv, chain, metrics), metrics) < 0.99 * before


class Mixer(nn.Module):
    """Linear layers on vectors and on sequences, one called twice, one a subclass."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.bare = nn.Linear(8, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.twice(torch.relu(self.twice(self.mix(x))))
        x = self.attention(x, x, x)[0].amax(1)
        return self.head(torch.relu(self.norm(self.bare(x))))


@pytest.fixture(scope="module")
def mixer():
    torch.manual_seed(0)
    model, x = Mixer().eval(), noise(2, 5, 8)
    network = torch_export.export(model, {"x": x})
    layers = torch_network.match(model, survey(network, {"x": x}), {"x": x})
    return model, network, layers, x


@pytest.mark.parametrize("rank", [2, 4])
def test_the_torch_copy_is_the_twin_of_the_graph(mixer, rank):
    model, network, layers, x = mixer
    free = [layer for layer in layers if layer.reason is None]
    assert {layer.name for layer in free} == {"mix", "bare", "head"}
    chains = {layer.name: decompose(layer.conv, CHANNEL, (rank,)) for layer in free}
    rewritten = rewrite(network, {la.output: (la.name, chains[la.name]) for la in free})
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    module = torch_network.apply(model, layers, chains).eval()
    for name in chains:
        assert [type(m) for m in module.get_submodule(name)] == [nn.Linear, nn.Linear]
    (found,) = run(open_session(rewritten), {"x": x}).values()
    with torch.no_grad():
        wanted, original = (m(torch.from_numpy(x)).numpy() for m in (module, model))
    assert difference(found, wanted) < 1e-4
    assert difference(found, original) > 1e-3


def test_what_cannot_be_replaced_is_kept(mixer):
    reasons = {layer.name: layer.reason for layer in mixer[2] if layer.reason}
    assert len(reasons) >= 3
    shared = "its weight is shared by 2 layers"
    assert list(reasons.values()).count(shared) == 2
    assert "NonDynamicallyQuantizableLinear, not" in reasons["attention.out_proj"]


def test_a_module_read_back_is_the_layer():
    conv = linear()
    (module,) = to_modules(Chain((conv,)))
    assert read_module(module).kernel.tobytes() == conv.kernel.tobytes()
    assert read_module(module).bias.tobytes() == conv.bias.tobytes()
