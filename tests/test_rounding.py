"""Rounding as in int8 while a network trains."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import noise
from torch import nn
from torch.nn import functional

from converter.data.data import from_arrays
from converter.graph.network import open_session
from converter.models.from_onnx import to_torch
from converter.models.source import open_source
from converter.options import Options
from converter.quantization.rounding import fake_quantize
from converter.runtime.ort_quantizer import saturates
from converter.search.int8 import quantize
from converter.training.losses import model_outputs
from converter.training.phases import list_phases
from converter.training.task import Recipe, TrainingTask
from converter.training.train import train

LARGEST = 64 if saturates() else 127
SIZES = torch.logspace(-2, 2, 8)


def run(model, x, rounding=True):
    """The first output of a model."""
    runner = fake_quantize(model_outputs(model)) if rounding else model_outputs(model)
    with torch.no_grad():
        return runner([x])[0]


def rel_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def chain(spread):
    """A pointwise step, one a channel, and another pointwise one; channels of many sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 8, 1, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    ).eval()
    sizes = torch.logspace(-spread, spread, 8)
    with torch.no_grad():
        model[0].weight *= sizes[:, None, None, None]
        model[2].weight /= sizes[:, None, None]
    return model


@given(
    st.sampled_from([nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear]),
    st.integers(0, 99),
)
def test_multiples_of_the_step_are_left_as_they_are(kind, seed):
    torch.manual_seed(seed)
    axes = {nn.Conv1d: 1, nn.Conv3d: 3, nn.Linear: 0}.get(kind, 2)
    module = kind(4, 3, 2) if axes else kind(4, 3)
    with torch.no_grad():
        module.weight.copy_(torch.randint(-LARGEST, LARGEST + 1, module.weight.shape))
        weight = module.weight
        of_outputs = weight.transpose(0, 1) if kind is nn.ConvTranspose2d else weight
        of_outputs[:, 0] = LARGEST
    x = torch.randint(0, 256, (2, 4) + (3,) * axes).float()
    x.flatten()[0] = 255
    assert rel_error(run(module, x), run(module, x, rounding=False)) < 1e-5
    other = x * torch.rand_like(x)
    other.flatten()[0] = 255
    assert rel_error(run(module, other), run(module, other, rounding=False)) > 1e-4


class Shared(nn.Module):
    """A step whose output two others take."""

    def __init__(self):
        super().__init__()
        self.body = chain(2)[:3]
        self.other = nn.Conv2d(8, 6, 1)
        with torch.no_grad():
            self.other.weight /= SIZES[:, None, None]

    def forward(self, x):
        x = self.body[1](self.body[0](x))
        return self.body[2](x) + self.other(x)


class Attending(nn.Module):
    """Linear layers on three axes."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Sequential(*linear_steps(6))

    def forward(self, x):
        return self.steps(x.flatten(2).mT)


def grouped():
    """Groups of more than one channel between steps of many sizes."""
    model = chain(2)[:3]
    model[1] = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
    with torch.no_grad():
        model[1].weight /= SIZES.reshape(2, 4).repeat_interleave(4, 0)[:, :, None, None]
        model[1].weight *= SIZES[:, None, None, None]
    return model


def transposed():
    model = chain(2)[:3]
    model[2] = nn.ConvTranspose2d(8, 6, 2, stride=2)
    with torch.no_grad():
        model[2].weight /= SIZES[:, None, None, None]
    return model


def transposed_in_groups():
    """A transposed step, one a channel, between steps of many sizes."""
    model = chain(2)[:3]
    model[1] = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8, bias=False)
    return model


def normalised():
    """BatchNorm, which becomes part of the step before it."""
    model = chain(2)[:3]
    model.insert(2, nn.BatchNorm2d(8))
    return model


def linear():
    """Linear steps on two axes."""
    return nn.Sequential(nn.Flatten(), *linear_steps(6 * 64))


def linear_steps(inputs):
    torch.manual_seed(0)
    steps = nn.Linear(inputs, 8, bias=False), nn.Linear(8, 5)
    with torch.no_grad():
        steps[0].weight *= SIZES[:, None]
        steps[1].weight /= SIZES
    return steps


MODELS = {
    "alike": lambda: chain(0),
    "of many sizes": lambda: chain(2),
    "shared": Shared,
    "three axes": Attending,
    "groups": grouped,
    "transposed": transposed,
    "transposed, groups": transposed_in_groups,
    "BatchNorm": normalised,
    "linear": linear,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_error_is_that_of_int8(name):
    model, config = MODELS[name]().eval(), Options()
    x = torch.from_numpy(noise(64, 6, 8, 8, seed=1))
    wanted = run(model, x, rounding=False)
    source = open_source(model, None, config.changed(calib=x.numpy()))
    twin = to_torch(source.network)
    session = open_session(quantize(source.network, source, config).network)
    feeds = session.get_inputs()[0].name
    rows = [session.run(None, {feeds: row[None]})[0] for row in x.numpy()]
    expected = rel_error(torch.from_numpy(np.concatenate(rows)), wanted)
    # onnx2fx writes a Gemm as two operations, which are not recognised as one step.
    for network in (model,) if name == "linear" else (model, twin):
        runner = fake_quantize(model_outputs(network))
        with torch.no_grad():
            runner([x])  # the first run finds the shared steps
            error = rel_error(runner([x])[0], wanted)
        assert expected / 2 < error < 2 * expected


def test_channels_between_steps_have_a_scale_each():
    x = torch.from_numpy(noise(8, 6, 8, 8))
    model = chain(2)
    wanted = run(model, x, rounding=False)
    between = copy.deepcopy(model)
    between.insert(1, nn.Hardtanh(-1e9, 1e9))  # changes nothing, but is no linear step
    assert rel_error(run(between, x), wanted) > 5 * rel_error(run(model, x), wanted)


def test_arguments_may_have_names():
    x, weight = torch.from_numpy(noise(2, 6, 8, 8)), torch.from_numpy(noise(4, 6, 3, 3))
    by_name = fake_quantize(
        lambda inputs: [functional.conv2d(input=inputs[0], weight=weight, padding=1)]
    )
    by_place = fake_quantize(lambda inputs: [functional.conv2d(inputs[0], weight, None, 1, 1)])
    assert torch.equal(by_name([x])[0], by_place([x])[0])
    assert rel_error(by_name([x])[0], functional.conv2d(x, weight, padding=1)) > 1e-3


def test_a_tensor_changed_in_place_is_not_equalized():
    x = torch.from_numpy(noise(8, 6, 8, 8))
    model = chain(0)
    changing = copy.deepcopy(model)
    changing[3].inplace = True
    assert torch.equal(run(model, x), run(changing, x))


def test_a_tensor_written_into_is_not_equalized():
    x, model = torch.from_numpy(noise(8, 6, 8, 8)), chain(2)
    kept = torch.ones(8, 1, 1)
    kept[0] = 0

    def by_item(inputs):
        between = model[0](inputs[0])
        between[:, 0] = 0
        return [model[1](between)]

    given = (
        fake_quantize(run)([x])[0] for run in (by_item, lambda x: [model[1](model[0](x[0]) * kept)])
    )
    assert torch.equal(*given)


def test_gradients_pass():
    model, x = chain(0), torch.from_numpy(noise(8, 6, 8, 8))
    gradients = []
    for run_of in (model_outputs(model), fake_quantize(model_outputs(model))):
        model.zero_grad()
        run_of([x])[0].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert rel_error(gradients[1], gradients[0]) < 0.1


def test_zeros_stay_zero():
    model = chain(0)
    assert run(model, torch.zeros(2, 6, 8, 8)).isfinite().all()
    with torch.no_grad():
        model[0].weight.zero_()
    x = torch.from_numpy(noise(2, 6, 8, 8))
    assert rel_error(run(model, x), run(model, x, rounding=False)) < 0.02


def test_training_with_rounding_lowers_the_loss_by_rounding():
    model = chain(0)
    with torch.no_grad():  # one channel is large, and all share its scale
        model[2].weight[0] *= 300
        model[4].weight[:, 0] /= 300
    data = from_arrays({"x": noise(512, 6, 8, 8)}, "noise")
    recipe = Recipe(epochs=4, batch_size=32)
    assert train(TrainingTask(model, model, data), recipe).first_loss < 1e-9
    learnt = train(TrainingTask(model, model, data), replace(recipe, int8=True))
    assert learnt.best_loss < 0.9 * learnt.first_loss


@pytest.mark.parametrize("int8", [False, True])
def test_only_networks_for_int8_are_trained_with_rounding(int8):
    options = Options.of(int8=int8, finetune=2, reconstruct=1)
    listed = list_phases(options, {"max_error": 0.1}, (), ())
    assert [phase.name for phase in listed][:2] == ["reconstructing", "fine-tuning"]
    assert all(phase.recipe.int8 == int8 for phase in listed[:2])
    # Later phases check the budget on the network in floating point.
    assert not any(phase.recipe.int8 for phase in listed[2:])
