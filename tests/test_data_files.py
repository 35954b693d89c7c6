"""Data in .npy files, and in .pt files of tensors."""

import numpy as np
import pytest
import torch
from networks import noise

from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.data.readers import read
from converter.errors import ConverterError
from converter.models.factory import find_callable

IMAGE = Input("image", (None, 3, 4, 4), np.dtype(np.float32))
MASK = Input("mask", (None, 2), np.dtype(np.float32))
X, M, Y = noise(5, 3, 4, 4), noise(5, 2, seed=1), np.arange(5)
TENSORS = {"image": torch.from_numpy(X), "mask": torch.from_numpy(M), "y": torch.from_numpy(Y)}


def loaded(path, *inputs):
    return read(path, inputs or [IMAGE], Preprocessing(), find_callable)


def test_an_npy_file_holds_the_input(tmp_path):
    np.save(tmp_path / "x.npy", X)
    data = loaded(tmp_path / "x.npy")
    assert data.count == 5 and data.labels is None
    assert np.array_equal(data.read(np.array([3, 1]))["image"], X[[3, 1]])


def test_images_in_an_npy_file_are_scaled(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.save(tmp_path / "x.npy", x)
    read = loaded(tmp_path / "x.npy").read(np.arange(5))["image"]
    assert np.allclose(read, x.transpose(0, 3, 1, 2) / 255)


@pytest.mark.parametrize(
    ("content", "inputs", "labelled"),
    [
        (TENSORS["image"], [IMAGE], False),
        ((TENSORS["image"], TENSORS["y"]), [IMAGE], True),
        ({"x": TENSORS["image"], "y": TENSORS["y"]}, [IMAGE], True),
        (TENSORS, [IMAGE, MASK], True),
        ([TENSORS["image"][:2], TENSORS["image"][2:]], [IMAGE], False),
    ],
    ids=["tensor", "tuple", "x and y", "two inputs", "batches"],
)
def test_tensors_are_read(content, inputs, labelled, tmp_path):
    torch.save(content, tmp_path / "data.pt")
    data = loaded(tmp_path / "data.pt", *inputs)
    feeds = data.read(np.arange(5))
    assert np.array_equal(feeds["image"], X)
    assert [*feeds] == [item.name for item in inputs]
    assert (data.labels is not None) == labelled
    assert not labelled or np.array_equal(data.labels, Y)


@pytest.mark.parametrize("name", ["x.npy", "x.pt", "x.pth"])
def test_a_file_that_is_missing_or_damaged_is_refused(name, tmp_path):
    with pytest.raises(ConverterError, match=f"{name} does not exist"):
        loaded(tmp_path / name)
    (tmp_path / name).write_text("1, 2, 3")
    with pytest.raises(ConverterError, match=f"{name} is not a sound"):
        loaded(tmp_path / name)


def test_code_in_data_does_not_run(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ConverterError, match=r"not a sound \.npy file"):
        loaded(tmp_path / "x.npy")
    torch.save(torch.nn.ReLU(), tmp_path / "x.pt")
    with pytest.raises(ConverterError, match="not a sound file of tensors"):
        loaded(tmp_path / "x.pt")
