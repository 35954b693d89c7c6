"""A small network and its student, data, and a short training of the one toward the other."""

import copy
from dataclasses import replace

import numpy as np
import torch
from networks import noise
from torch import nn

from converter.data.data import from_arrays
from converter.decomposition.conv import Chain, Conv
from converter.models.modules import read_module, to_modules
from converter.training.losses import distillation, distillation_loss
from converter.training.task import Recipe, TrainingTask
from converter.training.train import train

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
