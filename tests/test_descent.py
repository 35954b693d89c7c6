"""Steps of a training: what Muon moves, by how much, and what the optimizers remember."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import noise
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from converter.training.losses import Recipe
from converter.training.optimizers import Optimizers, orthogonal

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
def test_the_orthogonal_factor_keeps_directions_and_evens_their_sizes(O, I, seed):
    n = min(O, I)
    u, _, vt = np.linalg.svd(noise(O, I, seed=seed).astype(float), full_matrices=False)
    sizes = np.geomspace(1, 0.05, n)
    found = orthogonal(torch.from_numpy(u * sizes @ vt)).numpy()
    inside = u.T @ found @ vt.T
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-6
    assert np.diag(inside).min() > 0.6
    assert np.diag(inside).max() < 1.3
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(inside), rel=1e-6)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_a_matrix_moves_as_the_muon_of_torch_moves_it(shape):
    ours = model(nn.Linear(*shape, bias=False))
    theirs = copy.deepcopy(ours)
    start = ours[0].weight.detach().clone()
    descent = Optimizers(ours, RECIPE)
    other = torch.optim.Muon(
        theirs.parameters(), lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    for number, scale in enumerate((1.0, 0.5, 2.0)):
        graded(ours, number, scale)
        graded(theirs, number, scale)
        descent.step(1e-3)
        other.step()
    moved = theirs[0].weight.detach() - start
    apart = ours[0].weight.detach() - theirs[0].weight.detach()
    assert apart.norm() < 0.03 * moved.norm()  # theirs is computed in bfloat16


@pytest.mark.parametrize("orthogonal", [True, False])
def test_what_is_no_matrix_is_left_to_adamw(orthogonal):
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
def test_a_kernel_moves_as_a_matrix_in_any_layout(groups):
    one = graded(model(nn.Conv2d(16, 32, 3, groups=groups)))
    two = copy.deepcopy(one).to(memory_format=torch.channels_last)
    graded(two)
    for network in (one, two):
        Optimizers(network, RECIPE).step(1e-2)
    assert (one[0].weight - two[0].weight).abs().max() < 1e-6
    assert two[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wide", [False, True])
def test_nothing_moves_where_there_is_no_gradient_to_speak_of(wide):
    shape = (9, 30) if wide else (30, 9)
    assert not orthogonal(torch.zeros(shape)).any()
    column = torch.zeros(shape)
    column[:, 0] = 1.0
    found = orthogonal(column)
    assert 0.6 < found.norm() < 1.3
    assert found[:, 1:].abs().max() < 1e-6


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
        descent = Optimizers(network, recipe)
        for step in range(steps):
            network.zero_grad()
            (network(x) - x @ wanted.T).square().mean().backward()
            descent.step(0.1 * (1 - step / steps))
        return (network[0].weight - wanted).norm().item()

    assert left(RECIPE) < 0.2 * left(replace(RECIPE, orthogonal=False))


def test_what_was_remembered_is_gone_on_from():
    def stepped(restored):
        network = model(nn.Linear(16, 16), nn.Linear(16, 2))
        descent = Optimizers(network, RECIPE)
        graded(network)
        descent.step(1e-2)
        if restored:
            moments = {name: tensor.clone() for name, tensor in descent.moments().items()}
            descent = Optimizers(network, RECIPE)
            descent.restore(moments)
        graded(network, 1)
        descent.step(1e-2)
        return list(network.parameters())

    assert all(torch.equal(a, b) for a, b in zip(stepped(True), stepped(False)))


def test_what_is_forgotten_counts_no_more():
    fresh, used = (model(nn.Linear(16, 16)) for _ in range(2))
    descent = Optimizers(used, RECIPE)
    graded(used)
    descent.step(0.0)
    descent.forget()
    descents = Optimizers(fresh, RECIPE), descent
    for network, each in zip((fresh, used), descents):
        graded(network, 1)
        each.step(1e-2)
    assert torch.equal(fresh[0].weight, used[0].weight)


def test_what_has_no_gradient_stays():
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
