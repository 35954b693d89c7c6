"""The optimizers: which tensors Muon trains, the size of its steps, and its state."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import noise
from torch import nn

from converter.training.optimizers import Optimizers, orthogonal
from converter.training.task import Recipe

RECIPE = Recipe(epochs=1, scaled_steps=False)
SIZES = st.integers(1, 40)


def model(*layers):
    """Layers in a row, the same numbers in every call."""
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def graded(network, step=0, scale=1.0):
    """Give every parameter some gradient, another one at each step."""
    for number, parameter in enumerate(network.parameters()):
        gradient = noise(*parameter.shape, seed=100 * step + number)
        parameter.grad = scale * torch.from_numpy(gradient)
    return network


@given(SIZES, SIZES, st.integers(0, 99))
def test_the_orthogonal_factor_has_the_same_singular_vectors_and_values_near_one(O, I, seed):
    n = min(O, I)
    u, _, vt = np.linalg.svd(noise(O, I, seed=seed).astype(float), full_matrices=False)
    sizes = np.geomspace(1, 0.05, n)
    factor = orthogonal(torch.from_numpy(u * sizes @ vt)).numpy()
    values = u.T @ factor @ vt.T
    assert np.abs(values - np.diag(np.diag(values))).max() < 1e-6
    assert np.diag(values).min() > 0.6
    assert np.diag(values).max() < 1.3
    assert np.linalg.norm(factor) == pytest.approx(np.linalg.norm(values), rel=1e-6)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_the_step_of_a_matrix_is_that_of_torchs_muon(shape):
    ours = model(nn.Linear(*shape, bias=False))
    theirs = copy.deepcopy(ours)
    start = ours[0].weight.detach().clone()
    optimizers = Optimizers(ours, RECIPE)
    other = torch.optim.Muon(
        theirs.parameters(), lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    for number, scale in enumerate((1.0, 0.5, 2.0)):
        graded(ours, number, scale)
        graded(theirs, number, scale)
        optimizers.step(1e-3)
        other.step()
    moved = theirs[0].weight.detach() - start
    apart = ours[0].weight.detach() - theirs[0].weight.detach()
    assert apart.norm() < 0.03 * moved.norm()  # theirs is computed in bfloat16


@pytest.mark.parametrize("orthogonal", [True, False])
def test_adamw_trains_all_that_is_no_matrix(orthogonal):
    layers = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, (3, 1), groups=16), nn.Linear(16, 4)
    layers += (nn.Linear(2049, 2049, bias=False),)
    ours = graded(model(*layers))
    theirs = copy.deepcopy(ours)
    graded(theirs)
    Optimizers(ours, replace(RECIPE, orthogonal=orthogonal)).step(1e-3)
    torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.0).step()
    same = [torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters())]
    assert same == [not orthogonal, *[True] * 6]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_step_of_a_kernel_does_not_depend_on_its_memory_format(groups):
    one = graded(model(nn.Conv2d(16, 32, 3, groups=groups)))
    two = copy.deepcopy(one).to(memory_format=torch.channels_last)
    graded(two)
    for network in (one, two):
        Optimizers(network, RECIPE).step(1e-2)
    assert (one[0].weight - two[0].weight).abs().max() < 1e-6
    assert two[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wide", [False, True])
def test_zero_gradients_give_no_step(wide):
    shape = (9, 30) if wide else (30, 9)
    assert not orthogonal(torch.zeros(shape)).any()
    column = torch.zeros(shape)
    column[:, 0] = 1.0
    factor = orthogonal(column)
    assert 0.6 < factor.norm() < 1.3
    assert factor[:, 1:].abs().max() < 1e-6


def test_entries_move_by_about_the_learning_rate():
    network = graded(model(nn.Conv2d(64, 32, 3, bias=False)), scale=1e-4)
    start = network[0].weight.detach().clone()
    Optimizers(network, RECIPE).step(1e-2)
    moved = (network[0].weight.detach() - start).square().mean().sqrt()
    assert 0.1e-2 < moved < 0.4e-2  # AdamW's, on average over a training: 0.2 to 0.4


def test_directions_of_small_gradients_are_learned_too():
    swap_in_out, _ = torch.linalg.qr(torch.from_numpy(noise(16, 16, seed=2)))
    x = torch.from_numpy(noise(256, 16)) * torch.logspace(0, -2, 16) @ swap_in_out
    wanted = torch.from_numpy(noise(16, 16, seed=1)) / 4

    def left(recipe, steps=200):
        network = model(nn.Linear(16, 16, bias=False))
        optimizers = Optimizers(network, recipe)
        for step in range(steps):
            network.zero_grad()
            (network(x) - x @ wanted.T).square().mean().backward()
            optimizers.step(0.1 * (1 - step / steps))
        return (network[0].weight - wanted).norm().item()

    assert left(RECIPE) < 0.2 * left(replace(RECIPE, orthogonal=False))


def test_restored_optimizers_take_the_same_step():
    def stepped(restored):
        network = model(nn.Linear(16, 16), nn.Linear(16, 2))
        optimizers = Optimizers(network, RECIPE)
        graded(network)
        optimizers.step(1e-2)
        if restored:
            moments = {name: tensor.clone() for name, tensor in optimizers.moments().items()}
            optimizers = Optimizers(network, RECIPE)
            optimizers.restore(moments)
        graded(network, 1)
        optimizers.step(1e-2)
        return list(network.parameters())

    assert all(torch.equal(a, b) for a, b in zip(stepped(True), stepped(False)))


def test_reset_optimizers_step_as_new_ones():
    fresh, used = (model(nn.Linear(16, 16)) for _ in range(2))
    optimizers = Optimizers(used, RECIPE)
    graded(used)
    optimizers.step(0.0)
    optimizers.reset()
    both = Optimizers(fresh, RECIPE), optimizers
    for network, each in zip((fresh, used), both):
        graded(network, 1)
        each.step(1e-2)
    assert torch.equal(fresh[0].weight, used[0].weight)


def test_parameters_without_a_gradient_do_not_change():
    network = model(nn.Linear(16, 16), nn.Linear(16, 16))
    network[0].weight.requires_grad_(False)
    graded(network)
    network[1].weight.grad = None
    start = copy.deepcopy(network.state_dict())
    Optimizers(network, RECIPE).step(1e-2)
    now = network.state_dict()
    assert torch.equal(now["0.weight"], start["0.weight"])
    assert torch.equal(now["1.weight"], start["1.weight"])
    assert not torch.equal(now["1.bias"], start["1.bias"])
