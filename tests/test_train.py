"""Training toward the original: it lowers the loss, is reproducible, and keeps the best weights."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_cases import QUICK, TEST, Net, data, loss_of, pair, same, trained

from converter.training.losses import reconstruction, relative_squared_error


def test_training_brings_a_network_closer_to_its_original():
    student, teacher = pair()
    before = copy.deepcopy(student)
    fractions = []
    recipe = replace(QUICK, epochs=15)
    result = trained(student, teacher, data(512), recipe, progress=fractions.append)
    assert loss_of(result.model, teacher) < 0.5 * loss_of(student, teacher)
    assert result.best_loss < result.first_loss
    assert not result.model.training
    assert same(student, before)
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_features_come_closer_by_reconstruction():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=10)
    result = trained(student, teacher, data(512), recipe, loss=reconstruction, features=["body"])

    @torch.no_grad()
    def error(model):
        features = []
        for net in (model, teacher):
            net.body.register_forward_hook(lambda module, inputs, output: features.append(output))
            net(TEST)
        return relative_squared_error(features[0], features[-1]).item()

    assert error(result.model) < 0.9 * error(student)


def test_reconstruction_does_not_change_later_layers():
    student, teacher = pair()
    recipe = replace(QUICK)
    result = trained(student, teacher, data(), recipe, loss=reconstruction, features=["body"])
    assert torch.equal(result.model.head.weight, student.head.weight)


def test_training_is_seeded():
    student, teacher = pair()
    once, again, other = (
        trained(student, teacher, data(), replace(QUICK, seed=seed)).model for seed in (7, 7, 8)
    )
    assert same(once, again)
    assert not same(once, other)


def test_training_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    trained(*pair(dropout=0.5), data(), QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_of_batch_norm_are_kept():
    student, teacher = pair()
    result = trained(student, teacher, data(), QUICK).model
    assert torch.equal(result.norm.running_mean, student.norm.running_mean)
    assert torch.equal(result.norm.running_var, student.norm.running_var)
    assert not torch.equal(result.norm.weight, student.norm.weight)


def test_the_best_weights_are_kept():
    student, teacher = pair()
    assert same(trained(student, teacher, data(), replace(QUICK, lr=1e3)).model, student)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=1)
    whole, parts = (
        trained(student, teacher, data(), replace(recipe, accumulate=n)).model for n in (1, 4)
    )
    start = student.state_dict()
    for name, tensor in whole.state_dict().items():
        moved = (tensor - start[name]).float().norm()
        assert (tensor - parts.state_dict()[name]).float().norm() <= 0.1 * moved


def test_training_stops_when_the_holdout_outputs_are_accepted():
    student, teacher = pair()
    calls = []

    def stop(before, after):
        calls.append((np.concatenate(before).shape, np.concatenate(after).shape))
        return len(calls) == 3

    result = trained(student, teacher, data(), replace(QUICK, epochs=9), stop_when=stop)
    assert result.epochs == 0.5  # called before training, and after each quarter of the first epoch
    assert calls[0] == ((20, 4), (20, 4))


def test_weights_that_are_accepted_from_the_start_are_not_changed():
    student, teacher = pair()
    result = trained(student, teacher, data(), QUICK, stop_when=lambda *_: True)
    assert result.epochs == 0
    assert same(result.model, student)


@pytest.mark.parametrize("scaled", [True, False])
def test_steps_follow_the_size_of_the_weights(scaled):
    student, teacher = pair()
    with torch.no_grad():
        student.body[0].weight *= 10
        student.body[1].weight /= 10
    recipe = replace(QUICK, epochs=1, lr=1e-4, scaled_steps=scaled)
    result = trained(student, teacher, data(), recipe).model
    moved = [
        ((new.weight - old.weight).norm() / old.weight.norm()).item()
        for new, old in zip(result.body, student.body)
    ]
    assert (max(moved) < 5 * min(moved)) == scaled


def test_a_model_that_views_its_features_is_trained():
    class Viewing(Net):
        def forward(self, x):
            x = torch.relu(self.body(torch.relu(self.norm(self.stem(x)))))
            return self.head(x.view(x.shape[0], 8, -1).mean(2))

    student, teacher = pair()
    student.__class__ = teacher.__class__ = Viewing
    assert not same(trained(student, teacher, data(), QUICK).model, student)


def test_the_trained_model_can_be_pickled_and_has_no_hooks():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=1)
    result = trained(student, teacher, data(), recipe, loss=reconstruction, features=["body"])
    again = pickle.loads(pickle.dumps(result.model))
    assert same(again, result.model)
    assert not any(module._forward_hooks for module in result.model.modules())
    assert result.model.body[0].weight.is_contiguous()


def test_without_epochs_the_network_is_only_evaluated():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=0)
    for answer in (True, False):
        result = trained(
            student, teacher, data(), recipe, stop_when=lambda *_, answer=answer: answer
        )
        assert result.accepted is answer and same(result.model, student)
        assert (result.epochs, result.holdout) == (0, 20)


def test_an_output_without_axes_is_evaluated_with_the_others():
    class Two(Net):
        def forward(self, x):
            scores = super().forward(x)
            return scores, scores.mean()

    torch.manual_seed(0)
    teacher, shapes = Two().eval(), []

    def stop(before, after):
        shapes.extend(rows.shape for rows in before)
        return False

    trained(copy.deepcopy(teacher), teacher, data(), replace(QUICK, epochs=0), stop_when=stop)
    assert shapes == [(20, 4), (1,)]
