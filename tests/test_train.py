"""Training toward the original: it lowers the loss, is reproducible, and resumes exactly."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import noise
from torch import nn

from converter.data.data import from_arrays
from converter.decomposition.conv import Chain, Conv
from converter.errors import ConverterError
from converter.models.modules import read_module, to_modules
from converter.models.source import open_source
from converter.options import Options
from converter.processes import Resources, process_group
from converter.training.batches import Batches
from converter.training.checkpoint import Checkpoint, read_checkpoint
from converter.training.distill import distill
from converter.training.losses import (
    distillation,
    distillation_loss,
    import_loss,
    reconstruction,
    relative_squared_error,
)
from converter.training.phases import list_phases
from converter.training.task import Recipe, Trained, TrainingTask
from converter.training.train import train, train_with_fp32_fallback

QUICK = Recipe(epochs=2, lr=1e-2, batch_size=32)


class Net(nn.Module):
    """A few convolutions, one of them a chain in the student."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.dropout = dropout

    def forward(self, x):
        x = self.body(torch.relu(self.norm(self.stem(x))))
        x = nn.functional.dropout(torch.relu(x).mean((2, 3)), self.dropout, self.training)
        return self.head(x)


def cut(conv, rank):
    """The first singular components of a kernel, as a chain of two steps."""
    u, s, v = np.linalg.svd(conv.kernel.reshape(conv.O, -1), full_matrices=False)
    kernel = (s[:rank, None] * v[:rank]).reshape(rank, *conv.kernel.shape[1:])
    point = Conv(u[:, :rank, None, None].copy(), conv.bias, (1, 1), ((0, 0),) * 2, (1, 1))
    return Chain((replace(conv, kernel=kernel, bias=None), point)).balanced()


def pair(dropout=0.0, rank=3):
    """A teacher and its student."""
    torch.manual_seed(0)
    teacher = Net(dropout).eval()
    with torch.no_grad():
        teacher.norm.running_var.fill_(0.5)
        teacher.head.weight *= 20
    student = copy.deepcopy(teacher)
    student.body = to_modules(cut(read_module(teacher.body), rank))
    return student.eval(), teacher


def trained(student, teacher, data, recipe, loss=distillation, **more):
    """Train; ``features`` and ``stop_when`` belong to the task, all else to the call."""
    task = {name: more.pop(name) for name in ("features", "stop_when") if name in more}
    return train(TrainingTask(student, teacher, data, loss, **task), recipe, **more)


def data(count=200, **more):
    return from_arrays({"x": noise(count, 3, 8, 8, seed=3)} | more, "noise")


TEST = torch.from_numpy(noise(128, 3, 8, 8, seed=4))


@torch.no_grad()
def loss_of(model, teacher):
    return distillation_loss(model(TEST), teacher(TEST)).item()


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


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


def test_labels_pull_the_outputs_toward_them():
    student, teacher = pair()
    recipe, labels = replace(QUICK, epochs=8), np.full(200, 2)
    with_labels, without = (
        trained(student, teacher, data(**more), recipe).model(TEST).softmax(1)[:, 2].mean().item()
        for more in ({"y": labels}, {})
    )
    assert with_labels > 1.1 * without


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


def test_a_half_precision_model_is_trained_and_stays_one():
    student, teacher = (model.half() for model in pair())
    x = noise(200, 3, 8, 8, seed=3).astype(np.float16)
    result = trained(student, teacher, from_arrays({"x": x}, "noise"), replace(QUICK, epochs=5))
    assert result.best_loss < 0.9 * result.first_loss
    assert {tensor.dtype for tensor in result.model.parameters()} == {torch.float16}


def test_the_trained_model_can_be_pickled_and_has_no_hooks():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=1)
    result = trained(student, teacher, data(), recipe, loss=reconstruction, features=["body"])
    again = pickle.loads(pickle.dumps(result.model))
    assert same(again, result.model)
    assert not any(module._forward_hooks for module in result.model.modules())
    assert result.model.body[0].weight.is_contiguous()


def test_networks_with_different_outputs_are_refused():
    student, teacher = pair()
    teacher.head = nn.Linear(8, 5)
    with pytest.raises(ConverterError, match="gives other outputs than the original"):
        trained(student, teacher, data(), QUICK)


def test_outputs_without_a_gradient_are_refused():
    class Choosing(Net):
        def forward(self, x):
            return super().forward(x).argmax(1).float()

    student, teacher = pair()
    student.__class__ = teacher.__class__ = Choosing
    with pytest.raises(ConverterError, match="has no gradient"):
        trained(student, teacher, data(), QUICK)


def test_inputs_that_a_model_cannot_take_are_refused():
    with pytest.raises(ConverterError, match="cannot be trained on noise"):
        trained(*pair(), from_arrays({"x": noise(50, 2, 8, 8)}, "noise"), QUICK)


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


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("accumulate", [1, 200])
def test_an_epoch_is_every_example_once(batch_size, accumulate):
    recipe = replace(QUICK, batch_size=batch_size, accumulate=accumulate)
    batches = Batches(data(101), recipe, 0, 1)
    for epoch in range(2):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        parts = [part for step in steps for part in batches[step]]
        assert len({x.tobytes() for inputs, _, _ in parts for x in inputs[0].numpy()}) == 101
        assert sum(len(inputs[0]) for inputs, _, _ in parts) == 101
        assert sum(share for _, _, share in parts) == pytest.approx(len(steps))


def test_processes_share_every_batch():
    both = [Batches(data(100), replace(QUICK, batch_size=10), rank, 2) for rank in range(2)]
    one, two = ({x.tobytes() for inputs, _, _ in b[3] for x in inputs[0].numpy()} for b in both)
    assert len(one | two) == 10 and not one & two


def test_more_processes_than_examples_are_refused():
    with pytest.raises(ConverterError, match="an example for each of 32"):
        Batches(data(20), QUICK, 0, 32)


def test_worker_processes_read_the_same_batches(monkeypatch):
    student, teacher = pair()
    one, two = (trained(student, teacher, data(), replace(QUICK, workers=n)).model for n in (0, 2))
    assert same(one, two)


@pytest.mark.parametrize("count", [1, 2])
def test_training_needs_data(count):
    with pytest.raises(ConverterError, match="too few to train on"):
        trained(*pair(), data(count), QUICK)


def test_training_needs_the_device():
    with pytest.raises(ConverterError, match="Device 'nowhere' cannot be used"):
        trained(*pair(), data(), QUICK, device="nowhere")


@pytest.mark.parametrize(
    "labels", [np.full(200, 4), np.full(200, -1), np.full(200, 0.5), np.zeros((200, 4, 4), int)]
)
def test_labels_must_be_classes_of_the_network(labels):
    with pytest.raises(ConverterError, match="do not fit the network's outputs of shape"):
        trained(*pair(), data(y=labels), QUICK)


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


@pytest.mark.parametrize(("count", "size"), [(330, 32), (200, 32), (41, 8), (1000, 128), (30, 2)])
def test_no_held_out_batch_is_of_one_example(count, size):
    sizes = []

    def loss(outputs, targets, labels):
        if not torch.is_grad_enabled():
            sizes.append(len(outputs[0]))
        return relative_squared_error(outputs[0], targets[0])

    result = trained(*pair(), data(count), replace(QUICK, epochs=0, batch_size=size), loss=loss)
    assert sum(sizes) == result.holdout and min(sizes) > 1 and max(sizes) <= size + 1


@pytest.mark.parametrize(
    ("count", "size", "processes"),
    [
        (1151, 128, 1),
        (200, 32, 1),
        (33, 16, 1),
        (1151, 128, 3),
        (900, 8, 8),
        (901, 4, 4),
        (22, 2, 2),
    ],
)
def test_no_step_takes_more_examples_than_the_batch_size(count, size, processes):
    recipe = replace(QUICK, batch_size=size)
    shares = [Batches(data(count), recipe, rank, processes) for rank in range(processes)]
    steps = [[len(s[n][0][0][0]) for s in shares] for n in range(shares[0].per_epoch)]
    assert sum(map(sum, steps)) == count and min(map(min, steps)) > 0
    # One more where, otherwise, a process had none.
    assert max(map(sum, steps)) <= size + (count // processes < -(-count // size))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_reading_a_step_stays_one_sentence(workers):
    whole = data()

    def read(indices):
        if 150 in indices:
            raise ConverterError("Data noise failed: its disk is gone.")
        return whole.read(indices)

    recipe = replace(QUICK, workers=workers, seed=1)
    with pytest.raises(ConverterError) as raised:
        trained(*pair(), replace(whole, read=read), recipe)
    assert str(raised.value) == "Data noise failed: its disk is gone."


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


@pytest.mark.parametrize("step", [4097, 5_000_001])
def test_a_single_process_equals_itself_at_any_step(step):
    group = process_group("cpu")
    assert group.all_equal(step)
    assert group.all_reduce_mean(step**2) == step**2
