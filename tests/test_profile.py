"""Times of layers: onnxruntime's profile by node, and how it becomes times by layer."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import from_text, make_net, noise

from converter.decomposition.form import skeleton
from converter.decomposition.forms import find_form
from converter.graph.network import load
from converter.graph.survey import survey
from converter.runtime.ort import OnnxRuntime
from converter.runtime.ort_session import NodeTime
from converter.runtime.stopwatch import TimingSettings
from converter.timing.latency import LatencyTable
from converter.timing.profile import measure
from converter.timing.variants import Variants

SHAPES = {"x": (1, 16, 16, 16)}
FEEDS = {"x": noise(1, 16, 16, 16)}
ADDED = """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, wa)
    r = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (r, wb)
    s = Conv (x, ws)
    t = Add(b, s)
    z = Relu(t)
}"""
ADDED_WEIGHTS = {
    "wa": noise(16, 16, 3, 3),
    "wb": noise(16, 16, 3, 3),
    "ws": noise(16, 16, 1, 1),
}


def variants_of(network, shapes):
    feeds = {name: noise(*shape) for name, shape in shapes.items()}
    return Variants.of(network, survey(network, feeds))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=(16, 32, 32), size=16)


@pytest.fixture(scope="module")
def grid(path):
    return variants_of(load(path), SHAPES).with_grid(16)


# onnxruntime's profile


class UnitTimes(OnnxRuntime):
    """onnxruntime, in whose profiles every node takes a millisecond."""

    def profile(self, model, feeds, seconds, weights=None):
        return [replace(node, ms=1.0) for node in super().profile(model, feeds, 0, weights)]


UNIT = TimingSettings(pause_s=0.0, attempts=1, stopwatch=lambda session, feeds, calls: 1e-3)


def steps(layer, option):
    """Count the steps of a layer in another form."""
    return len(skeleton(layer.conv, find_form(option.form), option.rank).steps)


@pytest.fixture(scope="module")
def table(grid):
    return measure(grid, FEEDS, UnitTimes(), settings=UNIT)


def test_every_step_of_every_form_has_the_time_of_its_node(grid, table):
    assert [layer.kernel for layer in table.layers] == [(32, 16, 3, 3), (32, 32, 3, 3), (4, 32)]
    assert [layer.name for layer in table.layers] == ["conv0", "conv1", "fc"]
    assert table.block in (8, 16)
    for layer, options, timed in zip(grid.layers, grid.options, table.layers):
        assert [(o.form, o.rank) for o in timed.options] == list(options)
        nodes = [option.ms / timed.ms for option in timed.options]
        assert nodes == pytest.approx([steps(layer, option) for option in timed.options])
    for timed in table.layers[:2]:
        assert {"separable", "spatial", "tucker", "channel"} <= {o.form for o in timed.options}
    assert len({layer.ms for layer in table.layers}) == 1


def test_the_table_of_a_network_matches_the_network(grid, table):
    assert table.matched(grid.layers) == table


def test_each_layer_of_a_network_with_an_addition_has_the_time_of_one_node():
    network = ir.from_proto(from_text(ADDED, **ADDED_WEIGHTS))
    shapes = {"x": (1, 16, 8, 8)}
    feeds = {"x": noise(1, 16, 8, 8)}
    table = measure(variants_of(network, shapes), feeds, UnitTimes(), settings=UNIT)
    assert [layer.output for layer in table.layers] == ["a", "b", "s"]
    assert table.layers[0].ms > 0
    assert len({layer.ms for layer in table.layers}) == 1


def test_only_the_chosen_form_is_timed(path):
    chosen = {"conv1": ("separable", (16,))}
    variants = variants_of(load(path), SHAPES).with_chosen(chosen)
    assert len(variants) == 2
    table = measure(variants, FEEDS, UnitTimes(), settings=UNIT)
    assert [[(o.form, o.rank) for o in layer.options] for layer in table.layers] == [
        [],
        [("separable", (16,))],
        [],
    ]


def test_onnxruntime_profiles_nodes_by_their_names_in_the_network():
    model = from_text(ADDED, **ADDED_WEIGHTS)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    nodes = OnnxRuntime().profile(model.SerializeToString(), {"x": noise(1, 16, 8, 8)}, 0.0)
    convolutions = [node.name for node in nodes if "Conv" in node.operator]
    assert len(convolutions) == 3
    assert not any("nchwc" in name or "fused" in name for name in convolutions)


# a fixed timer


@dataclass(frozen=True)
class FixedTimes:
    """A runtime whose sessions are those of onnxruntime, and whose times follow a rule.

    A node takes 1 ms for each million numbers in its weights, by the profile and by the clock;
    the profile is ``profile_scale`` times as slow.
    """

    profile_scale: float = 1.0
    extra_ms: float = 0.0
    threads: int = 1
    provider: str = "fixed"
    version: str = "1"

    def open(self, model, weights=None):
        session = OnnxRuntime().open(model, weights)
        times = self.profile(model, {}, 0)
        ms = sum(node.ms for node in times) / self.profile_scale + self.extra_ms
        CLOCK[id(session)] = (session, ms / 1e3)  # kept alive, so that the identity stays its own
        return session

    def profile(self, model, feeds, seconds, weights=None):
        graph = onnx.load_from_string(model).graph
        sizes = {tensor.name: np.prod(tensor.dims) for tensor in graph.initializer}
        return [
            NodeTime(n.op_type, n.name, self.profile_scale * _weights(n, sizes) / 1e6)
            for n in graph.node
        ]

    def block(self):
        return 16

    def quantize(self, model, limits, in_float=()):
        return OnnxRuntime().quantize(model, limits, in_float)


CLOCK = {}


def _weights(node, sizes):
    return float(sum(sizes.get(name, 0) for name in node.input))


def fixed_seconds(session, feeds, calls):
    return CLOCK[id(session)][1]


FIXED = TimingSettings(pause_s=0.0, stopwatch=fixed_seconds)


@pytest.mark.parametrize("profile_scale", [1.0, 1.3, 0.5])
def test_the_table_holds_the_times_of_a_fixed_timer(grid, profile_scale):
    table = measure(grid, FEEDS, FixedTimes(profile_scale), settings=FIXED)
    weights = [32 * 16 * 9 + 32, 32 * 32 * 9 + 32, 4 * 32 + 4]
    assert [layer.ms for layer in table.layers] == pytest.approx([w / 1e6 for w in weights])
    assert table.warnings == ()
    for layer, timed in zip(grid.layers[:2], table.layers):
        for option in timed.options:
            chain = skeleton(layer.conv, find_form(option.form), option.rank)
            size = sum(s.kernel.size + (0 if s.bias is None else s.bias.size) for s in chain.steps)
            assert option.ms == pytest.approx(size / 1e6)


def test_a_phantom_rest_that_comes_again_is_warned_of(grid):
    shares = []
    runtime = FixedTimes(extra_ms=0.1)  # of which the profile has nothing
    table = measure(grid, FEEDS, runtime, settings=FIXED, progress=shares.append)
    (warning,) = table.warnings
    assert "measure again" in warning
    assert abs(1 - sum(layer.ms for layer in table.layers) / table.ms) > FIXED.max_gap
    assert len(shares) == 2 * (len(grid) + FIXED.variants)  # a third would tell the same
    assert LatencyTable.from_json(table.to_json()).warnings == table.warnings


def test_a_slow_moment_of_the_machine_changes_no_times(grid):
    blocks, slow = [], []

    def drifting(session, feeds, calls):
        blocks.append(session)
        slow[:] = [True] * (5 < len(blocks) < 9)  # while variants 4 to 6 are profiled
        return fixed_seconds(session, feeds, calls) * (3 if slow else 1)

    class Drifting(FixedTimes):
        def profile(self, model, feeds, seconds, weights=None):
            nodes = super().profile(model, feeds, seconds)
            return [replace(node, ms=node.ms * 3) for node in nodes] if slow and seconds else nodes

    steady = measure(grid, FEEDS, FixedTimes(), settings=FIXED)
    drifted = measure(grid, FEEDS, Drifting(), settings=replace(FIXED, stopwatch=drifting))
    for one, other in zip(steady.layers, drifted.layers):
        assert other.ms == pytest.approx(one.ms)
        assert [o.ms for o in other.options] == pytest.approx([o.ms for o in one.options])


def test_one_disturbed_profile_of_three_changes_no_times(grid):
    """The profile of every variant in the first attempt is another program's as well."""
    profiled = []

    class Disturbed(FixedTimes):
        def profile(self, model, feeds, seconds, weights=None):
            nodes = super().profile(model, feeds, seconds)
            profiled.extend([model] * bool(seconds))
            share = len(profiled) / len(grid) if seconds and len(profiled) <= len(grid) else 0
            return [replace(node, ms=node.ms * (1 + 9 * share**2)) for node in nodes]

    steady = measure(grid, FEEDS, FixedTimes(), settings=FIXED)
    disturbed = measure(grid, FEEDS, Disturbed(), settings=FIXED)
    assert len(profiled) == 3 * len(grid) and disturbed.warnings == ()
    for one, other in zip(steady.layers, disturbed.layers):
        assert other.ms == pytest.approx(one.ms)
        assert [o.ms for o in other.options] == pytest.approx([o.ms for o in one.options])


def test_what_agrees_is_measured_once(grid):
    shares = []
    measure(grid, FEEDS, FixedTimes(), settings=FIXED, progress=shares.append)
    assert len(shares) == len(grid) + FIXED.variants and shares[-1] == 1
