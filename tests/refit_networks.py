"""Small networks to refit, their inputs, and what refitting makes of them."""

import numpy as np
import onnx_ir as ir
from conv_cases import difference
from networks import from_text, noise, observe

from converter.data.data import from_arrays
from converter.decomposition.form import fit_rank, full_rank, refusal
from converter.decomposition.forms import FORMS
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.processes import Resources
from converter.reconstruction.moments import second_moments
from converter.reconstruction.refit import refit_layers
from converter.reconstruction.solve import solve_layers

RESIDUAL = """g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w1)
    d = Add (c, b)
    e = Relu (d)
    f = Conv <pads = [1, 1, 1, 1]> (e, w2, b2)
    y = Add (e, f)
}"""
POOLED = """g (float[N, 4, 8, 8] x) => (float[N, 8, 2, 2] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    b = Relu (a)
    c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
    d = Conv <pads = [1, 1, 1, 1]> (c, w1)
    e = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
    y = Relu (e)
}"""
STRIDED = """g (float[N, 4, 8, 8] x) => (float[N, 8, 4, 4] y) {
    a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w0, b0)
    s = Conv <strides = [2, 2]> (x, w3)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w1)
    d = Add (s, c)
    y = Relu (d)
}"""
GROUPED = """g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    b = Relu (a)
    c = Conv <group = 2, pads = [1, 1, 1, 1]> (b, half)
    y = Relu (c)
}"""
SIGNALS = """g (float[N, 4, 24] x) => (float[N, 8, 12] y) {
    a = Conv <pads = [2, 2]> (x, s0)
    b = Relu (a)
    m = MaxPool <kernel_shape = [2], strides = [2]> (b)
    y = Conv <pads = [2, 2]> (m, s1, b2)
}"""
VOLUMES = """g (float[N, 4, 5, 4, 5] x) => (float[N, 8, 5, 4, 5] y) {
    a = Conv <pads = [1, 1, 1, 1, 1, 1]> (x, v0, b0)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1, 1, 1]> (b, v1)
    y = Add (c, b)
}"""
UP = """g (float[N, 4, 5, 5] x) => (float[N, 8, 10, 10] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    b = Relu (a)
    c = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (b, up)
    y = Relu (c)
}"""
LINEAR = """g (float[N, 6, 10] x) => (float[N, 6, 12] y) {
    a = MatMul (x, l0)
    b = Relu (a)
    y = MatMul (b, l1)
}"""
GEMM = """g (float[N, 10] x) => (float[N, 12] y) {
    a = Gemm (x, l0, bias)
    b = Relu (a)
    y = MatMul (b, l1)
}"""
BIAS = noise(8, seed=9) / 2
WEIGHTS = {
    "w0": noise(8, 4, 3, 3) / 5,
    "w1": noise(8, 8, 3, 3, seed=1) / 8,
    "w2": noise(8, 8, 3, 3, seed=2) / 8,
    "w3": noise(8, 4, 1, 1, seed=3) / 2,
    "half": noise(8, 4, 3, 3, seed=4) / 6,
    "s0": noise(8, 4, 5, seed=5) / 4,
    "s1": noise(8, 8, 5, seed=6) / 6,
    "v0": noise(8, 4, 3, 3, 3, seed=7) / 9,
    "v1": noise(8, 8, 3, 3, 3, seed=8) / 12,
    "up": noise(8, 8, 4, 4, seed=10) / 8,
    "l0": noise(10, 16, seed=11) / 3,
    "l1": noise(16, 12, seed=12) / 4,
    "bias": noise(16, seed=13) / 2,
    "b0": BIAS,
    "b2": BIAS[::-1].copy(),
}
NETWORKS = {
    "residual": RESIDUAL,
    "pooled": POOLED,
    "strided": STRIDED,
    "grouped": GROUPED,
    "signals": SIGNALS,
    "volumes": VOLUMES,
    "transposed": UP,
    "linear": LINEAR,
    "gemm": GEMM,
}


def smooth(shape, count=48, seed=0):
    """Inputs whose neighbours resemble one another, as those of images do."""
    x = noise(count, *shape, seed=seed)
    for axis in range(2, x.ndim):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    return (x + x[:, :1]) / x.std()


def setting(name, **changed):
    text = NETWORKS[name]
    used = {w: a for w, a in (WEIGHTS | changed).items() if f"{w})" in text or f"{w}," in text}
    model = ir.from_proto(from_text(text, **used))
    (value,) = model.graph.inputs
    data = from_arrays({"x": smooth([d for d in value.shape if isinstance(d, int)])}, "smooth")
    return model, survey(model, data.read(np.arange(2))), data


def choose(layers, share, names=("channel",)):
    """The first of the forms ``names`` that fits, at a share of its full rank."""
    chosen = {}
    for layer in layers:
        form = next(FORMS[n] for n in names if refusal(FORMS[n], layer.conv) is None)
        rank = tuple(round(share * r) for r in full_rank(form, layer.conv))
        chosen[layer.name] = (form, fit_rank(rank, form, layer.conv))
    return chosen


def refit(model, layers, data, chosen, **resources):
    result = refit_layers(model, layers, chosen, data, Resources(**resources))
    return result.chains, result.errors


def solve_alone(model, layers, data, chosen):
    todo = [layer for layer in layers if layer.name in chosen]
    return solve_layers(layers, chosen, second_moments(model, todo, data))


def rewritten(model, layers, chains):
    return rewrite(model, {la.output: (la.name, chains[la.name]) for la in layers})


def error(model, other, data):
    x = data.read(np.arange(data.count))
    return difference(observe(other, ["y"], x)["y"], observe(model, ["y"], x)["y"])


def bytes_of(chains):
    return [
        array.tobytes()
        for chain in chains.values()
        for step in chain.steps
        for array in (step.kernel, step.bias)
        if array is not None
    ]
