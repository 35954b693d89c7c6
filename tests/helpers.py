"""What several tests share: networks drawn at random or written, a factory, the command line."""

import contextlib
import io
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converter import cli
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import fit_rank, full_rank, refusal, skeleton
from converter.decomposition.forms import FORMS
from converter.decomposition.problem import SolverSettings
from converter.decomposition.ranks import rank_grid
from converter.decomposition.taps import swap_in_out
from converter.graph.canonicalize import canonicalize
from converter.graph.network import compute_values, load
from converter.graph.survey import count_macs, survey
from converter.timing.latency import LatencyTable, LayerTimes, TimedCandidate
from converter.timing.race import Interval, Race

FEW = settings(max_examples=15, deadline=None)
SOME = settings(max_examples=25, deadline=None)
LITTLE = SolverSettings(effort=0.1)  # where any chain will do
ONE_STEP = SolverSettings(effort=1e-9)  # the same with the least work
QUICK = SolverSettings(effort=1e-3)  # some 20 steps without a metric

# The form `dense` is the layer itself.
SPLITTING_FORMS = [name for name in FORMS if name != "dense"]
# lvh reproduces a layer only if the layer was made that way.
EXACT_FORMS = [name for name in SPLITTING_FORMS if not name.startswith("lvh")]

TORCH_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
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


def make_conv(shape, seed=0, bias=True, dtype=np.float64, groups=1, **geometry):
    """A convolution with a random kernel of ``shape``, stride 1, no padding unless told."""
    rng = np.random.default_rng(seed)
    axes = len(shape) - 2
    plain = {"stride": (1,) * axes, "padding": ((0, 0),) * axes, "dilation": (1,) * axes}
    return Conv(
        kernel=rng.standard_normal(shape).astype(dtype),
        bias=rng.standard_normal(shape[0]).astype(dtype) if bias else None,
        groups=groups,
        **(plain | geometry),
    )


@st.composite
def convolutions(draw, axes=2, smallest=1, dtype=np.float64):
    """Convolutions that are not depthwise, over ``axes`` axes, kernel sizes from ``smallest``."""
    per_axis = [st.integers(smallest, 4)] * axes
    pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
    groups = draw(st.integers(1, 2))
    O, I = draw(st.integers(1, 5)), draw(st.integers(2, 4))
    return make_conv(
        (groups * O, I, *draw(st.tuples(*per_axis))),
        seed=draw(st.integers(0, 1000)),
        bias=draw(st.booleans()),
        dtype=dtype,
        groups=groups,
        stride=draw(st.tuples(*[st.integers(1, 3)] * axes)),
        padding=draw(st.tuples(*[pads] * axes)),
        dilation=draw(st.tuples(*[st.integers(1, 2)] * axes)),
    )


def convolutions_for(name, dtype=np.float64):
    """Convolutions that the form ``name`` does not refuse."""
    drawn = convolutions(smallest=2 if name == "spatial" else 1, dtype=dtype)
    return drawn.filter(lambda conv: refusal(FORMS[name], conv) is None)


def input_for(conv, seed=0, batch=2):
    """A random input, a little larger than the kernel's reach and of another size per axis."""
    reach = [d * (k - 1) + 4 + axis for axis, (d, k) in enumerate(zip(conv.dilation, conv.k))]
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, conv.I, *reach)).astype(conv.kernel.dtype)


def compute(steps, x):
    """What torch computes for the convolutions ``steps``, one after the other, on ``x``."""
    value = torch.from_numpy(x)
    for step in steps:
        last_axis_first = [p for pair in reversed(step.padding) for p in pair]
        if step.transposed:
            value = _transpose(step, value)
            continue
        value = CONVOLVE[len(step.k)](
            F.pad(value, last_axis_first, mode=TORCH_MODES[step.padding_mode]),
            torch.from_numpy(np.array(step.kernel)),
            None if step.bias is None else torch.from_numpy(np.array(step.bias)),
            step.stride,
            0,
            step.dilation,
            step.groups,
        )
    return value.numpy()


def _transpose(step, value):
    """A transposed convolution by torch: nothing cut off there, then the padding cut off."""
    whole = TRANSPOSE[len(step.k)](
        value,
        torch.from_numpy(swap_in_out(np.array(step.kernel), step.groups)),
        None if step.bias is None else torch.from_numpy(np.array(step.bias)),
        step.stride,
        0,
        step.output_padding or 0,
        step.groups,
        step.dilation,
    )
    cuts = [slice(a, n - b) for (a, b), n in zip(step.padding, whole.shape[2:])]
    return whole[(..., *cuts)]


def difference(found, wanted):
    """Relative difference of two arrays, which must have one shape."""
    assert found.shape == wanted.shape
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), np.finfo(float).tiny)


def some_rank(draw, conv, form):
    """A rank of ``form`` that ``conv`` takes."""
    unit = 1 if form.per_channel else conv.groups
    return tuple(unit * draw(st.integers(1, most // unit)) for most in full_rank(form, conv))


def at_full_rank(conv, name):
    """The chain of form ``name`` that loses nothing."""
    return decompose(conv, FORMS[name], full_rank(FORMS[name], conv))


def drawn_chain(conv, name, share):
    """A chain of random weights that has the shapes of form ``name`` at a share of its rank."""
    steps = skeleton(conv, FORMS[name], rank_at(conv, name, share)).steps
    return Chain(
        tuple(replace(step, kernel=drawn_kernel(step.kernel, n)) for n, step in enumerate(steps))
    )


def rank_at(conv, name, share):
    """A share of the full rank of form ``name``, as near as ``conv`` takes it."""
    full = full_rank(FORMS[name], conv)
    return fit_rank(tuple(share * r for r in full), FORMS[name], conv)


def drawn_kernel(kernel, seed):
    """Random weights of a kernel's shape and type, which give outputs as large as the inputs."""
    return (noise(*kernel.shape, seed=seed) / kernel[0].size ** 0.5).astype(kernel.dtype)


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
