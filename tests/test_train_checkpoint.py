"""What is saved of a training: it resumes exactly, a lowered rate is kept, damage is ignored."""

from dataclasses import replace

import pytest
from train_cases import QUICK, data, pair, same, trained

from converter.training.checkpoint import Checkpoint, read_checkpoint
from converter.training.losses import relative_squared_error


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [0.05, 0.4, 0.75])
def test_a_killed_training_resumes_to_the_same_weights(at, tmp_path, monkeypatch):
    monkeypatch.setattr("converter.training.train.SAVE_INTERVAL_S", 0.0)
    student, teacher = pair()
    recipe = replace(QUICK, epochs=4)

    def kill(done):
        if done >= at:
            raise Stop

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        trained(student, teacher, data(), recipe, checkpoint=path, progress=kill)
    steps = []
    resumed = trained(
        student, teacher, data(), recipe, checkpoint=path, resume=True, progress=steps.append
    )
    assert same(resumed.model, trained(student, teacher, data(), recipe).model)
    assert steps == [] or steps[0] > at - 0.1
    assert same(
        trained(student, teacher, data(), recipe, checkpoint=path, resume=True).model, resumed.model
    )


@pytest.mark.parametrize(
    "damage", ["nothing there", "cut short", "a byte changed", "of another network"]
)
def test_a_checkpoint_that_is_damaged_or_of_another_network_is_ignored(damage, tmp_path):
    student, teacher = pair()
    path, recipe = tmp_path / "checkpoint.safetensors", replace(QUICK, epochs=1)
    trained(student, teacher, data(), recipe, checkpoint=path)
    assert read_checkpoint(path, student.state_dict()).step == 8
    if damage == "nothing there":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "a byte changed":
        content = bytearray(path.read_bytes())
        content[-50] ^= 1
        path.write_bytes(content)
    else:
        Checkpoint(3, {}, {}, {}, {}, 1.0, 1.0).save(path)
    assert read_checkpoint(path, student.state_dict()) is None
    resumed = trained(student, teacher, data(), recipe, checkpoint=path, resume=True)
    assert same(resumed.model, trained(student, teacher, data(), recipe).model)


def test_an_epoch_that_makes_the_network_worse_is_undone_and_the_rate_lowered(tmp_path):
    student, teacher = pair()
    recipe = replace(QUICK, epochs=8, lr=100.0)
    fast = trained(student, teacher, data(), recipe, checkpoint=tmp_path / "checkpoint.safetensors")
    assert read_checkpoint(tmp_path / "checkpoint.safetensors", student.state_dict()).lr_scale < 1
    assert fast.best_loss < fast.first_loss
    slow = trained(student, teacher, data(), QUICK, checkpoint=tmp_path / "slow.safetensors")
    assert read_checkpoint(tmp_path / "slow.safetensors", student.state_dict()).lr_scale == 1
    assert slow.best_loss < slow.first_loss


def test_a_negative_loss_does_not_lower_the_rate(tmp_path):
    def below(outputs, targets, labels):
        return relative_squared_error(outputs[0], targets[0]) - 10

    student, teacher = pair()
    path = tmp_path / "checkpoint.safetensors"
    result = trained(
        student, teacher, data(), replace(QUICK, epochs=4), loss=below, checkpoint=path
    )
    assert result.best_loss < result.first_loss < 0
    assert read_checkpoint(path, student.state_dict()).lr_scale == 1


def test_the_rate_is_lowered_within_the_first_epoch(tmp_path):
    student, teacher = pair()
    recipe = replace(QUICK, epochs=1, lr=1.0)
    fast = trained(student, teacher, data(), recipe, checkpoint=tmp_path / "checkpoint.safetensors")
    assert (
        read_checkpoint(tmp_path / "checkpoint.safetensors", student.state_dict()).lr_scale < 1 / 3
    )
    assert fast.best_loss < fast.first_loss
