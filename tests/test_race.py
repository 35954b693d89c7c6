"""Races: intervals, fair blocks of calls, and ratios, by a fixed timer."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from networks import make_net, noise

from converter.graph.network import open_session
from converter.runtime import stopwatch
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
    assert np.mean([i.contains(1) for i in intervals]) >= 0.98
    widths = [i.high - i.low for i in intervals]
    assert np.median(widths) < np.median(np.ptp(samples, axis=1)) / 2


def test_a_few_values_give_their_whole_range():
    assert Interval.of([3.0, 1.0, 2.0]) == Interval(2.0, 1.0, 3.0)


def drawn_logs(kind, races, rounds, seed=0):
    """Logarithms of the ratios of two equally fast networks, as the machine may disturb them."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((races, rounds))
    if kind == "heavy tails":
        return rng.standard_t(2, (races, rounds))
    if kind == "bursts":  # a third of the rounds are far noisier, several in a row
        busy = np.repeat(rng.random((races, -(-rounds // 5))) < 1 / 3, 5, axis=1)[:, :rounds]
        return noise * np.where(busy, 8, 1)
    if kind == "the second is slower":
        return noise + np.where(np.arange(rounds) % 2 == 0, 1, -1)
    if kind == "one round disturbs the next":
        return noise[:, 1:] + 0.15 * noise[:, :-1]
    return noise


@pytest.mark.parametrize("rounds", [16, 17, 60])
@pytest.mark.parametrize(
    "kind",
    [
        "normal",
        "heavy tails",
        "bursts",
        "the second is slower",
        "one round disturbs the next",
    ],
)
def test_the_interval_of_ratios_is_right_for_equal_networks_whatever_the_noise(kind, rounds):
    logs = drawn_logs(kind, 2000, rounds)
    claims = [not Interval.of_ratios(np.exp(0.1 * row)).contains(1) for row in logs]
    assert np.mean(claims) <= 0.015


def test_the_interval_of_ratios_moves_with_them_and_turns_with_them():
    ratios = np.exp(0.1 * drawn_logs("heavy tails", 1, 40)[0])
    found, faster, turned = (Interval.of_ratios(r) for r in (ratios, 3 * ratios, 1 / ratios))
    assert found.low < found.median < found.high
    assert found.median == pytest.approx(np.exp(np.median(np.log(ratios))))
    ends = np.array([found.low, found.median, found.high])
    assert np.allclose([faster.low, faster.median, faster.high], 3 * ends)
    assert np.allclose([turned.high, turned.median, turned.low], 1 / ends)


def test_the_interval_of_many_ratios_is_narrow():
    logs = drawn_logs("normal", 50, 60)
    widths = [np.log(i.high / i.low) for i in (Interval.of_ratios(np.exp(row)) for row in logs)]
    assert np.median(widths) < 1.25 * 2 * 2.576 / 60**0.5  # that of the mean of normal numbers


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_ratios_give_a_wide_interval(count):
    ratios = np.exp(0.1 * drawn_logs("normal", 1, count)[0])
    found = Interval.of_ratios(ratios)
    assert found.low <= min(ratios) * (1 + 1e-12)
    assert max(ratios) <= found.high * (1 + 1e-12)


def test_more_values_give_a_narrower_interval():
    values = np.random.default_rng(0).normal(10, 1, 500)
    few, many = Interval.of(values[:20]), Interval.of(values)
    assert many.high - many.low < (few.high - few.low) / 2


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
    ("race_s", "call_ms", "rounds"), [(0.0, 1.0, 16), (100.0, 1.0, 60), (1.0, 28.0, 17)]
)
def test_a_race_has_as_many_rounds_as_its_budget_allows(race_s, call_ms, rounds, sessions):
    settings = replace(fixed(sessions, [call_ms] * 3), race_s=race_s)
    assert race(sessions[:1], [FEED], settings=settings).rounds == rounds


def test_a_race_reports_its_progress(sessions):
    shares = []
    outcome = race(sessions[:1], [FEED], shares.append, fixed(sessions, [1.0]))
    assert shares == [(n + 1) / outcome.rounds for n in range(outcome.rounds)]


def noisy(sessions, call_ms, seed=0):
    """Settings by which sessions take given times, but for noise of a tenth."""
    rng = np.random.default_rng(seed)
    settings = fixed(sessions, call_ms, lambda block: np.exp(0.1 * rng.standard_normal()))
    return replace(settings, race_s=0.0)


@pytest.mark.parametrize(
    ("call_ms", "decide", "times"),
    [
        (2.0, (), 1),
        (1.0, (1.0,), 1),  # it is clear at once that this one is faster
        (2.0, (1.0,), 4),
        (2.0, (3.0,), 1),
        (1.0, (1.0, 2.0), 4),  # faster, but the target is as close as can be
    ],
)
def test_a_race_goes_on_until_it_decides(call_ms, decide, times, sessions):
    settings = noisy(sessions, [2.0, call_ms])
    outcome = race(sessions[:2], [FEED] * 2, settings=settings, decide=decide)
    assert outcome.rounds == times * settings.min_rounds
    assert outcome.speedup[1].contains(2.0 / call_ms)


def test_looking_several_times_claims_no_more_differences():
    logs = 0.1 * drawn_logs("normal", 2000, 64)
    third = 1 - 0.01 / 3
    claims = [
        any(not Interval.of_ratios(np.exp(row[:n]), third).contains(1) for n in (16, 32, 64))
        for row in logs
    ]
    assert np.mean(claims) <= 0.01


def test_a_race_reports_its_progress_to_the_longest_it_may_take(sessions):
    shares = []
    settings = noisy(sessions, [2.0, 2.0])
    race(sessions[:2], [FEED] * 2, shares.append, settings, decide=(1.0,))
    assert shares == [(n + 1) / 64 for n in range(64)]


def test_every_two_rounds_have_opposite_orders(sessions):
    order = []

    def stopwatch(session, feeds, calls):
        order.append(next(n for n, other in enumerate(sessions) if other is session))
        return 1e-3

    race(sessions, [FEED] * 3, settings=TimingSettings(pause_s=0, race_s=0, stopwatch=stopwatch))
    rounds = np.array(order[6:]).reshape(-1, 3)  # after the first calls, which choose the blocks
    assert np.array_equal(rounds[0::2], rounds[1::2, ::-1])
    assert {tuple(row) for row in rounds[0::2].tolist()} == {(0, 1, 2), (1, 2, 0), (2, 0, 1)}


def test_a_block_is_as_many_calls_as_fill_its_time(sessions):
    settings = replace(fixed(sessions, [2.0]), block_s=0.03)
    assert TimedSession.of(sessions[0], FEED, settings).calls == 15
    assert TimedSession.of(sessions[0], FEED, replace(settings, block_s=0.0001)).calls == 1


def test_the_ratio_of_two_sessions_is_by_alternate_blocks(sessions):
    settings = fixed(sessions, [2.0, 6.0])
    base, other = (TimedSession.of(session, FEED, settings) for session in sessions[:2])
    assert other.ratio_to(base) == pytest.approx(3.0)


@dataclass
class Ticking:
    """A session and its clock: each call takes as long as told, and the first one far longer."""

    call_s: float
    now: float = 0.0
    calls: int = 0

    def run(self, names, feeds):
        self.calls += 1
        self.now += self.call_s if self.calls > 1 else 100 * self.call_s


def test_the_seconds_of_a_call_are_the_mean_of_all_but_the_first(monkeypatch):
    session = Ticking(0.25)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: session.now)
    assert seconds_per_call(session, FEED, 3) == 0.25
    assert session.calls == 4
