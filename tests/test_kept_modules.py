"""What a torch model computes without plain modules that are called once: kept, with the reason."""

import threading

import pytest
import torch
import torch.nn.functional as F
from conv_cases import at_full_rank, difference
from networks import noise
from torch import nn
from torch.nn.utils import parametrizations

from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.match import AS_ONNX
from converter.runtime.ort import run

FUNCTION = f"it is no convolution module of the model, but called as a function{AS_ONNX}"
ONCE = f"its module is not called exactly once, with one input{AS_ONNX}"
SHARED = "its weight is shared by 2 layers"

CONVOLVE = {
    "conv1d": (nn.Conv1d(4, 4, 3, padding=1), F.conv1d),
    "conv2d": (nn.Conv2d(4, 4, 3, padding=1), F.conv2d),
    "conv3d": (nn.Conv3d(4, 4, 3, padding=1), F.conv3d),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 4, 3, padding=1), F.conv_transpose1d),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 4, 3, padding=1), F.conv_transpose2d),
    "linear": (nn.Linear(6, 6), F.linear),
}


class Called(nn.Module):
    """A plain convolution, then a module that is used in another way."""

    def __init__(self, module, use):
        super().__init__()
        axes = 2 if isinstance(module, nn.Linear) else module.weight.ndim - 2
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        torch.manual_seed(0)
        self.plain = kind(4, 4, 3, padding=1)
        self.module = module
        self.use = use
        self.axes = axes

    def forward(self, x):
        return self.use(self.module, torch.relu(self.plain(x)))


def reasons(module, use):
    """Reasons by layer; what is left to convert computes the same in both worlds."""
    model = Called(module, use).eval()
    x = noise(2, 4, *[6] * model.axes)
    network = torch_export.export(model, {"x": x})
    layers = torch_network.match(model, survey(network, {"x": x}), {"x": x})
    free = [layer for layer in layers if layer.reason is None]
    chains = {layer.name: at_full_rank(layer.conv, "channel") for layer in free}
    rewritten = rewrite(network, {la.output: (la.name, chains[la.name]) for la in free})
    (found,) = run(open_session(rewritten), {"x": x}).values()
    with torch.no_grad():
        copied = torch_network.apply(model, layers, chains)(torch.from_numpy(x)).numpy()
        original = model(torch.from_numpy(x)).numpy()
    assert difference(found, copied) < 1e-4
    assert difference(found, original) < 1e-4
    first, *rest = layers
    assert (first.name, first.reason) == ("plain", None)
    return [layer.reason for layer in rest]


@pytest.mark.parametrize("name", CONVOLVE)
def test_a_module_that_is_called_once_is_converted(name):
    module, _ = CONVOLVE[name]
    assert reasons(module, lambda m, x: m(x)) == [None]


@pytest.mark.parametrize("name", CONVOLVE)
def test_a_module_whose_weight_is_used_by_a_function_is_kept(name):
    module, function = CONVOLVE[name]
    (reason,) = reasons(module, lambda m, x: function(x, m.weight, m.bias))
    assert reason == (FUNCTION if name == "linear" else ONCE)


@pytest.mark.parametrize("name", CONVOLVE)
def test_a_module_that_is_called_twice_is_kept(name):
    module, _ = CONVOLVE[name]
    assert reasons(module, lambda m, x: m(torch.relu(m(x)))) == [SHARED] * 2


@pytest.mark.parametrize("name", CONVOLVE)
def test_a_module_that_is_also_called_as_a_function_is_kept(name):
    module, function = CONVOLVE[name]
    found = reasons(module, lambda m, x: m(torch.relu(function(x, m.weight, m.bias))))
    assert found == [SHARED] * 2


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("name", CONVOLVE)
def test_a_module_with_a_computed_weight_is_kept(name, norm):
    kind, arguments = {
        "linear": (nn.Linear, (6, 6)),
        **{n: (type(m), (4, 4, 3, 1, 1)) for n, (m, _) in CONVOLVE.items() if n != "linear"},
    }[name]
    assert reasons(norm(kind(*arguments)), lambda m, x: m(x)) == [FUNCTION]


def test_a_model_that_cannot_be_copied_is_refused_with_the_reason():
    module = nn.Conv2d(4, 4, 3)
    module.lock = threading.Lock()
    with pytest.raises(ConverterError, match=r"cannot be copied: TypeError: .* '_thread\.lock'"):
        torch_export.export(nn.Sequential(module).eval(), {"x": noise(2, 4, 9, 8)})


class Twice(nn.Module):
    """The exporter has the weight as it is for the vectors, and turned around for the sequence."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return self.mix(x) + F.linear(x[:, 0], self.mix.weight)[:, None]


def test_a_turned_weight_that_is_used_twice_is_kept():
    torch.manual_seed(0)
    model, feeds = Twice().eval(), {"x": noise(2, 4, 6)}
    network = torch_export.export(model, feeds)
    layers = torch_network.match(model, survey(network, feeds), feeds)
    assert [la.reason for la in layers] == [SHARED] * 2
