"""Losses: of probabilities and scores, with labels, and of the user."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import noise
from train_cases import QUICK, TEST, data, pair, trained

from converter.errors import ConverterError
from converter.training.losses import distillation_loss, import_loss, relative_squared_error


def test_labels_pull_the_outputs_toward_them():
    student, teacher = pair()
    recipe, labels = replace(QUICK, epochs=8), np.full(200, 2)
    with_labels, without = (
        trained(student, teacher, data(**more), recipe).model(TEST).softmax(1)[:, 2].mean().item()
        for more in ({"y": labels}, {})
    )
    assert with_labels > 1.1 * without


def test_probabilities_are_compared_as_such():
    logits, other = torch.from_numpy(noise(50, 4)) * 3, torch.from_numpy(noise(50, 4, seed=1)) * 3
    from_logits = distillation_loss(other, logits) - 0.1 * relative_squared_error(other, logits)
    chances = [rows.softmax(1) for rows in (other, logits)]
    assert torch.allclose(
        distillation_loss(*chances) - 0.1 * relative_squared_error(*chances), from_logits, 1e-3
    )


def test_a_constant_added_to_all_scores_is_a_loss():
    rows = torch.from_numpy(noise(50, 4))
    assert distillation_loss(rows + 7, rows) > 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unusable:nothing", "no callable"),
        ("unusable:broken", "failed"),
        ("unusable:two", "one num"),
    ],
)
def test_a_loss_of_the_user_must_work(text, reason, tmp_path, monkeypatch):
    (tmp_path / "unusable.py").write_text(
        "def broken(outputs, targets, labels): return outputs[5]\n"
        "def two(outputs, targets, labels): return outputs[0][:2]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConverterError, match=reason):
        trained(*pair(), data(), QUICK, loss=import_loss(text))


def test_a_loss_of_the_user_is_used(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def zero(outputs, targets, labels): return outputs[0].square().mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    student, teacher = pair()
    result = trained(
        student, teacher, data(), replace(QUICK, epochs=6), loss=import_loss("mine:zero")
    )
    assert result.model(TEST).square().mean() < 0.7 * student(TEST).square().mean()


def test_labels_of_any_kind_are_for_a_loss_of_the_user():
    masks = noise(200, 4, seed=8).astype(np.float64)
    kinds = []

    def toward(outputs, targets, labels):
        kinds.append((labels.dtype, tuple(labels.shape[1:])))
        return (outputs[0] - labels).square().mean()

    student, teacher = pair()
    result = trained(student, teacher, data(y=masks), QUICK, loss=toward)
    assert set(kinds) == {(torch.float32, (4,))} and result.best_loss < result.first_loss
    kinds.clear()
    trained(student, teacher, data(y=masks.astype(np.uint8)), QUICK, loss=toward)
    assert set(kinds) == {(torch.int64, (4,))}


def test_a_loss_that_is_no_number_at_first_is_refused():
    def spread(outputs, targets, labels):
        return (outputs[0] / outputs[0].std(0)).square().mean() * float("nan")

    with pytest.raises(ConverterError, match="loses nan on noise before any training"):
        trained(*pair(), data(), QUICK, loss=spread)
