"""What the tests of data share."""

import numpy as np
import torch

from converter.data import readers
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.models.factory import find_callable

PLAIN = Preprocessing()


def inputs_named(names):
    return [Input(name, (), np.dtype(np.float32)) for name in names]


def read(source, names=("x",), images=PLAIN):
    return readers.read(str(source), inputs_named(names), images, find_callable)


def everything(data):
    return data.read(np.arange(data.count))


def npz(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class Squares(torch.utils.data.Dataset):
    """Numbered examples."""

    def __init__(self, count=6):
        self.count = count

    def __len__(self):  # noqa: D105
        return self.count

    def __getitem__(self, number):  # noqa: D105
        return torch.full((3, 2), float(number)), number % 4


class Stream(torch.utils.data.IterableDataset):
    """Examples without numbers."""

    def __iter__(self):  # noqa: D105
        yield torch.zeros(3)
