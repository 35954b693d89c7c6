"""Data of a DataLoader."""

import random

import numpy as np
import pytest
import torch
from data_cases import Squares, Stream, inputs_named

from converter.data import readers
from converter.data.data import conform
from converter.data.images import Preprocessing
from converter.errors import ConverterError

LOADERS = {
    "pairs": lambda: torch.utils.data.DataLoader(Squares(), batch_size=4),
    "inputs": lambda: torch.utils.data.DataLoader([torch.full((3, 2), 5.0)] * 6),
    "dictionaries": lambda: torch.utils.data.DataLoader([{"x": np.full((3, 2), 5.0)}] * 6),
}


def load_from(loader):
    return readers.read("made:up", inputs_named(["x"]), Preprocessing(), lambda spec, what: loader)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_gives_its_examples_by_number(kind):
    data = load_from(LOADERS[kind])
    assert data.count == 6
    np.testing.assert_array_equal(data.read(np.array([5, 5]))["x"], np.full((2, 3, 2), 5.0))
    wanted = [0, 1, 2, 3, 0, 1] if kind == "pairs" else None
    assert wanted == (None if data.labels is None else data.labels.tolist())


class Known(Squares):
    """Examples whose classes are known, and who was read."""

    def __init__(self, targets):
        super().__init__(len(targets))
        self.targets, self.read = targets, set()

    def __getitem__(self, number):  # noqa: D105
        self.read.add(number)
        return super().__getitem__(number)


@pytest.mark.parametrize(("shift", "reads"), [(0, 8), (1, 50)])
def test_targets_of_a_dataset_are_believed_where_they_say_the_same(shift, reads):
    dataset = Known([(number + shift) % 4 for number in range(50)])
    data = load_from(lambda: torch.utils.data.DataLoader(dataset))
    assert data.labels.tolist() == [number % 4 for number in range(50)]
    assert len(dataset.read) == reads


def mixed(examples):
    """Mix the inputs of a batch, and say which they are."""
    order = torch.randperm(len(examples))
    x = torch.stack([x for x, _ in examples])
    return x + 10 * x[order], torch.tensor([y for _, y in examples])[order]


def test_what_a_collate_function_changes_at_random_is_seeded_with_its_labels():
    data = load_from(lambda: torch.utils.data.DataLoader(Squares(), collate_fn=mixed))
    indices, state = np.arange(4), torch.random.get_rng_state()
    one, same, other = (data.batch(indices, np.random.default_rng(n)) for n in (3, 3, 5))
    assert torch.equal(state, torch.random.get_rng_state())
    for (feeds, labels), equal in ((same, True), (other, False)):
        assert np.array_equal(one[0]["x"], feeds["x"]) == equal
        assert np.array_equal(one[1], labels) == equal
        np.testing.assert_array_equal(feeds["x"][:, 0, 0], indices + 10 * labels)


def test_masks_of_a_loader_are_changed_with_their_images():
    class Masks(Squares):
        def __getitem__(self, number):
            shown = torch.rand(2, 2) + number
            return shown, (shown > number + 0.5).long()

    data = load_from(lambda: torch.utils.data.DataLoader(Masks()))
    assert data.labels is None
    data = conform(data, {"x": (None, 2, 2)}, {"x": np.dtype(np.float32)})
    seen = [data.batch(np.array([4, 1]), np.random.default_rng(n)) for n in range(2)]
    for feeds, labels in seen:
        np.testing.assert_array_equal(labels, feeds["x"] > np.array([4.5, 1.5])[:, None, None])
    assert not np.array_equal(seen[0][0]["x"], seen[1][0]["x"])
    still, never = (
        data.without_augmentation().batch(np.array([4, 1]), np.random.default_rng(n))
        for n in (0, 1)
    )
    np.testing.assert_array_equal(still[0]["x"], never[0]["x"])


class Jittered(Squares):
    """Examples that a dataset changes at random."""

    def __getitem__(self, number):  # noqa: D105
        return torch.rand(2) + np.random.rand() + random.random() + number, number


def test_what_a_dataset_changes_at_random_is_seeded():
    data = load_from(lambda: torch.utils.data.DataLoader(Jittered()))
    indices = np.array([4, 1])
    plain, again = (data.read(indices)["x"] for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    one, same, other = (
        data.batch(indices, np.random.default_rng(seed))[0]["x"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other) and not np.allclose(one, plain)


class Broken(Squares):
    """Examples that cannot be read."""

    def __getitem__(self, number):  # noqa: D105
        raise KeyError(number)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Stream(), "not a stream"),
        (Squares(0), "yields nothing"),
        (Broken(), "failed: KeyError"),
        ([{"z": np.zeros(3)}], "must give the inputs x"),
        ([(np.zeros(3), "cat")], "must be numbers for each of 1 examples"),
    ],
)
def test_a_loader_that_cannot_be_read_is_refused(dataset, words):
    loader = torch.utils.data.DataLoader(Squares())
    loader = type("Loader", (), {"dataset": dataset, "collate_fn": staticmethod(loader.collate_fn)})
    with pytest.raises(ConverterError, match=words):
        load_from(lambda: loader)
