"""Fixtures that several tests share: short races, tiny networks, a factory, the command line."""

import contextlib
import io
import itertools
import sys

import numpy as np
import onnx
import pytest
import torch
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from converter import cli
from converter.graph.network import observe_batches
from converter.timing import profile
from converter.timing import race as measure

# The same examples in every run; pytest --hypothesis-profile=default looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

FACTORY = """
import torch
from torch import nn


class Toy(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.norm(self.conv2(x)))
        return self.fc(x.amax((2, 3)))


def build(width=8):
    # BatchNorm sees normal numbers, and the outputs differ between them.
    torch.manual_seed(0)
    model = Toy(width)
    with torch.no_grad():
        model.fc.weight *= 4
        for _ in range(30):
            logits = model(torch.randn(32, 3, 8, 8))
        model.fc.bias -= logits.mean(0)
    return model


def fails(width=8):
    raise RuntimeError("no such backbone")


def number(width=8):
    return 3
"""


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test sees what the user, or an earlier run, has solved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLATCONV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny layers: several threads only wait for one another, processes cost their start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def short_races():
    """Few rounds: these tests ask whether a race is run, seldom how it ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "BUDGET_S", 0.2)
        patch.setattr(measure, "FEWEST_ROUNDS", 8)
        patch.setattr(measure, "MOST_ROUNDS", 10)
        for name, value in {"PROFILE_S": 0.02, "RACED": 2, "ROUNDS": 3, "BLOCK_S": 0.005}.items():
            patch.setattr(profile, name, value)
        yield


def observe(model, names, feeds):
    """Run a network once and give inner tensors."""
    once = list(dict.fromkeys(names))
    return next(observe_batches(model, once, [feeds])) if once else {}


def make_net(path, channels=(3, 16, 16), size=8, batch="N", classes=4, seed=0, loss=None):
    """Write conv0, conv1, ... (3x3, ReLU between), pooling and a linear layer as ONNX.

    With ``loss``, every kernel is of rank 4 over (channels) x (channels and window), but for
    noise of this relative size.
    """
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], {}, "x"
    for n, (i, o) in enumerate(itertools.pairwise(channels)):
        kernel = rng.standard_normal((o, i, 3, 3))
        if loss is not None:
            low = rng.standard_normal((o, 4)) @ rng.standard_normal((4, i * 9))
            low = low.reshape(kernel.shape)
            kernel = low + loss * np.linalg.norm(low) / np.linalg.norm(kernel) * kernel
        weights[f"conv{n}.weight"] = kernel * np.sqrt(2 * o) / np.linalg.norm(kernel)
        weights[f"conv{n}.bias"] = rng.standard_normal(o) / 4
        inputs = [value, f"conv{n}.weight", f"conv{n}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"conv{n}.out"], f"conv{n}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"conv{n}.out"], [f"relu{n}"]))
        value = f"relu{n}"
    weights["fc.weight"] = rng.standard_normal((channels[-1], classes))
    weights["fc.bias"] = rng.standard_normal(classes) / 4
    nodes.append(helper.make_node("ReduceMean", [value, "axes"], ["features"], keepdims=0))
    nodes.append(helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["logits"]))
    initializers = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels[0], size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@contextlib.contextmanager
def work_in(folder):
    """Work in ``folder``, where ``toy`` is importable, and forget all imports from it after."""
    (folder / "toy.py").write_text(FACTORY)
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def workplace(tmp_path):
    """An empty current folder with the factories of ``toy.py``."""
    with work_in(tmp_path):
        yield tmp_path


def flatconv(*arguments):
    """Run the command line in this process; give status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["flatconv", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    return ended.value.code, out.getvalue(), err.getvalue()


def noise(*shape, seed=0):
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
