"""Convolutions over one and three axes, and every padding mode, from torch to ONNX and back."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conv_cases import (
    EXACT_FORMS,
    FEW,
    LITTLE,
    SPLITTING_FORMS,
    compute,
    convolutions,
    difference,
    drawn_chain,
    input_for,
    make_conv,
)
from hypothesis import given
from hypothesis import strategies as st
from networks import from_text, noise
from torch import nn

from converter.decomposition.approximation import estimate_errors, relative_error
from converter.decomposition.conv import PADDING_MODES, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import fit_rank, full_rank, refusal, skeleton
from converter.decomposition.forms import FORMS
from converter.decomposition.metric import Metric
from converter.decomposition.ranks import all_ranks, parse_rank
from converter.decomposition.refit import refit
from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import count_macs, survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.reconstruction.moments import choose_positions, cut_patches
from converter.runtime.ort import run

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {1: (17,), 2: (11, 9), 3: (7, 6, 8)}


def network_over(axes, mode):
    """Convolutions with the usual geometries, one behind the other, and a norm."""
    conv = CONVOLUTIONS[axes]
    torch.manual_seed(PADDING_MODES.index(mode))
    layers = nn.Sequential(
        conv(3, 8, 3, padding=1, padding_mode=mode),
        NORMS[axes](8),
        nn.ReLU(),
        conv(8, 6, 4, stride=2, padding="valid", bias=False),
        nn.ReLU(),
        conv(6, 8, 2, padding="same", padding_mode=mode, groups=2),
        conv(8, 4, 3, padding=2, dilation=2, padding_mode="zeros"),
    )
    with torch.no_grad():
        for tensor in (layers[1].weight, layers[1].bias, layers[1].running_mean):
            tensor.uniform_(0.5, 1.5)
    return layers.eval()


class Modes(nn.Module):
    """The same convolutions in every padding mode, each with an output of its own."""

    def __init__(self, axes):
        super().__init__()
        self.modes = nn.ModuleDict({mode: network_over(axes, mode) for mode in PADDING_MODES})

    def forward(self, x):
        return [network(x) for network in self.modes.values()]


@pytest.fixture(scope="module", params=[1, 2, 3])
def exported(request):
    """Model, graph, layers and input for each number of axes."""
    model, x = Modes(request.param).eval(), noise(2, 3, *SIZES[request.param])
    network = torch_export.export(model, {"x": x})
    layers = torch_network.match(model, survey(network, {"x": x}), {"x": x})
    assert [layer.reason for layer in layers] == [None] * 4 * len(PADDING_MODES)
    return model, network, layers, x


def outputs(model, network, layers, x, chains):
    """What the rewritten graph, the torch copy and the model compute with some chains."""
    by_output = {la.output: (la.name, chains[la.name]) for la in layers if la.name in chains}
    rewritten = rewrite(network, by_output)
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    found = run(open_session(rewritten), {"x": x}).values()
    with torch.no_grad():
        copied = torch_network.apply(model, layers, chains)(torch.from_numpy(x))
        original = model(torch.from_numpy(x))
    return zip(found, (y.numpy() for y in copied), (y.numpy() for y in original), strict=True)


@pytest.mark.parametrize("name", SPLITTING_FORMS)
def test_the_torch_copy_is_the_twin_of_the_graph(name, exported):
    model, network, layers, x = exported
    form = FORMS[name]
    convs = {la.name: la.conv for la in layers if refusal(form, la.conv) is None}
    assert len(convs) == (0 if name == "spatial" and x.ndim == 3 else len(layers))
    chains = {layer: drawn_chain(conv, name, 0.4) for layer, conv in convs.items()}
    for found, copied, original in outputs(model, network, layers, x, chains):
        assert difference(found, copied) < 1e-4
        assert not chains or difference(found, original) > 0.1


@pytest.mark.parametrize("name", EXACT_FORMS)
def test_at_full_rank_nothing_changes(name, exported):
    model, network, layers, x = exported
    form = FORMS[name]
    chains = {
        la.name: decompose(la.conv, form, full_rank(form, la.conv), LITTLE)
        for la in layers
        if la.name.startswith("modes.circular.") and refusal(form, la.conv) is None
    }
    assert len(chains) == (0 if name == "spatial" and x.ndim == 3 else 4)
    for found, copied, original in outputs(model, network, layers, x, chains):
        assert difference(found, original) < 1e-4
        assert difference(copied, original) < 1e-4


def test_a_convolution_over_one_axis_ships_as_an_image_of_height_one():
    text = "g (float[N, 4, L] x) => (float[N, 6, P] y) { y = Conv <pads = [2, 1]> (x, w) }"
    model = ir.from_proto(from_text(text, w=noise(6, 4, 5)))
    (layer,) = survey(model, {"x": noise(1, 4, 9)})
    chain = decompose(layer.conv, FORMS["flattened"], (4,))
    rewritten = rewrite(model, {"y": ("w", chain)})
    kinds = [node.op_type for node in rewritten.graph]
    assert kinds == ["Reshape", "Conv", "Conv", "Conv", "Reshape"]
    shapes = [n.inputs[1].shape for n in rewritten.graph if n.op_type == "Conv"]
    assert shapes == [(4, 4, 1, 1), (4, 1, 1, 5), (6, 4, 1, 1)]
    for length in (9, 30):
        x = noise(3, 4, length)
        (found,) = run(open_session(rewritten), {"x": x}).values()
        assert difference(found, compute(chain.steps, x)) < 1e-5


@pytest.mark.parametrize("k", [(3,), (3, 2, 4)])
def test_layers_over_one_and_three_axes_are_surveyed(k):
    sizes, free = ", ".join("6" for _ in k), ", ".join("PQR"[: len(k)])
    text = f"g (float[N, 4, {sizes}] x) => (float[N, 6, {free}] y) {{ y = Conv (x, w) }}"
    model = ir.from_proto(from_text(text, w=noise(6, 4, *k)))
    feeds = {"x": noise(1, 4, *[6] * len(k))}
    (layer,) = survey(model, feeds)
    assert layer.reason is None
    assert layer.conv.k == k
    assert layer.macs == 6 * 4 * np.prod([n * (7 - n) for n in k]) == count_macs(model, feeds)


@FEW
@given(conv=convolutions(axes=3, smallest=2))
def test_spatial_over_three_axes_is_exact_at_full_rank(conv):
    chain = decompose(conv, FORMS["spatial"], full_rank(FORMS["spatial"], conv))
    x = input_for(conv)
    assert relative_error(conv, chain) < 1e-5
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5


@FEW
@given(conv=convolutions(axes=3, smallest=2), data=st.data())
def test_the_estimate_of_spatial_over_three_axes_is_a_bound(conv, data):
    form = FORMS["spatial"]
    unit = conv.groups
    rank = tuple(unit * data.draw(st.integers(1, r // unit)) for r in full_rank(form, conv))
    chain, bones = decompose(conv, form, rank, LITTLE), skeleton(conv, form, rank)
    assert [s.kernel.shape for s in bones.steps] == [s.kernel.shape for s in chain.steps]
    bound, error = estimate_errors(conv, form)(rank), relative_error(conv, chain)
    assert error <= bound + 1e-6
    assert bound <= np.sqrt(2) * error + 1e-6


def test_the_error_of_spatial_over_three_axes_never_rises_with_its_ranks():
    conv, form = make_conv((6, 4, 3, 2, 3)), FORMS["spatial"]
    full = full_rank(form, conv)
    for axis in range(2):
        ranks = [tuple(r if a == axis else full[a] for a in range(2)) for r in range(1, full[axis])]
        errors = [relative_error(conv, decompose(conv, form, rank)) for rank in ranks]
        assert errors == sorted(errors, reverse=True)


def test_spatial_over_three_axes_is_one_filter_an_axis():
    conv = make_conv((8, 4, 3, 5, 2), stride=(1, 2, 3), padding=((1, 0), (2, 2), (0, 1)))
    form = FORMS["spatial"]
    rank = parse_rank("0.5", form, conv)
    assert rank == (4, 4)
    steps = decompose(conv, form, rank).steps
    assert [s.kernel.shape for s in steps] == [(4, 4, 3, 1, 1), (4, 4, 1, 5, 1), (8, 4, 1, 1, 2)]
    assert [s.stride for s in steps] == [(1, 1, 1), (1, 2, 1), (1, 1, 3)]
    assert parse_rank("3,0.25", form, conv) == (3, 2)
    assert full_rank(form, conv) in all_ranks(form, conv, 4)


def test_spatial_over_two_of_three_axes_has_one_rank():
    conv = make_conv((8, 4, 3, 1, 5))
    assert full_rank(FORMS["spatial"], conv) == (12,)
    chain = decompose(conv, FORMS["spatial"], (12,))
    assert [s.kernel.shape for s in chain.steps] == [(12, 4, 3, 1, 1), (8, 12, 1, 1, 5)]
    assert relative_error(conv, chain) < 1e-5
    with pytest.raises(ConverterError, match="has 2 parts; spatial takes 1"):
        parse_rank("4,4", FORMS["spatial"], conv)


@pytest.mark.parametrize("k", [(3,), (1, 3, 1)])
def test_spatial_is_refused_over_one_axis(k):
    with pytest.raises(ConverterError, match="does not extend over two axes"):
        decompose(make_conv((8, 4, *k)), FORMS["spatial"], (1,))


@pytest.mark.parametrize("name", [n for n in SPLITTING_FORMS if n != "channel"])
@pytest.mark.parametrize("k", [(1,), (1, 1, 1)])
def test_a_window_of_one_point_is_refused(name, k):
    with pytest.raises(ConverterError, match=f"{name} cannot stand in"):
        decompose(make_conv((8, 4, *k)), FORMS[name], (1,))


@pytest.mark.parametrize("name", ["flattened", "lvh"])
def test_a_volume_is_flattened_into_one_filter_an_axis(name):
    rng = np.random.default_rng(0)
    out, lateral, *spatial = (rng.standard_normal((n, 2)) for n in (6, 4, 3, 2, 5))
    kernel = np.einsum("or,ir,dr,hr,wr->oidhw", out, lateral, *spatial)
    if name == "lvh":
        kernel = np.einsum(
            "oi,od,oh,ow->oidhw", *(rng.standard_normal((6, n)) for n in (4, 3, 2, 5))
        )
    conv = Conv(kernel, None, (1, 1, 1), ((0, 0),) * 3, (1, 1, 1))
    chain = decompose(conv, FORMS[name], (2,) if name == "flattened" else (1,))
    assert len(chain.steps) == (5 if name == "flattened" else 4)
    assert relative_error(conv, chain) < 1e-4


@FEW
@given(conv=convolutions(axes=1) | convolutions() | convolutions(axes=3), seed=st.integers(0, 9))
def test_patches_give_the_responses_of_the_convolution(conv, seed):
    x = input_for(conv).astype(np.float32)
    plain = Conv(conv.kernel, None, conv.stride, conv.padding, conv.dilation, groups=conv.groups)
    at = choose_positions(conv, x.shape, 20, np.random.default_rng(seed))
    patches = cut_patches(x, conv, at)
    there = len(x) * math.prod(conv.output_size(x.shape[2:]))
    assert patches.shape == (conv.groups, min(20, there), conv.kernel[0].size)
    filters = conv.kernel.reshape(conv.groups, -1, conv.kernel[0].size)
    found = patches @ filters.swapaxes(1, 2)  # (g, P, O/g)
    wanted = at.read(compute([plain], x.astype(np.float64)))  # (P, O)
    assert np.abs(np.concatenate(list(found), axis=1) - wanted).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "k"),
    [(n, k) for n in SPLITTING_FORMS for k in ((5,), (3, 2, 3)) if (n, k) != ("spatial", (5,))],
)
def test_the_last_step_is_solved_again_over_any_axes(name, k):
    conv, form = make_conv((8, 4, *k), padding=((1, 1),) * len(k)), FORMS[name]
    inputs = noise(9, 4, *[8] * len(k)).cumsum(1)
    at = choose_positions(conv, inputs.shape, 500, np.random.default_rng(0))
    (patches,) = cut_patches(inputs, conv, at).astype(np.float64)
    metrics = [Metric.of(patches.T @ patches / len(patches), conv.I)]
    rank = fit_rank(tuple(r // 3 for r in full_rank(form, conv)), form, conv)
    chain = decompose(conv, form, rank)
    before = relative_error(conv, chain, metrics)
    assert relative_error(conv, refit(conv, chain, metrics), metrics) < 0.999 * before
