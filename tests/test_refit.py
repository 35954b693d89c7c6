"""Refit layers: nothing is lost at full rank, the error never grows, the result is saved."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import difference, from_text, make_net, noise, observe
from torch import nn

import converter
from converter.data.data import from_arrays
from converter.decomposition.form import fit_rank, full_rank, refusal
from converter.decomposition.forms import FORMS
from converter.graph.network import load
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.processes import Resources
from converter.reconstruction.moments import fits_in_memory, patch_size, second_moments
from converter.reconstruction.refit import refit_layers
from converter.reconstruction.regression import KERNEL_RIDGES, choose_ridge
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
    return refit_layers(model, layers, chosen, data, Resources(**resources))


def solve_alone(model, layers, data, chosen):
    todo = [layer for layer in layers if layer.name in chosen]
    return solve_layers(layers, chosen, second_moments(model, todo, data))


def rewritten(model, layers, chains):
    return rewrite(model, {la.output: (la.name, chains[la.name]) for la in layers})


def error(model, other, data):
    x = data.read(np.arange(data.count))
    return difference(observe(other, ["y"], x)["y"], observe(model, ["y"], x)["y"])


@pytest.mark.parametrize("forms", [("channel",), ("spatial", "channel"), ("tucker", "channel")])
@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_rank_it_changes_nothing(name, forms):
    model, layers, data = setting(name)
    chains, errors = refit(model, layers, data, choose(layers, 1, forms))
    assert list(chains) == list(errors) == [layer.name for layer in layers]
    assert max(errors.values()) < 1e-4
    assert error(model, rewritten(model, layers, chains), data) < 1e-4


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("forms", [("channel",), ("spatial", "channel")])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_makes_nothing_worse_on_what_it_has_seen(name, forms, share):
    model, layers, data = setting(name)
    chosen = choose(layers, share, forms)
    chains, errors = refit(model, layers, data, chosen)
    after = error(model, rewritten(model, layers, chains), data)
    before = error(model, rewritten(model, layers, solve_alone(model, layers, data, chosen)), data)
    assert after <= before
    assert min(errors.values()) > 0 and max(errors.values()) < 1


def test_it_makes_a_residual_network_much_better():
    model, layers, data = setting("residual")
    chosen = choose(layers, 0.4)
    chains, _ = refit(model, layers, data, chosen)
    after = error(model, rewritten(model, layers, chains), data)
    before = error(model, rewritten(model, layers, solve_alone(model, layers, data, chosen)), data)
    assert after < 0.9 * before


def test_what_follows_an_error_makes_up_for_it():
    """The second of two products sees what the first makes; its rank allows to undo that."""
    text = """g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) {
        a = Conv (x, first)
        y = Conv (a, w1)
    }"""
    first = WEIGHTS["w3"]
    model = ir.from_proto(from_text(text, first=first, w1=WEIGHTS["w1"]))
    data = from_arrays({"x": smooth((4, 8, 8))}, "smooth")
    layers = survey(model, data.read(np.arange(2)))
    chosen = {"first": (FORMS["channel"], (2,))}
    alone, _ = refit(model, layers[:1], data, chosen)
    chosen["w1"] = (FORMS["channel"], (8,))
    both, _ = refit(model, layers, data, chosen)
    once, twice = (
        error(model, rewritten(model, layers[:n], chains), data)
        for n, chains in ((1, alone), (2, both))
    )
    assert twice < once


def test_layers_that_are_not_chosen_are_left_alone():
    model, layers, data = setting("residual")
    chosen = {layers[1].name: choose(layers, 0.4)[layers[1].name]}
    chains, errors = refit(model, layers, data, chosen)
    assert list(chains) == list(errors) == [layers[1].name]


def bytes_of(chains):
    return [
        array.tobytes()
        for chain in chains.values()
        for step in chain.steps
        for array in (step.kernel, step.bias)
        if array is not None
    ]


def test_the_same_seed_gives_the_same_bytes():
    model, layers, data = setting("pooled")
    chosen = choose(layers, 0.4)
    (one, _), (two, _) = (refit(model, layers, data, chosen, seed=1) for _ in range(2))
    assert bytes_of(one) == bytes_of(two)


def test_what_was_solved_before_comes_from_the_cache(tmp_path):
    model, layers, data = setting("residual")
    chosen = choose(layers, 0.4)
    first, second, alone = (
        refit(model, layers, data, chosen, cache=folder) for folder in (tmp_path, tmp_path, None)
    )
    assert bytes_of(first[0]) == bytes_of(second[0]) == bytes_of(alone[0])
    assert first[1] == second[1] == alone[1]
    entries = set(tmp_path.rglob("*.npz"))
    assert len(entries) == len(chosen)
    last = layers[-1].name
    other = chosen | {last: (FORMS["channel"], choose(layers, 0.8)[last][1])}
    kept, fresh = (refit(model, layers, data, other, cache=folder) for folder in (tmp_path, None))
    assert len(set(tmp_path.rglob("*.npz")) - entries) == 1
    assert bytes_of(kept[0]) == bytes_of(fresh[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"memory_bytes": 2.0**24},
        {"solver": "tensorly"},
        {"data": "other"},
        {"network": "other"},
    ],
)
def test_what_a_correction_depends_on_makes_other_entries(changed, tmp_path):
    model, layers, data = setting("residual")
    chosen = choose(layers, 0.4)
    refit(model, layers, data, chosen, cache=tmp_path)
    count = len(list(tmp_path.rglob("*.npz")))
    if changed.pop("data", None):
        data = data.take(np.arange(data.count - 1))
    if changed.pop("network", None):
        model, layers, _ = setting("residual", w1=WEIGHTS["w1"] * 2)
    refit(model, layers, data, chosen, cache=tmp_path, **changed)
    assert len(list(tmp_path.rglob("*.npz"))) == 2 * count


@pytest.mark.parametrize("name", ["residual", "grouped", "transposed", "linear"])
def test_with_little_memory_layers_are_solved_under_factors(name):
    model, layers, data = setting(name)
    assert not any(fits_in_memory(patch_size(layer.conv), 5000.0 / 2) for layer in layers)
    chains, errors = refit(model, layers, data, choose(layers, 0.5), memory_bytes=5000.0)
    assert max(errors.values()) < 1
    assert error(model, rewritten(model, layers, chains), data) < 1
    chains, _ = refit(model, layers, data, choose(layers, 1), memory_bytes=2000.0)
    assert error(model, rewritten(model, layers, chains), data) < 0.02


def test_a_batch_size_that_the_network_insists_on_is_kept(tmp_path):
    make_net(tmp_path / "net.onnx", batch=4)
    network = load(tmp_path / "net.onnx")
    x = noise(10, 3, 8, 8)
    x[8:] = np.nan  # of the last batch, which is incomplete
    data = from_arrays({"x": x}, "noise")
    layers = [layer for layer in survey(network, data.read(np.arange(4))) if layer.conv.k]
    chains, errors = refit(network, layers, data, choose(layers, 0.5))
    assert len(chains) == 2
    assert all(np.isfinite(found) for found in errors.values())
    assert all(np.isfinite(array).all() for array in map(np.frombuffer, bytes_of(chains)))


def test_fewer_examples_than_the_batch_are_repeated(tmp_path):
    make_net(tmp_path / "net.onnx", batch=4)
    network = load(tmp_path / "net.onnx")
    x = noise(3, 3, 8, 8)
    few, same = (from_arrays({"x": array}, "noise") for array in (x, x[[0, 1, 2, 0]]))
    layers = [la for la in survey(network, same.read(np.arange(4))) if la.conv.k]
    chosen = choose(layers, 0.5)
    one, two = (refit(network, layers, data, chosen)[0] for data in (few, same))
    assert bytes_of(one) == bytes_of(two)
    one, two = (second_moments(network, layers, data) for data in (few, same))
    for name in one:
        assert np.array_equal(one[name][0].full, two[name][0].full)


@pytest.mark.parametrize("name", ["residual", "pooled", "strided", "signals"])
def test_activations_that_are_always_zero_do_no_harm(name):
    bias = np.full(8, -1e3, np.float32)
    model, layers, data = setting(name, b0=bias, **({"s0": -abs(WEIGHTS["s0"])}))
    chains, errors = refit(model, layers, data, choose(layers, 0.4))
    assert all(np.isfinite(step.kernel).all() for c in chains.values() for step in c.steps)
    assert all(np.isfinite(found) for found in errors.values())
    assert error(model, rewritten(model, layers, chains), data) < 1


def test_inputs_that_are_all_zero_do_no_harm():
    model, layers, _ = setting("residual")
    data = from_arrays({"x": np.zeros((8, 4, 8, 8), np.float32)}, "zeros")
    chains, errors = refit(model, layers, data, choose(layers, 0.4))
    assert all(np.isfinite(found) for found in errors.values())
    assert all(np.isfinite(step.kernel).all() for c in chains.values() for step in c.steps)
    assert error(model, rewritten(model, layers, chains), data) < 0.2


@pytest.mark.parametrize("kind", ["constant", "the same in every channel"])
def test_inputs_of_few_dimensions_are_solved_for(kind):
    model, layers, _ = setting("residual")
    x = np.ones((8, 4, 8, 8), np.float32) if kind == "constant" else noise(8, 1, 8, 8)
    data = from_arrays({"x": np.broadcast_to(x, (8, 4, 8, 8)).copy()}, "few dimensions")
    chosen = choose(layers, 0.5)
    plain = solve_alone(model, layers, data, chosen)
    for chains in (plain, refit(model, layers, data, chosen)[0]):
        assert error(model, rewritten(model, layers, chains), data) < 0.5


HALVED = {
    "form": ("channel", "fc=channel"),
    "rank": ("0.5",),
    "only": ("conv0", "conv1", "conv2", "fc"),
}


class Normed(nn.Module):
    """BatchNorm behind convolutions without a bias, a shortcut, pooling and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 12, bias=False)

    def forward(self, x):
        x = torch.relu(self.norm0(self.conv0(x)))
        x = torch.relu(self.norm1(self.conv1(x)) + x)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def normed():
    """A model with uneven norms, one of whose channels is dead, and its conversion."""
    torch.manual_seed(0)
    model = Normed()
    for norm in (model.norm0, model.norm1):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.3, 1.5)
    with torch.no_grad():
        model.norm0.weight[3] = 0
    x = smooth((3, 8, 8), 64)
    result = converter.convert(model.eval(), x[:1], options=converter.Options.of(**HALVED), calib=x)
    assert set(result.plan.chosen()) == {"conv0", "conv1", "conv2", "fc"}
    return model, result, x


def converted_network(result):
    return result.report.verified.converted.network


def outputs_of(network, x):
    (value,), (output,) = network.graph.inputs, network.graph.outputs
    return observe(network, [output.name], {value.name: x})[output.name]


def output_of(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def test_the_torch_copy_is_the_twin_of_the_graph(normed):
    model, result, x = normed
    assert result.report.met
    found = outputs_of(converted_network(result), x)
    assert difference(found, output_of(result.model, x)) < 1e-4
    assert difference(found, output_of(model, x)) > 1e-3
    kinds = [type(module) for module in result.model.modules()]
    assert kinds.count(nn.BatchNorm2d) == 2
    for name in ("conv0", "conv1", "conv2", "fc"):
        assert result.model.get_submodule(name)[-1].bias is not None


def test_a_new_bias_is_saved_and_loaded(normed, tmp_path):
    _, result, x = normed
    result.save(tmp_path / "out")
    loaded = converter.load(tmp_path / "out")
    assert difference(output_of(loaded, x), output_of(result.model, x)) < 1e-5


def test_a_factory_is_loaded_with_a_new_bias(workplace):
    x = noise(32, 3, 8, 8)
    config = converter.Options.of(form=("channel",), rank=("4",), input_shape=("1,3,8,8",))
    result = converter.convert("toy:build", options=config, calib=x)
    result.save(workplace / "out")
    loaded = converter.load(workplace / "out")
    saved, kept = (m.get_submodule("conv2")[-1].bias for m in (loaded, result.model))
    assert torch.equal(saved, kept)
    assert saved.abs().max() > 0
    assert difference(output_of(loaded, x), output_of(result.model, x)) < 1e-6


def test_the_network_is_nearer_to_the_original_than_without(normed):
    model, result, x = normed
    config = converter.Options.of(**HALVED, correct=False)
    blind = converter.convert(model, x[:1], options=config, calib=x)
    wanted = outputs_of(result.original, x)
    after, before = (
        difference(outputs_of(converted_network(r), x), wanted) for r in (result, blind)
    )
    assert after < before
    rows = [row for row in result.report.layers if row.form]
    assert len(rows) == 4
    assert all(0 < row.rel_error < 1 for row in rows)


@pytest.mark.parametrize("kind", ["Conv <pads = [1, 1, 1, 1]>", "ConvTranspose"])
def test_a_bias_in_an_addition_is_refitted_around(kind):
    text = f"""g (float[N, 4, 8, 8] x) => (float[N, 8, P, Q] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (a)
        c = {kind} (r, v)
        d = Add (c, k)
        y = Relu (d)
    }}"""
    proto = from_text(text, w=noise(8, 4, 3, 3), v=noise(8, 8, 3, 3, seed=1))
    bias = onnx.numpy_helper.from_array(noise(1, 8, 1, 1), "k")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["k"], value=bias))
    model, x = ir.from_proto(proto), noise(40, 4, 8, 8)
    layers = survey(model, {"x": x[:2]})
    chosen = {layer.name: (FORMS["channel"], (4,)) for layer in layers}
    data = from_arrays({"x": x}, "noise")
    chains, errors = refit_layers(model, layers, chosen, data)
    assert set(chains) == {"w", "v"}
    assert all(0 < error < 1 for error in errors.values())


def test_few_examples_hold_a_layer_that_no_rank_limits_to_what_it_was():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((1, 3, 40))
    few = rng.standard_normal((1, 50, 40)).astype(np.float32)
    noisy = few[0] @ weights[0].T + 5 * rng.standard_normal((50, 3))
    changed = few[0] @ (2 * weights[0]).T
    assert choose_ridge(few, noisy, weights) >= 10  # noise is not learnt
    assert (
        choose_ridge(np.tile(few, (1, 8, 1)), np.tile(changed, (8, 1)), weights) == KERNEL_RIDGES[0]
    )


def test_an_input_that_never_changes_takes_the_first_ridge():
    weights = np.ones((1, 2, 30))
    still = np.zeros((1, 60, 30), np.float32)
    assert choose_ridge(still, np.ones((60, 2)), weights) == KERNEL_RIDGES[0]
