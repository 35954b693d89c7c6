"""Transposed convolutions: chains that compute the same, in torch and in ONNX."""

import math
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import (
    EXACT_FORMS,
    FEW,
    SOME,
    SPLITTING_FORMS,
    at_full_rank,
    compute,
    difference,
    drawn_chain,
    from_text,
    make_conv,
    noise,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, assemble
from converter.decomposition.decompose import decompose
from converter.decomposition.form import fit_rank, refusal
from converter.decomposition.forms import FORMS
from converter.decomposition.metric import Metric
from converter.decomposition.refit import refit
from converter.decomposition.taps import swap_in_out
from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.graph.rewrite import replace_weights, rewrite
from converter.graph.survey import count_macs, survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.match import AS_ONNX
from converter.models.modules import read_module, to_modules
from converter.reconstruction.moments import choose_positions, cut_patches
from converter.runtime.ort import run

MODULES = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def transposed(draw, smallest=1):
    """Transposed convolutions over one to three axes; all geometries that torch has."""
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    k, stride, dilation, padding, extra = [], [], [], [], []
    for _ in range(axes):
        k.append(draw(st.integers(smallest, 4 if axes < 3 else 3)))
        stride.append(draw(st.integers(1, 3)))
        dilation.append(draw(st.integers(1, 2)))
        most = min(2, dilation[-1] * (k[-1] - 1))
        padding.append((draw(st.integers(0, most)), draw(st.integers(0, most))))
        extra.append(draw(st.integers(0, max(stride[-1], dilation[-1]) - 1)))
    return make_conv(
        (groups * draw(st.integers(1, 4)), draw(st.integers(2, 3)), *k),
        seed=draw(st.integers(0, 1000)),
        bias=draw(st.booleans()),
        groups=groups,
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        transposed=True,
        output_padding=tuple(extra),
    )


def small_input(conv, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, conv.I, *(3 + axis for axis in range(len(conv.k)))))


@FEW
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    groups=st.integers(1, 3),
)
def test_turning_a_kernel_twice_gives_it_back(shape, groups):
    kernel = noise(groups * shape[0], *shape[1:])
    again = swap_in_out(swap_in_out(kernel, groups), groups)
    assert again.tobytes() == kernel.tobytes()
    assert swap_in_out(kernel, groups).shape == (groups * shape[1], shape[0], shape[2])


@SOME
@given(conv=transposed())
def test_sizes_and_costs_are_those_of_the_computation(conv):
    x = small_input(conv)
    assert conv.output_size(x.shape[2:]) == compute([conv], x).shape[2:]
    assert conv.macs(x.shape[2:]) == conv.kernel.size * np.prod(x.shape[2:])


@pytest.mark.parametrize("name", EXACT_FORMS)
@FEW
@given(conv=transposed(smallest=2), data=st.data())
def test_full_rank_reproduces_kernel_and_response(name, conv, data):
    if refusal(FORMS[name], conv):  # spatial over one axis
        with pytest.raises(ConverterError):
            at_full_rank(conv, name)
        return
    chain = at_full_rank(conv, name)
    x = small_input(conv)
    assert relative_error(conv, chain) < 1e-5
    found = compute(chain.steps, x)
    assert difference(found, compute([conv], x)) < 1e-5
    size = x.shape[2:]
    for step in chain.steps:
        size = step.output_size(size)
    assert size == found.shape[2:]


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@FEW
@given(conv=transposed(smallest=2))
def test_the_dense_kernel_is_what_the_steps_compute(name, conv):
    name = "channel" if refusal(FORMS[name], conv) else name
    chain = drawn_chain(conv, name, 0.5)
    dense, x = chain.dense(), small_input(conv)
    assert difference(compute([dense], x), compute(chain.steps, x)) < 1e-5
    for field in ("stride", "padding", "k", "O", "I", "groups"):
        assert getattr(dense, field) == getattr(conv, field)


def test_two_transposed_steps_that_both_stride_are_composed():
    first = make_conv(
        (3, 2, 3, 2),
        bias=False,
        stride=(2, 1),
        dilation=(1, 3),
        transposed=True,
        output_padding=(1, 0),
    )
    second = make_conv(
        (4, 3, 2, 3), seed=1, stride=(3, 2), dilation=(2, 1), transposed=True, output_padding=(0, 1)
    )
    chain, x = Chain((first, second)), noise(2, 2, 4, 5).astype(np.float64)
    assert difference(compute([chain.dense()], x), compute(chain.steps, x)) < 1e-5


def test_pointwise_steps_are_plain():
    conv = make_conv(
        (8, 4, 4, 4),
        stride=(2, 2),
        padding=((1, 1), (1, 1)),
        transposed=True,
        output_padding=(1, 0),
    )
    steps = decompose(conv, FORMS["flattened"], (6,)).steps
    assert [step.transposed for step in steps] == [False, True, True, False]
    assert [step.stride for step in steps] == [(1, 1), (2, 1), (1, 2), (1, 1)]
    assert [tuple(step.output_padding) for step in steps] == [(), (1, 0), (0, 0), ()]
    assert steps[1].padding == ((1, 1), (0, 0))


def test_a_pointwise_kernel_that_strides_stays_transposed():
    conv = make_conv((6, 4, 1, 1), stride=(2, 3), transposed=True)
    chain = at_full_rank(conv, "channel")
    assert [step.transposed for step in chain.steps] == [True, False]
    x = small_input(conv)
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5


def test_a_plain_window_beside_a_transposed_one_is_refused():
    up = make_conv((4, 4, 3, 3), bias=False, transposed=True)
    with pytest.raises(ConverterError, match="Beside a transposed step the others are pointwise"):
        Chain((up, make_conv((4, 4, 3, 3))))
    with pytest.raises(ConverterError, match="Beside a transposed step the others are pointwise"):
        Chain((make_conv((4, 4, 1, 1), bias=False, stride=(2, 1)), up))


def test_a_transposed_convolution_has_no_padding_mode():
    with pytest.raises(ConverterError, match="it has no mode"):
        make_conv((4, 4, 3, 3), transposed=True, padding_mode="circular")


@pytest.mark.parametrize("name", ["flattened", "tucker", "decoupled"])
def test_a_depthwise_transposed_convolution_is_refused(name):
    conv = make_conv((4, 1, 3, 3), groups=4, transposed=True)
    with pytest.raises(ConverterError, match="depthwise"):
        decompose(conv, FORMS[name], (1,))


def test_a_depthwise_transposed_convolution_is_split():
    conv = make_conv((4, 1, 3, 3), groups=4, stride=(2, 2), transposed=True)
    chain, x = at_full_rank(conv, "spatial"), small_input(conv)
    assert difference(compute(chain.steps, x), compute([conv], x)) < 1e-5
    assert assemble(conv, [(s.kernel, s.groups) for s in chain.steps]).dense().groups == 4


@SOME
@given(conv=transposed(), seed=st.integers(0, 9))
def test_patches_give_the_responses(conv, seed):
    x = small_input(conv).astype(np.float32)
    at = choose_positions(conv, x.shape, 20, np.random.default_rng(seed))
    patches = cut_patches(x, conv, at)
    there = len(x) * math.prod(conv.output_size(x.shape[2:]))
    assert patches.shape == (conv.groups, min(20, there), conv.kernel[0].size)
    O = conv.O // conv.groups
    found = patches @ conv.kernel.reshape(conv.groups, O, -1).swapaxes(1, 2)  # (g, P, O/g)
    wanted = at.read(compute([Chain((conv,)).with_bias(None).steps[0]], x.astype(np.float64)))
    assert np.abs(np.concatenate(list(found), axis=1) - wanted).max() < 1e-3


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_last_step_is_solved_again(name, groups):
    conv = make_conv(
        (8, 8 // groups, 4, 3),
        groups=groups,
        stride=(2, 2),
        padding=((1, 1), (1, 0)),
        transposed=True,
    )
    inputs = noise(9, 8, 7, 6).cumsum(1)
    at = choose_positions(conv, inputs.shape, 800, np.random.default_rng(0))
    metrics = [
        Metric.of(part.T @ part / 800, conv.I // groups)
        for part in cut_patches(inputs, conv, at).astype(np.float64)
    ]
    chain = decompose(conv, FORMS[name], fit_rank((4, 4), FORMS[name], conv))
    before = relative_error(conv, chain, metrics)
    assert relative_error(conv, refit(conv, chain, metrics), metrics) < 0.995 * before


@SOME
@given(conv=transposed())
def test_a_module_read_back_is_the_convolution_it_was_made_of(conv):
    even = tuple((begin, begin) for begin, _ in conv.padding)
    conv = make_conv(
        conv.kernel.shape,
        bias=False,
        groups=conv.groups,
        stride=conv.stride,
        padding=even,
        dilation=conv.dilation,
        transposed=True,
        output_padding=conv.output_padding,
    )
    (module,) = to_modules(Chain((conv,)))
    assert type(module) is MODULES[len(conv.k)]
    again, x = read_module(module), small_input(conv)
    assert again.kernel.tobytes() == conv.kernel.tobytes()
    for field in ("stride", "padding", "dilation", "groups", "transposed", "output_padding"):
        assert getattr(again, field) == getattr(conv, field)
    with torch.no_grad():
        assert difference(module(torch.from_numpy(x)).numpy(), compute([conv], x)) < 1e-5


def decoder(axes):
    """Transposed convolutions as decoders have them, the first with a norm behind it."""
    conv, norm = MODULES[axes], (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(4, 8, 4, stride=2, padding=1, bias=False),
        norm(8),
        nn.ReLU(),
        conv(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        conv(6, 4, 3, padding=2, dilation=2),
    )
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].bias, model[1].running_mean):
            tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module", params=[1, 2, 3])
def exported(request):
    model, x = decoder(request.param), noise(2, 4, *range(3, 3 + request.param))
    network = torch_export.export(model, {"x": x})
    return model, network, survey(network, {"x": x}), x


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@pytest.mark.parametrize("share", [0.4, 1])
def test_the_torch_copy_is_the_twin_of_the_graph(exported, name, share):
    model, network, layers, x = exported
    layers = torch_network.match(model, layers, {"x": x})
    assert [layer.reason for layer in layers] == [None] * 3
    exact = share == 1 and name in EXACT_FORMS
    chains = {
        la.name: at_full_rank(la.conv, name) if exact else drawn_chain(la.conv, name, share)
        for la in layers
        if refusal(FORMS[name], la.conv) is None
    }
    assert len(chains) == (0 if name == "spatial" and x.ndim == 3 else 3)
    by_output = {la.output: (la.name, chains[la.name]) for la in layers if la.name in chains}
    rewritten = rewrite(network, by_output)
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    (found,) = run(open_session(rewritten), {"x": x}).values()
    with torch.no_grad():
        copied = torch_network.apply(model, layers, chains)(torch.from_numpy(x)).numpy()
        original = model(torch.from_numpy(x)).numpy()
    assert difference(found, copied) < 1e-4
    if exact:
        assert difference(found, original) < 1e-4
    dense = {
        la.output: replace(la.conv, kernel=chains[la.name].dense().kernel.astype(np.float32))
        for la in layers
        if la.name in chains
    }
    twin = replace_weights(network, dense)
    (expected,) = run(open_session(twin), {"x": x}).values()
    assert difference(found, expected) < 1e-4


UP = "g (float[N, 4, 5, 6] x) => (float[N, 6, P, Q] y) {{ y = ConvTranspose <{}> (x, w) }}"


def survey_up(attributes, w=None):
    model = ir.from_proto(from_text(UP.format(attributes), w=noise(4, 6, 3, 4) if w is None else w))
    (layer,) = survey(model, {"x": noise(2, 4, 5, 6)})
    return model, layer


@pytest.mark.parametrize(
    "attributes",
    [
        "strides = [2, 3]",
        "strides = [2, 2], pads = [1, 0, 2, 1]",
        "strides = [3, 2], output_padding = [2, 1], dilations = [1, 2]",
        'auto_pad = "VALID", strides = [2, 1]',
        'auto_pad = "SAME_UPPER", strides = [2, 2]',
        'auto_pad = "SAME_LOWER", strides = [1, 2]',
        'auto_pad = "SAME_LOWER", strides = [4, 3], dilations = [2, 1]',
        "strides = [2, 2], output_shape = [10, 12]",
        'auto_pad = "SAME_UPPER", strides = [2, 2], output_shape = [10, 13]',
    ],
)
def test_a_node_is_read_as_the_runtime_computes_it(attributes):
    model, layer = survey_up(attributes)
    x = noise(2, 4, 5, 6)
    assert layer.reason is None
    wanted = run(open_session(model), {"x": x})["y"]
    assert difference(compute([layer.conv], x), wanted) < 1e-5
    assert layer.macs == layer.conv.macs((5, 6)) == count_macs(model, {"x": x})
    for name in ("separable", "spatial"):
        rewritten = rewrite(model, {"y": ("w", at_full_rank(layer.conv, name))})
        onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
        assert difference(run(open_session(rewritten), {"x": x})["y"], wanted) < 1e-4


def test_a_node_that_is_told_a_larger_output_than_it_computes_is_kept():
    _, layer = survey_up("strides = [2, 2], output_shape = [12, 14]")
    assert layer.conv is None
    assert layer.reason == "its output_shape is larger than what it computes"


class Sized(nn.Module):
    """Asks its transposed convolution for a size."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2)

    def forward(self, x):
        return self.up(x, output_size=(12, 14))


def test_a_module_that_is_told_its_output_size_is_kept():
    model, feeds = Sized().eval(), {"x": noise(1, 4, 5, 6)}
    (layer,) = torch_network.match(model, survey(torch_export.export(model, feeds), feeds), feeds)
    assert layer.reason == "its module is not called exactly once, with one input" + AS_ONNX
