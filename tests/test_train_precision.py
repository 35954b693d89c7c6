"""Training in half precision and in bfloat16, and in float32 where these bring nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import noise
from torch import nn
from train_cases import QUICK, TEST, Net, data, loss_of, pair, same, trained

from converter.data.data import from_arrays
from converter.models.source import open_source
from converter.options import Options
from converter.processes import Resources, process_group
from converter.training.distill import distill
from converter.training.phases import list_phases
from converter.training.task import Recipe, Trained
from converter.training.train import train_with_fp32_fallback


def test_a_half_precision_model_is_trained_and_stays_one():
    student, teacher = (model.half() for model in pair())
    x = noise(200, 3, 8, 8, seed=3).astype(np.float16)
    result = trained(student, teacher, from_arrays({"x": x}, "noise"), replace(QUICK, epochs=5))
    assert result.best_loss < 0.9 * result.first_loss
    assert {tensor.dtype for tensor in result.model.parameters()} == {torch.float16}


def test_bfloat16_is_left_to_devices_that_have_it():
    recipe = replace(QUICK, epochs=1)
    whole, half = (
        trained(*pair(), data(), replace(recipe, bfloat16=b)).model for b in (False, True)
    )
    assert same(whole, half) == (not process_group("cpu").computes_bfloat16())
    assert (whole(TEST) - half(TEST)).norm() < 0.1 * whole(TEST).norm()


@pytest.mark.parametrize("size", [0, 1000], ids=["apart", "cancelling"])
def test_float32_is_used_if_bfloat16_does_not_lower_the_loss(size, tmp_path, monkeypatch):
    monkeypatch.setenv("FLATCONV_CACHE", str(tmp_path))
    student, teacher = pair()
    kernel, point = student.body[0].weight.detach(), student.body[1]
    most = size * torch.from_numpy(noise(*kernel.shape, seed=5))
    first = nn.Conv2d(8, 2 * len(kernel), 3, padding=1, bias=False)
    second = nn.Conv2d(2 * len(kernel), 8, 1)
    first.weight.data = torch.cat([most, kernel - most])
    second.weight.data = torch.cat([point.weight.data, point.weight.data], 1)
    second.bias.data = point.bias.data.clone()
    student.body = nn.Sequential(first, second)
    options = Options.of(finetune=2, lr=1e-2, train_batch=32, precision="bfloat16")
    source = replace(open_source(teacher, TEST, options), train=data())
    names = list[str]()
    resources = Resources.of(options, progress=lambda name, done: names.append(name))
    parts = list_phases(options, {}, (), ())
    model, _, _ = distill(student, source.network, source, [], parts, resources)
    assert loss_of(model, teacher) < 0.2 * loss_of(student, teacher)
    falls_back = bool(size) and process_group("cpu").computes_bfloat16()
    assert set(names) == {"fine-tuning"} | ({"fine-tuning in float32"} if falls_back else set())


@pytest.mark.parametrize(
    ("epochs", "best_loss", "accepted", "bfloat16", "attempts"),
    [
        (1, 1.0, None, True, [True, False]),
        (1, 1.0, False, True, [True, False]),
        (1, 0.9, None, True, [True]),  # improved
        (1, 1.0, True, True, [True]),  # accepted as it was
        (0, 1.0, None, True, [True]),  # not trained
        (1, 1.0, None, False, [True]),  # the device has no bfloat16: it was float32
    ],
)
def test_training_is_repeated_in_float32_only_if_bfloat16_improved_nothing(
    epochs, best_loss, accepted, bfloat16, attempts
):
    recipe, tried = Recipe(epochs=epochs, bfloat16=True), list[Recipe]()

    def attempt(recipe):
        tried.append(recipe)
        return Trained(Net(), epochs, 1.0, best_loss, 20, accepted, bfloat16 and recipe.bfloat16)

    last = train_with_fp32_fallback(attempt, recipe)
    assert tried == [replace(recipe, bfloat16=bfloat16) for bfloat16 in attempts]
    assert last.bfloat16 == (bfloat16 and attempts[-1])
