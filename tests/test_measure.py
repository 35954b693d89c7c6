"""Measuring: intervals, races by a fixed timer, scores against numpy."""

import weakref
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import make_net, noise
from onnx import TensorProto, helper, numpy_helper

from converter.data.data import from_arrays
from converter.evaluation.compare import compare_models
from converter.evaluation.score import drop_interval, fixed_batch, renamed, score
from converter.graph.network import load, open_session
from converter.runtime.ort import cpu_model
from converter.runtime.runtime import ExclusiveSession
from converter.runtime.stopwatch import TimedSession, TimingSettings, seconds_per_call
from converter.timing.race import Interval, race

# intervals


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 15, 60])
def test_an_interval_covers_its_median(count):
    values = np.random.default_rng(count).lognormal(size=count)
    found = Interval.of(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.median == pytest.approx(np.median(values))


def test_an_interval_covers_the_true_median_as_often_as_it_says():
    samples = np.random.default_rng(0).lognormal(size=(400, 30))  # median 1
    intervals = [Interval.of(values) for values in samples]
    assert np.mean([i.low <= 1 <= i.high for i in intervals]) >= 0.98
    widths = [i.high - i.low for i in intervals]
    assert np.median(widths) < np.median(np.ptp(samples, axis=1)) / 2


def test_a_few_values_give_their_whole_range():
    assert Interval.of([3.0, 1.0, 2.0]) == Interval(2.0, 1.0, 3.0)


def test_more_values_give_a_narrower_interval():
    values = np.random.default_rng(0).normal(10, 1, 500)
    few, many = Interval.of(values[:20]), Interval.of(values)
    assert many.high - many.low < (few.high - few.low) / 2


# drop of accuracy


@pytest.mark.parametrize(
    ("lost", "won", "count", "median", "half"),
    [
        (0, 0, 100, 0.0, 0.0),
        (1, 0, 1, 100.0, 0.0),
        (10, 10, 100, 0.0, 257.6 * np.sqrt(0.2) / 10),
        (5, 0, 100, 5.0, 257.6 * np.sqrt(0.05 - 0.05**2) / 10),
        (0, 5, 100, -5.0, 257.6 * np.sqrt(0.05 - 0.05**2) / 10),
        (30, 10, 1000, 2.0, 257.6 * np.sqrt(0.04 - 0.02**2) / np.sqrt(1000)),
    ],
)
def test_the_drop_counts_what_changed(lost, won, count, median, half):
    before, after = np.zeros(count, bool), np.zeros(count, bool)
    before[:lost] = True
    after[lost : lost + won] = True
    both = np.arange(count) >= lost + won + (count - lost - won) // 2  # right in both: no matter
    found = drop_interval(before | both, after | both)
    assert found.median == pytest.approx(median)
    assert found.high - found.median == pytest.approx(half, rel=1e-3)
    assert found.median - found.low == pytest.approx(half, rel=1e-3)


def test_pairing_narrows_the_drop():
    rng = np.random.default_rng(0)
    before = rng.random(1000) < 0.8
    after = before ^ (rng.random(1000) < 0.01)
    paired, shuffled = drop_interval(before, after), drop_interval(before, rng.permutation(after))
    assert paired.median == pytest.approx(shuffled.median)
    assert paired.high - paired.low < 0.3 * (shuffled.high - shuffled.low)


# races


FEED = {"x": noise(1, 3, 8, 8)}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """Three open networks, whose true times a fixed timer makes up."""
    folder = tmp_path_factory.mktemp("race")
    return [open_session(make_net(folder / f"{n}.onnx", seed=n)) for n in range(3)]


def fixed(sessions, call_ms, drift=lambda block: 1.0):
    """Settings by which sessions take given times, on a machine whose speed drifts."""
    blocks = []

    def stopwatch(session, feeds, calls):
        blocks.append(session)
        n = next(n for n, other in enumerate(sessions) if other is session)
        return call_ms[n] / 1e3 * drift(len(blocks))

    return TimingSettings(pause_s=0.0, race_s=0.1, stopwatch=stopwatch)


def test_a_race_gives_the_times_and_ratios_of_its_timer(sessions):
    outcome = race(sessions, [FEED] * 3, settings=fixed(sessions, [2.0, 8.0, 4.0]))
    for interval, ms in zip(outcome.latency_ms, (2.0, 8.0, 4.0)):
        assert (interval.low, interval.median, interval.high) == pytest.approx((ms, ms, ms))
    for interval, speedup in zip(outcome.speedup, (1.0, 0.25, 0.5)):
        assert interval.median == pytest.approx(speedup)
    assert outcome.gain.median == pytest.approx(2.0)


def test_a_slow_drift_of_the_machine_does_not_change_who_wins(sessions):
    def drift(block):
        return 1 + block / 50  # three times as slow at the end as at the start

    outcome = race(sessions, [FEED] * 3, settings=fixed(sessions, [2.0, 2.0, 1.0], drift))
    assert outcome.latency_ms[0].high > 1.3 * outcome.latency_ms[0].low
    assert outcome.speedup[1].low <= 1 <= outcome.speedup[1].high
    assert outcome.speedup[2].low > 1.8 and outcome.speedup[2].high < 2.2


@pytest.mark.parametrize(
    ("race_s", "call_ms", "rounds"), [(0.0, 1.0, 15), (100.0, 1.0, 60), (1.0, 30.0, 16)]
)
def test_a_race_has_as_many_rounds_as_its_budget_allows(race_s, call_ms, rounds, sessions):
    settings = replace(fixed(sessions, [call_ms] * 3), race_s=race_s)
    assert race(sessions[:1], [FEED], settings=settings).rounds == rounds


def test_a_race_reports_its_progress(sessions):
    shares = []
    outcome = race(sessions[:1], [FEED], shares.append, fixed(sessions, [1.0]))
    assert shares == [(n + 1) / outcome.rounds for n in range(outcome.rounds)]


def test_a_block_is_as_many_calls_as_fill_its_time(sessions):
    settings = replace(fixed(sessions, [2.0]), block_s=0.03)
    assert TimedSession.of(sessions[0], FEED, settings).calls == 15
    assert TimedSession.of(sessions[0], FEED, replace(settings, block_s=0.0001)).calls == 1


def test_the_ratio_of_two_sessions_is_by_alternate_blocks(sessions):
    settings = fixed(sessions, [2.0, 6.0])
    base, other = (TimedSession.of(session, FEED, settings) for session in sessions[:2])
    assert other.ratio_to(base) == pytest.approx(3.0)


def test_the_clock_counts_time(sessions):
    assert seconds_per_call(sessions[0], FEED, 3) > 0


# scores


def heads(*weights, batch="N", inputs=("x",)):
    """A network with one linear output x @ w for each of ``weights``."""
    size = len(weights[0])
    nodes = [
        helper.make_node("MatMul", [inputs[0], f"w{n}"], [f"y{n}"]) for n in range(len(weights))
    ]
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, size]) for n in inputs],
        [
            helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, [batch, w.shape[1]])
            for n, w in enumerate(weights)
        ],
        [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    return open_session(ir.from_proto(model))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_scores_are_what_numpy_says(batch_size):
    x, first, second = noise(50, 6), noise(6, 4, seed=1), noise(6, 4, seed=1)
    second += 0.5 * noise(6, 4, seed=2)
    labels = np.random.default_rng(3).integers(0, 4, 50)
    data = from_arrays({"x": x, "y": labels}, "numbers")
    one, other = score([heads(first), heads(second)], data, batch_size)
    a, b = x @ first, x @ second
    np.testing.assert_array_equal(one.hits, a.argmax(1) == labels)
    np.testing.assert_array_equal(other.hits, b.argmax(1) == labels)
    assert one.accuracy == pytest.approx(np.mean(a.argmax(1) == labels))
    assert other.accuracy == pytest.approx(np.mean(b.argmax(1) == labels))
    assert (one.agreement, one.rel_output_error) == (1.0, 0.0)
    assert other.agreement == pytest.approx(np.mean(a.argmax(1) == b.argmax(1)))
    assert 0 < other.agreement < 1
    wanted = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert other.rel_output_error == pytest.approx(wanted, rel=1e-5)


def test_there_is_no_accuracy_without_labels():
    (found,) = score([heads(noise(6, 4))], from_arrays({"x": noise(5, 6)}, "numbers"), 2)
    assert found.accuracy is None and found.hits is None
    assert found.agreement == 1.0


def test_the_worst_output_counts():
    data = from_arrays({"x": noise(20, 6)}, "numbers")
    one, two = noise(6, 4, seed=1), noise(6, 3, seed=2)
    _, found = score([heads(one, two), heads(one * np.float32(1.01), two * 2)], data, 8)
    assert found.rel_output_error == pytest.approx(1.0, rel=1e-5)


def test_outputs_that_are_no_vectors_have_no_agreement(tmp_path):
    model = onnx.load(make_net(tmp_path / "net.onnx", (3, 4)))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("relu0", TensorProto.FLOAT, ["N"] * 4))
    session = open_session(ir.from_proto(model))
    data = from_arrays({"x": noise(4, 3, 8, 8), "y": np.zeros(4, int)}, "numbers")
    _, found = score([session, session], data, 2)
    assert found.agreement is None and found.accuracy is None
    assert found.rel_output_error == 0.0


def test_scoring_tells_how_far_it_is():
    told = []
    score([heads(noise(6, 4))], from_arrays({"x": noise(5, 6)}, "numbers"), 2, told.append)
    assert told == [0.4, 0.8, 1.0]


# sessions


@pytest.mark.parametrize(("batch", "wanted"), [("N", None), (4, 4)])
def test_a_network_may_insist_on_a_batch_size(batch, wanted):
    assert fixed_batch(heads(noise(6, 4), batch=batch)) == wanted


def test_inputs_are_found_by_name_else_in_order():
    session = heads(noise(6, 4), inputs=("image", "mask"))
    image, mask = noise(2, 6), noise(2, 6, seed=1)
    for feeds in ({"mask": mask, "image": image, "more": mask}, {"a": image, "b": mask}):
        found = renamed(feeds, session)
        assert list(found) == ["image", "mask"]
        np.testing.assert_array_equal(found["image"], image)
        np.testing.assert_array_equal(found["mask"], mask)


# in turns


def test_networks_too_large_to_be_open_together_take_turns(tmp_path, monkeypatch):
    paths = [make_net(tmp_path / f"{n}.onnx", seed=n) for n in range(2)]
    data = from_arrays({"x": noise(20, 3, 8, 8)}, "noise")
    models = {path.name: load(path) for path in paths}
    together = compare_models(models, data=data)
    alive, most = set(), []

    def opened(model, **how):
        session = open_session(model, **how)
        alive.add(id(session))
        weakref.finalize(session, alive.discard, id(session))
        most.append(len(alive))
        return session

    monkeypatch.setattr("converter.evaluation.compare.open_session", opened)
    monkeypatch.setattr("converter.evaluation.compare.TOGETHER_BYTES", 1)
    apart = compare_models(models, data=data)
    assert max(most) == 1 and len(most) > 10
    assert apart.rounds >= 5
    for one, other in zip(together.networks, apart.networks):
        assert one.rel_output_error == pytest.approx(other.rel_output_error)
        assert one.agreement == other.agreement


@pytest.mark.parametrize("turn_bytes, openings", [(1, 20), (2**20, 4)])
def test_a_turn_scores_as_many_batches_as_memory_holds(turn_bytes, openings, tmp_path, monkeypatch):
    models = [load(make_net(tmp_path / f"{n}.onnx", seed=n)) for n in range(2)]
    data = from_arrays({"x": noise(20, 3, 8, 8)}, "noise")
    sessions = [open_session(model) for model in models]
    opened, open_now = [], {}

    def opener(session):
        return lambda: opened.append(session) or session

    turns = [ExclusiveSession(opener(session), open_now) for session in sessions]
    opened.clear()
    monkeypatch.setattr("converter.evaluation.score.MAX_GROUP_BYTES", turn_bytes)
    one, other = score(sessions, data, 2)[1], score(turns, data, 2)[1]
    assert len(opened) == openings
    assert one.rel_output_error == pytest.approx(other.rel_output_error, rel=1e-12)
    assert one.agreement == other.agreement


@pytest.mark.parametrize(
    "info, wanted",
    [
        (
            "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fma avx2 avx512f avx512_vnni\n\n"
            "processor\t: 1\nmodel name\t: Another\n",
            "A CPU (AVX2, AVX-512, VNNI)",
        ),
        ("model name : A CPU\nflags : fma sse\n", "A CPU"),
        ("Features\t: fp asimd asimddp\n", "(dot product)"),
        (None, ""),
    ],
)
def test_a_processor_is_known_by_its_name_and_its_vectors(info, wanted, tmp_path):
    path = tmp_path / "cpuinfo"
    if info is not None:
        path.write_text(info)
    found = cpu_model(path)
    assert found.endswith(wanted) and found.strip()
    assert "Another" not in found
