"""Training toward the original: it learns, it is seeded, it goes on where it was killed."""

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
from converter.processes import process_group
from converter.training.batches import Batches
from converter.training.checkpoint import State, read_checkpoint
from converter.training.distill import distill
from converter.training.losses import Recipe, distance, own_loss, reconstruction, relative_error
from converter.training.train import Trained, train_with_fp32_fallback, tune

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


def data(count=200, **more):
    return from_arrays({"x": noise(count, 3, 8, 8, seed=3)} | more, "noise")


TEST = torch.from_numpy(noise(128, 3, 8, 8, seed=4))


@torch.no_grad()
def loss_of(model, teacher):
    return distance(model(TEST), teacher(TEST)).item()


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_brings_a_network_closer_to_its_original():
    student, teacher = pair()
    before = copy.deepcopy(student)
    told = []
    recipe = replace(QUICK, epochs=15)
    tuned = tune(student, teacher, data(512), recipe, progress=told.append)
    assert loss_of(tuned.model, teacher) < 0.5 * loss_of(student, teacher)
    assert tuned.best_loss < tuned.first_loss
    assert not tuned.model.training
    assert same(student, before)
    assert told == sorted(told) and told[-1] == 1.0


def test_features_come_closer_by_reconstruction():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=10)
    tuned = tune(student, teacher, data(512), recipe, loss=reconstruction, features=["body"])

    @torch.no_grad()
    def error(model):
        seen = []
        for net in (model, teacher):
            net.body.register_forward_hook(lambda module, inputs, output: seen.append(output))
            net(TEST)
        return relative_error(seen[0], seen[-1]).item()

    assert error(tuned.model) < 0.9 * error(student)


def test_reconstruction_leaves_the_layers_behind_alone():
    student, teacher = pair()
    recipe = replace(QUICK)
    tuned = tune(student, teacher, data(), recipe, loss=reconstruction, features=["body"])
    assert torch.equal(tuned.model.head.weight, student.head.weight)


def test_training_is_seeded():
    student, teacher = pair()
    once, again, other = (
        tune(student, teacher, data(), replace(QUICK, seed=seed)).model for seed in (7, 7, 8)
    )
    assert same(once, again)
    assert not same(once, other)


def test_training_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    tune(*pair(dropout=0.5), data(), QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_of_batch_norm_are_kept():
    student, teacher = pair()
    tuned = tune(student, teacher, data(), QUICK).model
    assert torch.equal(tuned.norm.running_mean, student.norm.running_mean)
    assert torch.equal(tuned.norm.running_var, student.norm.running_var)
    assert not torch.equal(tuned.norm.weight, student.norm.weight)


def test_the_best_weights_are_kept():
    student, teacher = pair()
    assert same(tune(student, teacher, data(), replace(QUICK, lr=1e3)).model, student)


def test_labels_count():
    student, teacher = pair()
    recipe, labels = replace(QUICK, epochs=8), np.full(200, 2)
    with_labels, without = (
        tune(student, teacher, data(**more), recipe).model(TEST).softmax(1)[:, 2].mean().item()
        for more in ({"y": labels}, {})
    )
    assert with_labels > 1.1 * without


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=1)
    whole, parts = (
        tune(student, teacher, data(), replace(recipe, accumulate=n)).model for n in (1, 4)
    )
    start = student.state_dict()
    for name, tensor in whole.state_dict().items():
        moved = (tensor - start[name]).float().norm()
        assert (tensor - parts.state_dict()[name]).float().norm() <= 0.1 * moved


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [0.05, 0.4, 0.75])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(at, tmp_path, monkeypatch):
    monkeypatch.setattr("converter.training.train.SAVE_S", 0.0)
    student, teacher = pair()
    recipe = replace(QUICK, epochs=4)

    def kill(done):
        if done >= at:
            raise Stop

    path = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        tune(student, teacher, data(), recipe, state=path, progress=kill)
    steps = []
    resumed = tune(student, teacher, data(), recipe, state=path, resume=True, progress=steps.append)
    assert same(resumed.model, tune(student, teacher, data(), recipe).model)
    assert steps == [] or steps[0] > at - 0.1
    assert same(
        tune(student, teacher, data(), recipe, state=path, resume=True).model, resumed.model
    )


@pytest.mark.parametrize(
    "damage", ["nothing there", "cut short", "a byte changed", "of another network"]
)
def test_a_state_that_does_not_fit_is_no_state(damage, tmp_path):
    student, teacher = pair()
    path, recipe = tmp_path / "state.safetensors", replace(QUICK, epochs=1)
    tune(student, teacher, data(), recipe, state=path)
    assert read_checkpoint(path, student.state_dict()).step == 8
    if damage == "nothing there":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "a byte changed":
        held = bytearray(path.read_bytes())
        held[-50] ^= 1
        path.write_bytes(held)
    else:
        State(3, {}, {}, {}, {}, 1.0, 1.0).save(path)
    assert read_checkpoint(path, student.state_dict()) is None
    resumed = tune(student, teacher, data(), recipe, state=path, resume=True)
    assert same(resumed.model, tune(student, teacher, data(), recipe).model)


def test_training_ends_when_it_is_enough():
    student, teacher = pair()
    asked = []

    def enough(before, after, labels):
        asked.append((np.concatenate(before).shape, np.concatenate(after).shape, labels))
        return len(asked) == 3

    tuned = tune(student, teacher, data(), replace(QUICK, epochs=9), enough=enough)
    assert tuned.epochs == 0.5  # asked before, and after each quarter of the first epoch
    assert asked[0] == ((20, 4), (20, 4), None)


def test_what_is_enough_from_the_start_is_left_alone():
    student, teacher = pair()
    tuned = tune(student, teacher, data(), QUICK, enough=lambda *held: True)
    assert tuned.epochs == 0
    assert same(tuned.model, student)


@pytest.mark.parametrize("scaled", [True, False])
def test_steps_follow_the_size_of_the_weights(scaled):
    student, teacher = pair()
    with torch.no_grad():
        student.body[0].weight *= 10
        student.body[1].weight /= 10
    recipe = replace(QUICK, epochs=1, lr=1e-4, scaled_steps=scaled)
    tuned = tune(student, teacher, data(), recipe).model
    moved = [
        ((new.weight - old.weight).norm() / old.weight.norm()).item()
        for new, old in zip(tuned.body, student.body)
    ]
    assert (max(moved) < 5 * min(moved)) == scaled


def test_a_model_that_views_its_features_is_trained():
    class Viewing(Net):
        def forward(self, x):
            x = torch.relu(self.body(torch.relu(self.norm(self.stem(x)))))
            return self.head(x.view(x.shape[0], 8, -1).mean(2))

    student, teacher = pair()
    student.__class__ = teacher.__class__ = Viewing
    assert not same(tune(student, teacher, data(), QUICK).model, student)


def test_a_half_precision_model_is_trained_and_stays_one():
    student, teacher = (model.half() for model in pair())
    x = noise(200, 3, 8, 8, seed=3).astype(np.float16)
    tuned = tune(student, teacher, from_arrays({"x": x}, "noise"), replace(QUICK, epochs=5))
    assert tuned.best_loss < 0.9 * tuned.first_loss
    assert {tensor.dtype for tensor in tuned.model.parameters()} == {torch.float16}


def test_what_ships_can_be_pickled_and_holds_nothing_more():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=1)
    tuned = tune(student, teacher, data(), recipe, loss=reconstruction, features=["body"])
    again = pickle.loads(pickle.dumps(tuned.model))
    assert same(again, tuned.model)
    assert not any(module._forward_hooks for module in tuned.model.modules())
    assert tuned.model.body[0].weight.is_contiguous()


def test_networks_of_other_outputs_teach_nothing():
    student, teacher = pair()
    teacher.head = nn.Linear(8, 5)
    with pytest.raises(ConverterError, match="gives other outputs than the original"):
        tune(student, teacher, data(), QUICK)


def test_what_has_no_gradient_is_not_trained():
    class Choosing(Net):
        def forward(self, x):
            return super().forward(x).argmax(1).float()

    student, teacher = pair()
    student.__class__ = teacher.__class__ = Choosing
    with pytest.raises(ConverterError, match="does not depend on its weights"):
        tune(student, teacher, data(), QUICK)


def test_inputs_that_a_model_cannot_take_are_refused():
    with pytest.raises(ConverterError, match="cannot be trained on noise"):
        tune(*pair(), from_arrays({"x": noise(50, 2, 8, 8)}, "noise"), QUICK)


def test_probabilities_are_compared_as_such():
    logits, other = torch.from_numpy(noise(50, 4)) * 3, torch.from_numpy(noise(50, 4, seed=1)) * 3
    from_logits = distance(other, logits) - 0.1 * relative_error(other, logits)
    chances = [rows.softmax(1) for rows in (other, logits)]
    assert torch.allclose(distance(*chances) - 0.1 * relative_error(*chances), from_logits, 1e-3)


def test_vectors_that_are_no_classes_must_keep_their_level():
    rows = torch.from_numpy(noise(50, 4))
    assert distance(rows + 7, rows) > 1


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
    seen = [{x.tobytes() for inputs, _, _ in b[3] for x in inputs[0].numpy()} for b in both]
    assert len(seen[0] | seen[1]) == 10 and not seen[0] & seen[1]


def test_more_processes_than_examples_are_refused():
    with pytest.raises(ConverterError, match="an example for each of 32"):
        Batches(data(20), QUICK, 0, 32)


def test_processes_read_what_one_would(monkeypatch):
    student, teacher = pair()
    one, two = (tune(student, teacher, data(), replace(QUICK, workers=n)).model for n in (0, 2))
    assert same(one, two)


@pytest.mark.parametrize("count", [1, 2])
def test_training_needs_data(count):
    with pytest.raises(ConverterError, match="too few to train on"):
        tune(*pair(), data(count), QUICK)


def test_training_needs_the_device():
    with pytest.raises(ConverterError, match="Device 'nowhere' cannot be used"):
        tune(*pair(), data(), QUICK, device="nowhere")


@pytest.mark.parametrize(
    "labels", [np.full(200, 4), np.full(200, -1), np.zeros(200), np.zeros((200, 4, 4), int)]
)
def test_labels_must_be_classes_of_the_network(labels):
    with pytest.raises(ConverterError, match="do not fit the network's outputs of shape"):
        tune(*pair(), data(y=labels), QUICK)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("lessons:nothing", "no callable"), ("lessons:broken", "failed"), ("lessons:two", "one num")],
)
def test_a_loss_of_the_user_must_work(text, reason, tmp_path, monkeypatch):
    (tmp_path / "lessons.py").write_text(
        "def broken(outputs, targets, labels): return outputs[5]\n"
        "def two(outputs, targets, labels): return outputs[0][:2]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConverterError, match=reason):
        tune(*pair(), data(), QUICK, loss=own_loss(text))


def test_a_loss_of_the_user_is_used(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def zero(outputs, targets, labels): return outputs[0].square().mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    student, teacher = pair()
    tuned = tune(student, teacher, data(), replace(QUICK, epochs=6), loss=own_loss("mine:zero"))
    assert tuned.model(TEST).square().mean() < 0.7 * student(TEST).square().mean()


def test_labels_of_any_kind_are_for_a_loss_of_the_user():
    masks = noise(200, 4, seed=8).astype(np.float64)
    seen = []

    def toward(outputs, targets, labels):
        seen.append((labels.dtype, tuple(labels.shape[1:])))
        return (outputs[0] - labels).square().mean()

    student, teacher = pair()
    tuned = tune(student, teacher, data(y=masks), QUICK, loss=toward)
    assert set(seen) == {(torch.float32, (4,))} and tuned.best_loss < tuned.first_loss
    seen.clear()
    tune(student, teacher, data(y=masks.astype(np.uint8)), QUICK, loss=toward)
    assert set(seen) == {(torch.int64, (4,))}


def test_a_loss_that_is_no_number_at_first_is_refused():
    def spread(outputs, targets, labels):
        return (outputs[0] / outputs[0].std(0)).square().mean() * float("nan")

    with pytest.raises(ConverterError, match="loses nan on noise before any training"):
        tune(*pair(), data(), QUICK, loss=spread)


@pytest.mark.parametrize(("count", "size"), [(330, 32), (200, 32), (41, 8), (1000, 128), (30, 2)])
def test_no_held_out_batch_is_of_one_example(count, size):
    sizes = []

    def loss(outputs, targets, labels):
        if not torch.is_grad_enabled():
            sizes.append(len(outputs[0]))
        return relative_error(outputs[0], targets[0])

    tuned = tune(*pair(), data(count), replace(QUICK, epochs=0, batch_size=size), loss=loss)
    assert sum(sizes) == tuned.held and min(sizes) > 1 and max(sizes) <= size + 1


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
def test_no_step_takes_more_examples_than_were_allowed(count, size, processes):
    recipe = replace(QUICK, batch_size=size)
    shares = [Batches(data(count), recipe, rank, processes) for rank in range(processes)]
    steps = [[len(s[n][0][0][0]) for s in shares] for n in range(shares[0].per_epoch)]
    assert sum(map(sum, steps)) == count and min(map(min, steps)) > 0
    # One more where, otherwise, a process had none.
    assert max(map(sum, steps)) <= size + (count // processes < -(-count // size))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_a_step_is_told_in_one_sentence(workers):
    whole = data()

    def read(indices):
        if 150 in indices:
            raise ConverterError("Data noise failed: its disk is gone.")
        return whole.read(indices)

    recipe = replace(QUICK, workers=workers, seed=1)
    with pytest.raises(ConverterError) as told:
        tune(*pair(), replace(whole, read=read), recipe)
    assert str(told.value) == "Data noise failed: its disk is gone."


def test_without_epochs_it_is_only_judged():
    student, teacher = pair()
    recipe = replace(QUICK, epochs=0)
    for wanted in (True, False):
        tuned = tune(student, teacher, data(), recipe, enough=lambda *held, it=wanted: it)
        assert tuned.enough is wanted and same(tuned.model, student)
        assert (tuned.epochs, tuned.held) == (0, 20)


def test_an_output_without_axes_is_judged_with_the_others():
    class Two(Net):
        def forward(self, x):
            found = super().forward(x)
            return found, found.mean()

    torch.manual_seed(0)
    teacher, shapes = Two().eval(), []

    def enough(before, after, labels):
        shapes.extend(rows.shape for rows in before)
        return False

    tune(copy.deepcopy(teacher), teacher, data(), replace(QUICK, epochs=0), enough=enough)
    assert shapes == [(20, 4), (1,)]


def test_where_an_epoch_does_harm_it_goes_back_and_learns_more_slowly(tmp_path):
    student, teacher = pair()
    recipe = replace(QUICK, epochs=8, lr=100.0)
    fast = tune(student, teacher, data(), recipe, state=tmp_path / "state.safetensors")
    assert read_checkpoint(tmp_path / "state.safetensors", student.state_dict()).share < 1
    assert fast.best_loss < fast.first_loss
    gentle = tune(student, teacher, data(), QUICK, state=tmp_path / "gentle.safetensors")
    assert read_checkpoint(tmp_path / "gentle.safetensors", student.state_dict()).share == 1
    assert gentle.best_loss < gentle.first_loss


def test_a_loss_below_zero_is_no_harm(tmp_path):
    def below(outputs, targets, labels):
        return relative_error(outputs[0], targets[0]) - 10

    student, teacher = pair()
    state = tmp_path / "state.safetensors"
    tuned = tune(student, teacher, data(), replace(QUICK, epochs=4), loss=below, state=state)
    assert tuned.best_loss < tuned.first_loss < 0
    assert read_checkpoint(state, student.state_dict()).share == 1


def test_one_epoch_is_enough_to_see_that_learning_does_harm(tmp_path):
    student, teacher = pair()
    recipe = replace(QUICK, epochs=1, lr=1.0)
    fast = tune(student, teacher, data(), recipe, state=tmp_path / "state.safetensors")
    assert read_checkpoint(tmp_path / "state.safetensors", student.state_dict()).share < 1 / 3
    assert fast.best_loss < fast.first_loss


def test_bfloat16_is_left_to_devices_that_have_it():
    recipe = replace(QUICK, epochs=1)
    whole, half = (tune(*pair(), data(), replace(recipe, bfloat16=b)).model for b in (False, True))
    assert same(whole, half) == (not process_group("cpu").computes_bfloat16())
    assert (whole(TEST) - half(TEST)).norm() < 0.1 * whole(TEST).norm()


@pytest.mark.parametrize("size", [0, 1000], ids=["apart", "cancelling"])
def test_what_bfloat16_cannot_teach_is_taught_in_float32(size, tmp_path, monkeypatch):
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
    config = Options.of(finetune=2, lr=1e-2, train_batch=32, precision="bfloat16")
    source = replace(open_source(teacher, TEST, config), train=data())
    names = list[str]()
    tuned, _, _ = distill(
        student, source.network, source, [], {}, config, lambda name, done: names.append(name)
    )
    assert loss_of(tuned, teacher) < 0.2 * loss_of(student, teacher)
    falls_back = bool(size) and process_group("cpu").computes_bfloat16()
    assert set(names) == {"fine-tuning"} | ({"fine-tuning in float32"} if falls_back else set())


@pytest.mark.parametrize(
    ("epochs", "best_loss", "enough", "bfloat16", "attempts"),
    [
        (1, 1.0, None, True, [True, False]),
        (1, 1.0, False, True, [True, False]),
        (1, 0.9, None, True, [True]),  # learnt
        (1, 1.0, True, True, [True]),  # enough as it was
        (0, 1.0, None, True, [True]),  # not trained
        (1, 1.0, None, False, [True]),  # the device has no bfloat16: it was float32
    ],
)
def test_no_more_is_trained_again_than_learnt_nothing(
    epochs, best_loss, enough, bfloat16, attempts
):
    recipe, tried = Recipe(epochs=epochs, bfloat16=True), list[Recipe]()

    def attempt(recipe):
        tried.append(recipe)
        return Trained(Net(), epochs, 1.0, best_loss, 20, enough, bfloat16 and recipe.bfloat16)

    last = train_with_fp32_fallback(attempt, recipe)
    assert tried == [replace(recipe, bfloat16=bfloat16) for bfloat16 in attempts]
    assert last.bfloat16 == (bfloat16 and attempts[-1])


@pytest.mark.parametrize("step", [4097, 5_000_001])
def test_one_process_agrees_with_itself_at_any_step(step):
    place = process_group("cpu")
    assert place.all_equal(step)
    assert place.all_reduce_mean(step**2) == step**2
