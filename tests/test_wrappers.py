"""Wrapped, pruned, normalised and lazy models are read as what they compute."""

import copy

import numpy as np
import pytest
import torch
from conv_cases import difference
from conversions import outputs
from networks import noise
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

import converter
from converter import ConverterError, Options
from converter.graph.network import open_session, run
from converter.models.factory import unpickle
from converter.models.source import open_source
from converter.models.wrappers import copied, fold_hooks, has_lazy_weights, unwrapped

X = noise(2, 3, 8, 8, seed=1)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    ).eval()


def hooked(make):
    model = plain()
    for module in (model[0], model[2]):
        make(module)
    with torch.no_grad():
        model(torch.from_numpy(X))  # from here on, the weights are results of a computation
    return model


HOOKED = {
    "pruned": lambda: hooked(lambda m: prune.l1_unstructured(m, "weight", 0.5)),
    "pruned twice": lambda: hooked(
        lambda m: [prune.random_unstructured(m, name, 0.3) for name in ("weight", "bias")]
    ),
    "weight norm, hook": lambda: hooked(weight_norm),
    "weight norm": lambda: hooked(parametrizations.weight_norm),
    "spectral norm, hook": lambda: hooked(spectral_norm).eval(),
    "spectral norm": lambda: hooked(parametrizations.spectral_norm).eval(),
}


class Averaged(AveragedModel):
    """A subclass of a wrapper."""


class Star(nn.Module):
    """It takes any number of inputs."""

    def __init__(self):
        super().__init__()
        self.inner = plain()

    def forward(self, *inputs):
        """Use the first input."""
        return self.inner(inputs[0])


class First(Star):
    """It takes an input, and any number of others."""

    def forward(self, x, *others):
        """Use the first input."""
        return self.inner(x)


WRAPPED = {
    "DataParallel": lambda: nn.DataParallel(plain()),
    "compiled": lambda: torch.compile(plain()),
    "averaged": lambda: Averaged(plain()),
    "several": lambda: nn.DataParallel(torch.compile(nn.DataParallel(plain()))),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_model_is_unwrapped(make):
    model = unwrapped(make())
    assert type(model) is nn.Sequential
    assert model.state_dict().keys() == plain().state_dict().keys()


@pytest.mark.parametrize("make", HOOKED.values(), ids=HOOKED)
def test_hooks_are_folded_into_a_copy(make):
    model = make()
    before = copy.copy(model.state_dict())
    folded = fold_hooks(copied(model))
    assert folded.state_dict().keys() == plain().state_dict().keys()
    assert difference(outputs(folded, X), outputs(model, X)) < 1e-6
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


READ = {**WRAPPED, **HOOKED, "any inputs": Star, "an input and others": First}


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_what_is_read_computes_what_the_model_does(make):
    model = make().eval()
    source = open_source(model, X, Options.of())
    (name,) = (item.name for item in source.inputs)
    (read,) = run(open_session(source.network), {name: X}).values()
    assert source.inputs[0].shape[0] is None
    assert difference(read, outputs(unwrapped(model), X)) < 1e-5


def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


def test_a_lazy_model_takes_its_shapes_from_the_example(tmp_path):
    torch.manual_seed(0)
    model = lazy()
    result = converter.convert(model, X, form="spatial", rank=4, cache=False)
    assert has_lazy_weights(model) and not has_lazy_weights(result.model)
    assert [tuple(p.shape) for p in result.model[3].parameters()] == [(4, 288), (4,)]


def test_a_lazy_model_that_does_not_take_the_example_is_refused():
    with pytest.raises(ConverterError, match="does not run on inputs of shape"):
        open_source(lazy(), noise(2, 8), Options.of())


FACTORIES = """
import torch
from torch import nn
from torch.nn.utils import prune


def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


def pruned():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model
"""


@pytest.mark.parametrize("name", ["lazy", "pruned"])
def test_a_folder_of_such_a_factory_is_loaded(name, workplace):
    (workplace / "special.py").write_text(FACTORIES)
    factory = converter.models.factory.find_callable(f"special:{name}", "Factory")
    model = factory().eval()
    with torch.no_grad():
        model(torch.from_numpy(X))
    torch.save(model.state_dict(), "weights.pt")
    options = {"form": "spatial", "rank": 4, "cache": False, "checkpoint": "weights.pt"}
    result = converter.convert(f"special:{name}", X, **options)
    (read,) = run(open_session(result.original), {"input": X}).values()
    assert difference(read, outputs(model, X)) < 1e-5
    result.save("out")
    loaded = converter.load("out")
    assert difference(outputs(loaded, X), outputs(result.model, X)) < 1e-6
    np.savez("train.npz", x=noise(64, 3, 8, 8))
    trained = converter.finetune("out", train="train.npz", epochs=1)
    assert trained.model is not None


@pytest.mark.parametrize(
    ("content", "shift"),
    [
        (lambda model, other: model, 0),
        (lambda model, other: {"model": model, "epoch": 3}, 0),
        (lambda model, other: {"model": other, "ema": model}, 0),
        (lambda model, other: {"net": nn.DataParallel(model)}, 0),
    ],
)
def test_a_pickled_model_is_taken_from_what_was_saved(content, shift, tmp_path):
    path, model = tmp_path / "net.pt", plain()
    torch.save(content(model, nn.Linear(2, 2)), path)
    assert difference(outputs(unpickle(path, trust_pickle=True), X), outputs(model, X)) == shift


def test_a_torchscript_program_is_no_model(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.trace(plain(), torch.from_numpy(X)).save(str(path))
    with pytest.raises(ConverterError, match=r"TorchScript .* name the factory .* --checkpoint"):
        unpickle(path, trust_pickle=True)
