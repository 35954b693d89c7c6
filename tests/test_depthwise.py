"""Depthwise convolutions: split in their 1-D filters where that pays, kept with the reason."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conv_cases import SPLITTING_FORMS, at_full_rank, compute, difference, input_for, make_conv
from networks import from_text
from torch import nn

from converter.decomposition.approximation import estimate_errors, relative_error
from converter.decomposition.conv import Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import refusal, skeleton
from converter.decomposition.forms import FORMS
from converter.decomposition.metric import Metric
from converter.decomposition.ranks import all_ranks
from converter.decomposition.refit import refit
from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.options import Options
from converter.runtime.ort import run
from converter.search.manual import make_plan

RANKS = {"lvh": (1,), "spatial": (8,)}


def depthwise(k=(5, 3), widening=1, rank_one=False, **geometry):
    """A depthwise convolution of 8 channels; each filter of rank 1 if told so."""
    conv = make_conv((8 * widening, 1, *k), groups=8, **geometry)
    if not rank_one:
        return conv
    rng = np.random.default_rng(1)
    vertical, horizontal = (rng.standard_normal((conv.O, n)) for n in k)
    kernel = np.einsum("oh,ow->ohw", vertical, horizontal)[:, None]
    return Conv(kernel, conv.bias, conv.stride, conv.padding, conv.dilation, groups=8)


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_filters_of_rank_one_are_split_exactly(name, stride):
    conv = depthwise(rank_one=True, stride=stride, padding=((1, 2), (1, 0)), dilation=(1, 2))
    chain = decompose(conv, FORMS[name], RANKS[name])
    assert [step.kernel.shape for step in chain.steps] == [(8, 1, 5, 1), (8, 1, 1, 3)]
    assert [step.groups for step in chain.steps] == [8, 8]
    assert relative_error(conv, chain) < 1e-5
    x = input_for(conv)
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5


@pytest.mark.parametrize("name", RANKS)
def test_each_filter_gets_its_best_term(name):
    conv = depthwise()
    found = decompose(conv, FORMS[name], RANKS[name]).dense().kernel
    for filter_, term in zip(conv.kernel[:, 0], found[:, 0]):
        tail = np.linalg.svd(filter_, compute_uv=False)[1:]
        assert np.linalg.norm(filter_ - term) == pytest.approx(np.linalg.norm(tail), rel=1e-3)


@pytest.mark.parametrize("widening", [1, 2, 3])
def test_spatial_is_exact_at_full_rank_and_its_error_falls(widening):
    conv = depthwise(widening=widening)
    assert relative_error(conv, at_full_rank(conv, "spatial")) < 1e-5
    ranks = all_ranks(FORMS["spatial"], conv, 16)
    assert ranks[0] == (8,)
    errors = [relative_error(conv, decompose(conv, FORMS["spatial"], rank)) for rank in ranks]
    assert errors == sorted(errors, reverse=True)
    estimate = estimate_errors(conv, FORMS["spatial"])
    assert np.allclose([estimate(rank) for rank in ranks], errors, atol=1e-6)


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("widening", [1, 2])
def test_a_depthwise_graph_is_rewritten_like_its_torch_model(name, widening):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 8 * widening, (5, 3), stride=2, padding=(2, 1), groups=8), nn.ReLU()
    ).eval()
    x = np.random.default_rng(0).standard_normal((2, 8, 9, 11)).astype(np.float32)
    network = torch_export.export(model, {"x": x})
    (layer,) = torch_network.match(model, survey(network, {"x": x}), {"x": x})
    assert layer.reason is None
    chain = decompose(layer.conv, FORMS[name], RANKS[name])
    rewritten = rewrite(network, {layer.output: (layer.name, chain)})
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    module = torch_network.apply(model, [layer], {layer.name: chain})
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    (found,) = run(open_session(rewritten), {"x": x}).values()
    assert difference(found, wanted) < 1e-5
    assert difference(found, np.maximum(compute(chain.steps, x), 0)) < 1e-5


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("widening", [1, 2])
def test_the_skeleton_has_the_shapes_of_the_chain(name, widening):
    conv = depthwise(widening=widening)
    bones, chain = (make(conv, FORMS[name], RANKS[name]) for make in (skeleton, decompose))
    for bone, step in zip(bones.steps, chain.steps, strict=True):
        assert (bone.kernel.shape, bone.groups) == (step.kernel.shape, step.groups)


@pytest.mark.parametrize("name", RANKS)
def test_the_last_step_is_solved_for_what_each_channel_sees(name):
    conv = depthwise()
    patches = np.random.default_rng(0).standard_normal((8, 60, 15)) * np.linspace(0.1, 2, 15)
    metrics = [Metric.of(part.T @ part / 60, 1) for part in patches]
    chain = decompose(conv, FORMS[name], RANKS[name])
    before = relative_error(conv, chain, metrics)
    assert relative_error(conv, refit(conv, chain, metrics), metrics) < 0.98 * before


def test_lvh_has_no_lateral_step_where_there_is_one_input_channel():
    conv = make_conv((6, 1, 3, 5), padding=((1, 1), (2, 2)))
    chain = decompose(conv, FORMS["lvh"], (1,))
    assert [step.kernel.shape for step in chain.steps] == [(6, 1, 3, 1), (6, 1, 1, 5)]
    assert [step.groups for step in chain.steps] == [1, 6]


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@pytest.mark.parametrize("k", [(5, 1), (1, 3), (1, 1), (7,)])
def test_a_depthwise_kernel_over_one_axis_is_refused(name, k):
    conv = make_conv((8, 1, *k), groups=8)
    assert "it is depthwise and" in refusal(FORMS[name], conv)
    with pytest.raises(ConverterError, match=f"{name} cannot stand in .* depthwise"):
        decompose(conv, FORMS[name], (8,))


@pytest.mark.parametrize("k", [(3, 1), (1, 1)])
def test_a_layer_that_no_form_fits_is_surveyed_with_the_reason(k):
    model = ir.from_proto(from_text(ONE, w=np.ones((32, 1, *k), np.float32)))
    (layer,) = survey(model, {"x": np.zeros((1, 32, 9, 9), np.float32)})
    assert layer.reason == "it is depthwise and has no channels to separate"
    with pytest.raises(ConverterError, match="Layer w cannot be converted: it is depthwise"):
        make_plan((layer,), Options.of(form=("w=spatial",)).layers, {})


@pytest.mark.parametrize("rank", [(4,), (12,), (9,)])
def test_ranks_are_multiples_of_the_channels(rank):
    with pytest.raises(ConverterError, match=r"must be a multiple of 8 groups|does not fit"):
        decompose(depthwise(), FORMS["spatial"], rank)


ONE = """g (float[N, 32, 9, 9] x) => (float[N, 32, P, Q] y) {
    y = Conv <group = 32, auto_pad = "SAME_UPPER"> (x, w)
}"""


def plan_for(kernel, **options):
    model = ir.from_proto(from_text(ONE, w=kernel.astype(np.float32)))
    layers = survey(model, {"x": np.zeros((1, 32, 9, 9), np.float32)})
    (choice,) = make_plan(layers, Options.of(**options).layers, {}).choices
    return choice


def rank_one_filters(k):
    rng = np.random.default_rng(0)
    return np.einsum("oh,ow->ohw", *rng.standard_normal((2, 32, k)))[:, None]


@pytest.mark.parametrize("k", [5, 7])
def test_a_split_that_saves_enough_is_taken(k):
    choice = plan_for(rank_one_filters(k))
    assert (choice.form, choice.rank) == ("spatial", (32,))


@pytest.mark.parametrize(
    "kernel", [rank_one_filters(3), np.random.default_rng(0).standard_normal((32, 1, 5, 5))]
)
def test_a_layer_that_saves_too_little_is_kept_as_depthwise(kernel):
    choice = plan_for(kernel)
    assert choice.form is None
    assert choice.reason == (
        "it is depthwise, and no split into 1-D filters saves 50% of its MACs at a weight error "
        "of 0.25"
    )


def test_a_form_by_hand_is_obeyed_or_refused():
    kernel = rank_one_filters(3)
    assert plan_for(kernel, form=("spatial",)).rank == (32,)
    assert plan_for(kernel, form=("lvh",)).rank == (1,)
    assert "flattened: it is depthwise" in plan_for(kernel, form=("flattened",)).reason
    with pytest.raises(ConverterError, match="Layer w: tucker: it is depthwise"):
        plan_for(kernel, form=("w=tucker",))
