"""Torch models matched with their graphs, and rewritten just as these are."""

import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from branches import FEEDS, Branches, X, make_branches
from conv_cases import (
    EXACT_FORMS,
    LITTLE,
    SPLITTING_FORMS,
    at_full_rank,
    difference,
    drawn_chain,
    rank_at,
)
from torch import nn

from converter.decomposition.decompose import decompose
from converter.decomposition.form import full_rank
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.match import AS_ONNX


class Standardised(nn.Conv2d):
    """A convolution that changes its weight on the way."""

    def forward(self, x):
        """Convolve with the weight less its mean per filter."""
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, centred, self.bias)


class Odd(nn.Module):
    """One plain convolution among those that cannot be replaced."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.plain = nn.Conv2d(4, 4, 3)
        self.shared = nn.Conv2d(4, 4, 1)
        self.loose = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        self.centred = Standardised(4, 4, 3)
        self.upward = nn.ConvTranspose2d(4, 4, 3)
        self.line = nn.Conv1d(4, 4, 3)

    def forward(self, x):
        """Call the shared layer twice, then each of the others."""
        x = self.shared(self.shared(x))
        two = (self.plain(x), F.conv2d(x, self.loose), self.normed(x), self.centred(x))
        return two, [self.upward(x), self.line(x.flatten(2))]


@pytest.fixture(scope="module")
def model():
    return make_branches()


@pytest.fixture(scope="module")
def network(model):
    return torch_export.export(model, FEEDS)


@pytest.fixture(scope="module")
def layers(model, network):
    return torch_network.match(model, survey(network, FEEDS), FEEDS)


@pytest.fixture(scope="module")
def odd():
    torch.manual_seed(0)
    return Odd().eval()


@pytest.fixture(scope="module")
def odd_layers(odd):
    network = torch_export.export(odd, FEEDS)
    return {layer.name: layer for layer in torch_network.match(odd, survey(network, FEEDS), FEEDS)}


def torch_outputs(model, x=X):
    with torch.no_grad():
        return [t.numpy() for t in torch_export.flat_outputs(model(torch.from_numpy(x)))]


def onnx_outputs(network, x=X):
    return list(onnx_network.run(onnx_network.open_session(network), {"x": x}).values())


def chains_for(layers, name, share):
    """Chains of form ``name`` at a share of the full rank: solved where that is exact, else drawn.

    Where a norm has a scale of zero, only a solved chain gives zeros.
    """
    return {
        layer.name: solved_chain(layer.conv, name, share)
        if (share == 1 and name in EXACT_FORMS) or layer.name == "branches.dead.0"
        else drawn_chain(layer.conv, name, share)
        for layer in layers
    }


def solved_chain(conv, name, share):
    return decompose(conv, FORMS[name], rank_at(conv, name, share), LITTLE)


def rewritten_graph(network, layers, chains):
    by_output = {layer.output: (layer.name, chains[layer.name]) for layer in layers}
    return rewrite(network, by_output)


def test_every_plain_convolution_is_matched(model, layers):
    assert {layer.name for layer in layers} == {f"branches.{n}.0" for n in model.branches}
    assert [layer.reason for layer in layers] == [None] * 12


def test_norms_are_folded_in_the_graph_and_kept_in_the_copy(model, network, layers):
    assert "BatchNormalization" not in {node.op_type for node in network.graph}
    chains = chains_for(layers, "channel", 1)
    rewritten = torch_network.apply(model, layers, chains)
    for name in ("normed", "dead"):
        assert type(rewritten.branches[name][1]) is nn.BatchNorm2d
        assert rewritten.branches[name][1].training


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@pytest.mark.parametrize("share", [0.3, 1])
def test_the_copy_computes_what_the_rewritten_graph_computes(name, share, model, network, layers):
    chains = chains_for(layers, name, share)
    graph = rewritten_graph(network, layers, chains)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    module = torch_network.apply(model, layers, chains).eval()
    for ours, theirs in zip(torch_outputs(module), onnx_outputs(graph), strict=True):
        assert difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("name", EXACT_FORMS)
def test_at_full_rank_copy_and_graph_compute_what_the_model_does(name, model, network, layers):
    chains = chains_for(layers, name, 1)
    module = torch_network.apply(model, layers, chains).eval()
    graph = rewritten_graph(network, layers, chains)
    wanted = torch_outputs(copy.deepcopy(model).eval())
    for found in (torch_outputs(module), onnx_outputs(graph)):
        for ours, theirs in zip(found, wanted, strict=True):
            assert difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_the_copy_is_made_of_torch_modules_only(name, model, layers):
    rewritten = torch_network.apply(model, layers, chains_for(layers, name, 0.3))
    kinds = {type(module) for module in rewritten.modules()} - {Branches}
    assert all(kind.__module__.startswith("torch.nn.modules") for kind in kinds)


def test_rewriting_leaves_the_model_as_it_is(model, layers):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rewritten = torch_network.apply(model, layers, chains_for(layers, "separable", 0.3))
    with torch.no_grad():
        for parameter in rewritten.parameters():
            parameter.zero_()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert type(model.branches["plain"][0]) is nn.Conv2d


def test_a_layer_without_a_chain_is_left_alone(model, layers):
    (only,) = (layer for layer in layers if layer.name == "branches.plain.0")
    rewritten = torch_network.apply(model, layers, chains_for([only], "spatial", 0.5))
    assert type(rewritten.branches["plain"][0]) is nn.Sequential
    assert type(rewritten.branches["strided"][0]) is nn.Conv2d


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_a_rebuilt_model_takes_the_weights_of_the_rewritten_one(name, model, layers):
    form = FORMS[name]
    ranks = {layer.name: rank_at(layer.conv, name, 0.5) for layer in layers}
    chains = {layer.name: drawn_chain(layer.conv, name, 0.5) for layer in layers}
    wanted = torch_network.apply(model, layers, chains).eval()
    shapes = {n: (form, rank) for n, rank in ranks.items()}
    rebuilt = torch_network.rebuild(model, shapes, wanted.state_dict()).eval()
    rebuilt.load_state_dict(wanted.state_dict(), strict=True)
    for ours, theirs in zip(torch_outputs(rebuilt), torch_outputs(wanted), strict=True):
        assert difference(ours, theirs) < 1e-6


def test_a_bias_that_the_model_did_not_have_is_added_and_rebuilt(model, layers):
    form, rng = FORMS["channel"], np.random.default_rng(0)
    chains, shifts = {}, {}
    for layer in layers:
        old = np.zeros(layer.conv.O) if layer.conv.bias is None else layer.conv.bias
        shifts[layer.name] = rng.standard_normal(layer.conv.O)
        bias = (old + shifts[layer.name]).astype(np.float32)
        chains[layer.name] = at_full_rank(layer.conv, "channel").with_bias(bias)
    wanted = torch_network.apply(model, layers, chains).eval()
    names = [layer.name for layer in layers]
    assert any(model.get_submodule(name).bias is None for name in names)
    assert all(wanted.get_submodule(name)[-1].bias is not None for name in names)
    shapes = {layer.name: (form, full_rank(form, layer.conv)) for layer in layers}
    rebuilt = torch_network.rebuild(model, shapes, wanted.state_dict()).eval()
    rebuilt.load_state_dict(wanted.state_dict(), strict=True)
    for ours, theirs in zip(torch_outputs(rebuilt), torch_outputs(wanted), strict=True):
        assert difference(ours, theirs) < 1e-6


def test_a_layer_whose_module_has_another_kernel_is_kept(model, layers):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.branches["plain"][0].weight[0, 0, 0, 0] += 1
    reasons = {
        la.name: la.reason for la in torch_network.match(changed, layers, FEEDS) if la.reason
    }
    assert reasons == {
        "branches.plain.0": "its module's kernel is not the exported one up to a scale per "
        "output channel"
    }


def test_a_layer_whose_module_has_another_shape_is_kept(model, layers):
    changed = copy.deepcopy(model)
    changed.branches["plain"][0] = nn.Conv2d(4, 6, 5)
    changed.branches["same"][0] = nn.Identity()
    del changed.branches["dead"]
    reasons = {
        la.name: la.reason for la in torch_network.match(changed, layers, FEEDS) if la.reason
    }
    assert "another shape than the exported one" in reasons["branches.plain.0"]
    assert (
        reasons["branches.same.0"] == "its module is a Identity, not a plain convolution" + AS_ONNX
    )
    assert "is no convolution module of the model" in reasons["branches.dead.0"]
    assert len(reasons) == 3


def test_only_the_plain_convolutions_of_an_odd_model_can_be_replaced(odd_layers):
    found = [name for name, layer in odd_layers.items() if layer.reason is None]
    assert found == ["plain", "upward", "line"]
    assert len(odd_layers) == 8


def test_a_convolution_called_as_a_function_is_kept(odd_layers):
    reason = "it is no convolution module of the model, but called as a function" + AS_ONNX
    assert odd_layers["loose"].reason == reason


def test_a_module_called_twice_is_kept_twice(odd_layers):
    shared = [layer for layer in odd_layers.values() if layer.weight == "shared.weight"]
    assert [layer.reason for layer in shared] == ["its weight is shared by 2 layers"] * 2


def test_weights_that_are_computed_are_kept(odd_layers):
    named = {"plain", "loose", "upward", "line"}
    computed = [
        layer
        for layer in odd_layers.values()
        if layer.name not in named and layer.weight != "shared.weight"
    ]
    assert len(computed) == 2
    assert all("called as a function" in layer.reason for layer in computed)


def test_an_odd_model_is_rewritten_where_it_can_be(odd, odd_layers):
    layer = odd_layers["plain"]
    chains = {"plain": at_full_rank(layer.conv, "tucker")}
    rewritten = torch_network.apply(odd, list(odd_layers.values()), chains)
    assert type(rewritten.plain) is nn.Sequential
    for ours, theirs in zip(torch_outputs(rewritten), torch_outputs(odd), strict=True):
        assert difference(ours, theirs) < 1e-4


def test_a_model_that_fails_on_one_example_is_refused(model, layers):
    class Pairs(Branches):
        def forward(self, x):
            if len(x) < 2:
                raise ValueError("give me two")
            return super().forward(x)

    with pytest.raises(ConverterError, match=r"\(1, 4, 9, 8\)\}: ValueError: give me two"):
        torch_network.match(Pairs().eval(), layers, FEEDS)


def test_a_bias_that_a_dense_module_was_given_is_rebuilt():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    biased = copy.deepcopy(plain)
    biased[0].bias = nn.Parameter(torch.arange(4.0))
    again = torch_network.rebuild(plain, {}, set(biased.state_dict()))
    again.load_state_dict(biased.state_dict())
    x = torch.ones(2, 3, 8, 8)
    assert torch.equal(again(x), biased(x))
    assert plain[0].bias is None
