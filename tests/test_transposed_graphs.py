"""Transposed convolutions in torch and in ONNX: read, rewritten, kept with the reason."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conv_cases import (
    EXACT_FORMS,
    SOME,
    SPLITTING_FORMS,
    at_full_rank,
    compute,
    difference,
    drawn_chain,
    make_conv,
    small_input,
    transposed,
)
from hypothesis import given
from networks import from_text, noise
from torch import nn

from converter.decomposition.conv import Chain
from converter.decomposition.form import refusal
from converter.decomposition.forms import FORMS
from converter.graph.network import open_session
from converter.graph.rewrite import replace_weights, rewrite
from converter.graph.survey import count_macs, survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.match import AS_ONNX
from converter.models.modules import read_module, to_modules
from converter.runtime.ort import run

MODULES = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


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
