"""Networks written as text or built by a factory, their inputs and times, and the command line."""

import contextlib
import io
import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter import cli
from converter.decomposition.form import skeleton
from converter.decomposition.forms import FORMS
from converter.decomposition.ranks import rank_grid
from converter.graph.canonicalize import canonicalize
from converter.graph.network import compute_values, load
from converter.graph.survey import count_macs, survey
from converter.timing.latency import LatencyTable, LayerTimes, TimedCandidate
from converter.timing.race import Interval, Race

HEADER = '<ir_version: 8, opset_import: ["" : 19]>\n'
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


def from_text(graph, **weights):
    """An ONNX model from a graph written as text and the arrays of its initializers."""
    model = onnx.parser.parse_model(HEADER + graph)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return model


def observe(model, names, feeds):
    """Run a network once and give inner tensors."""
    once = list(dict.fromkeys(names))
    return next(compute_values(model, once, [feeds])) if once else {}


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


def flatconv(*arguments):
    """Run the command line in this process; give status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["flatconv", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    return ended.value.code, out.getvalue(), err.getvalue()


def fixed_race(sessions, *_, **__):
    """Timings for tests: each network is twice as fast as the one before."""
    values = [2.0**n for n in range(len(sessions))]
    times, speedups = (tuple(Interval(v, v, v) for v in vs) for vs in (values[::-1], values))
    return Race(times, speedups, speedups[min(1, len(sessions) - 1)], rounds=8)


def noise(*shape, seed=0):
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def varied(count, channels, *size, seed=0):
    """Noise whose channels have another mean in each example, so that answers vary."""
    means = np.random.default_rng((seed, 1)).standard_normal((count, channels, 1, 1))
    return noise(count, channels, *size, seed=seed) + 2 * means.astype(np.float32)


def macs_stopwatch(session, feeds, calls):
    """A timer whose seconds are the multiply-accumulates of the network, in units of 1e-9."""
    content = session._model_bytes or Path(session._model_path).read_bytes()
    network = ir.from_proto(onnx.load_from_string(content))
    network.graph.sort()  # onnxruntime's quantizer adds nodes at the end
    batch = len(next(iter(feeds.values())))
    return 1e-9 * batch * (count_macs(network, dict(feeds)) + 1)


def table_by_macs(network, shape=(1, 3, 32, 32), forms=("channel", "spatial", "separable")):
    """A latency table in which every candidate takes a millisecond per million MACs.

    ``forms`` are those that are timed; the default ones are solved most quickly.
    """
    layers = survey(canonicalize(load(Path(network))), {"x": np.zeros(shape, np.float32)})
    times = []
    for layer in layers:
        options = tuple(
            TimedCandidate(
                form, rank, 1e-6 * skeleton(layer.conv, FORMS[form], rank).macs(layer.size)
            )
            for form, rank in rank_grid(layer.conv, layer.size, 16)
            if form in forms
        )
        conv = layer.conv
        geometry = (*conv.stride, *conv.dilation, conv.groups)
        ms = 1e-6 * layer.macs
        times.append(LayerTimes(layer.output, conv.kernel.shape, geometry, ms, options))
    whole_ms = sum(layer.ms for layer in times)
    return LatencyTable("CPU", "1.0", "provider", 1, {"x": shape}, 16, whole_ms, tuple(times))
