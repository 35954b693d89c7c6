"""Data that Python callers pass."""

import numpy as np
import pytest
import torch
from data_cases import PLAIN, Squares, Stream, everything, inputs_named, npz, pixels, read
from networks import noise

from converter.data import readers
from converter.data.data import from_arrays
from converter.data.images import Preprocessing
from converter.errors import ConverterError
from converter.models.factory import find_callable

X, Y = noise(6, 3, 2), np.arange(6) % 3
SAME = {
    "array": (X, None),
    "tensor": (torch.from_numpy(X).requires_grad_(), None),
    "mapping": ({"x": X, "y": Y}, Y),
    "x for the first input": ({"x": torch.from_numpy(X)}, None),
    "tuple of inputs": ((X,), None),
    "inputs and labels": ((X, torch.from_numpy(Y)), Y),
    "list of arrays": ([X[:4], X[4:]], None),
    "list of tuples": ([(X[:1], Y[:1]), (X[1:], Y[1:])], Y),
    "list of mappings": ([{"image": X[:5], "y": Y[:5]}, {"image": X[5:], "y": Y[5:]}], Y),
    "iterator": (iter([X[:4], X[4:]]), None),
    "loader": (torch.utils.data.DataLoader(list(zip(X, Y)), batch_size=4), Y),
}


@pytest.mark.parametrize("kind", SAME)
def test_python_objects_hold_the_same_data(kind):
    values, labels = SAME[kind]
    data = readers.read(values, inputs_named(["image"]), PLAIN, find_callable)
    assert data.count == 6 and list(everything(data)) == ["image"]
    np.testing.assert_array_equal(everything(data)["image"], X)
    assert (None if data.labels is None else data.labels.tolist()) == (
        None if labels is None else labels.tolist()
    )


def test_a_tuple_gives_several_inputs_in_order():
    data = readers.read((X, Y[:, None], Y), inputs_named(["x", "mask"]), PLAIN, find_callable)
    np.testing.assert_array_equal(everything(data)["mask"], Y[:, None])
    np.testing.assert_array_equal(data.labels, Y)


def test_images_in_memory_are_prepared_like_those_of_a_file(tmp_path):
    x, images = pixels(4, 5, 6, 3), Preprocessing(mean=(0.5,), bgr=True)
    file, memory = (
        readers.read(source, inputs_named(["x"]), images, find_callable)
        for source in (npz(tmp_path, x=x), {"x": x})
    )
    np.testing.assert_array_equal(everything(file)["x"], everything(memory)["x"])
    rng = np.random.default_rng
    shifted = [data.batch(np.arange(4), rng(0))[0]["x"] for data in (file, memory)]
    np.testing.assert_array_equal(*shifted)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((X, Y, Y), "is a tuple of 3 arrays; the network has the inputs x, and only labels"),
        ((), "is a tuple of 0 arrays"),
        ([], "Data <list> yields nothing"),
        (iter([]), "yields nothing"),
        ([X, Y], "has batches that differ"),
        ([X, {"z": X}], "has batches that differ"),
        ([[1.0, 2.0]], "must be a list of batches .*, not of list"),
        ([1.0, 2.0], "must be a list of batches .*, not of float"),
        ({"z": X}, "Data <dict> has arrays z; it lacks the network's input 'x'"),
        ({"y": Y}, "has arrays none"),
        (np.full((2, 3), "a"), "holds <U1, not numbers"),
        (np.float32(3), "above 0"),
        (np.zeros((0, 3)), "above 0"),
        (None, "holds object, not numbers"),
        ({"x": [[1.0], [1.0, 2.0]]}, "cannot be read as arrays"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), "cannot be read as arrays"),
        ((X, Y[:4]), "labels y of <tuple> must be numbers for each of 6 examples"),
        (torch.utils.data.DataLoader(Squares(0)), "Data <DataLoader> yields nothing"),
        (torch.utils.data.DataLoader(Squares(3), 4, drop_last=True), "yields nothing"),
        (torch.utils.data.DataLoader(Stream()), "not a stream"),
    ],
)
def test_python_objects_that_are_no_data_are_refused(values, words):
    with pytest.raises(ConverterError, match=words):
        readers.read(values, inputs_named(["x"]), PLAIN, find_callable)


@pytest.mark.parametrize(("count", "size", "wanted"), [(7, None, 7), (7, 3, 6), (2, 3, 3)])
def test_whole_batches_are_filled_and_cut(count, size, wanted):
    data = from_arrays({"x": np.arange(count)}, "numbers").whole_batches(size)
    np.testing.assert_array_equal(everything(data)["x"], np.arange(wanted) % count)


def test_what_is_held_out_is_changed_the_same_way_each_time(tmp_path):
    plain = read(npz(tmp_path, x=pixels(6, 8, 8, 3)))
    varied = plain.augmented(3)
    first, again = (varied.read(np.arange(4))["x"] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, plain.read(np.arange(4))["x"])
    assert not np.array_equal(first, plain.augmented(4).read(np.arange(4))["x"])


def test_what_cannot_be_changed_is_held_out_as_it_is():
    data = from_arrays({"x": np.ones((4, 3), np.float32)}, "ones")
    np.testing.assert_array_equal(data.augmented(0).read(np.arange(4))["x"], np.ones((4, 3)))
