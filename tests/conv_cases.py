"""Convolutions and chains drawn at random, what torch computes for them, and how results differ."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from networks import noise

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import fit_rank, full_rank, refusal, skeleton
from converter.decomposition.forms import FORMS
from converter.decomposition.problem import SolverSettings
from converter.decomposition.taps import swap_in_out

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


@st.composite
def transposed(draw, smallest=1):
    """Transposed convolutions over one to three axes; all geometries that torch has."""
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    k, stride, dilation, padding, extra = [], [], [], [], []
    for _ in range(axes):
        k.append(draw(st.integers(smallest, 4 if axes < 3 else 3)))
        stride.append(draw(st.integers(1, 3)))
        dilation.append(draw(st.integers(1, 2)))
        most = min(2, dilation[-1] * (k[-1] - 1))
        padding.append((draw(st.integers(0, most)), draw(st.integers(0, most))))
        extra.append(draw(st.integers(0, max(stride[-1], dilation[-1]) - 1)))
    return make_conv(
        (groups * draw(st.integers(1, 4)), draw(st.integers(2, 3)), *k),
        seed=draw(st.integers(0, 1000)),
        bias=draw(st.booleans()),
        groups=groups,
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        transposed=True,
        output_padding=tuple(extra),
    )


def input_for(conv, seed=0, batch=2):
    """A random input, a little larger than the kernel's reach and of another size per axis."""
    reach = [d * (k - 1) + 4 + axis for axis, (d, k) in enumerate(zip(conv.dilation, conv.k))]
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, conv.I, *reach)).astype(conv.kernel.dtype)


def small_input(conv, batch=2, seed=0):
    """A random input that is small along every axis."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, conv.I, *(3 + axis for axis in range(len(conv.k)))))


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
