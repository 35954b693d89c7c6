"""Batches: every example once, shared by processes, and no larger than asked for."""

from dataclasses import replace

import pytest
import torch
from train_cases import QUICK, data, pair, same, trained

from converter.processes import process_group
from converter.training.batches import Batches
from converter.training.losses import relative_squared_error


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


def test_worker_processes_read_the_same_batches(monkeypatch):
    student, teacher = pair()
    one, two = (trained(student, teacher, data(), replace(QUICK, workers=n)).model for n in (0, 2))
    assert same(one, two)


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


@pytest.mark.parametrize("step", [4097, 5_000_001])
def test_a_single_process_equals_itself_at_any_step(step):
    group = process_group("cpu")
    assert group.all_equal(step)
    assert group.all_reduce_mean(step**2) == step**2
