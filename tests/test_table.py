"""The latency table of a conversion: measured, cached, on the user's own inputs."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from networks import from_text, make_net, noise

from converter.job import open_job
from converter.options import Options
from converter.runtime import stopwatch
from converter.timing.conditions import conditions, timed_feeds
from converter.timing.table import latency_table


@pytest.fixture
def times(monkeypatch):
    """The number of blocks that are timed; every call takes a millisecond, and no table is doubted.

    Without variants that race, the profile is scaled to the clock.
    """
    blocks = []

    def one_ms(session, feeds, calls):
        blocks.append(calls)
        return 1e-3

    settings = replace(stopwatch.DEFAULT_SETTINGS, variants=0, attempts=2, stopwatch=one_ms)
    monkeypatch.setattr(stopwatch, "DEFAULT_SETTINGS", settings)
    return blocks


def job_of(path, folder, **options):
    job = open_job(path, Options().changed(**options))
    return replace(job, resources=replace(job.resources, cache=folder / "cache"))


def table_of(job, **changed):
    options = replace(job.options, **changed)
    return latency_table(job.problem, options, job.resources)


def test_a_table_without_warnings_is_measured_once(tmp_path, times):
    job = job_of(make_net(tmp_path / "net.onnx", channels=(3, 16, 16)), tmp_path)
    first = table_of(job)
    measured = len(times)
    assert first.warnings == () and table_of(job) == first and len(times) == measured


def test_a_doubtful_table_is_measured_by_each_conversion(tmp_path, times, monkeypatch):
    job = job_of(make_net(tmp_path / "net.onnx", channels=(3, 16, 16)), tmp_path)
    with monkeypatch.context() as patch:
        doubting = replace(stopwatch.DEFAULT_SETTINGS, max_gap=-1.0)
        patch.setattr(stopwatch, "DEFAULT_SETTINGS", doubting)
        first = table_of(job)
        (warning,) = first.warnings
        assert "measure again" in warning
        measured = len(times)
        again = replace(job.options.training, resume=True, reconstruct=1)
        assert table_of(job, training=again) == first and len(times) == measured
        table_of(job)
        assert len(times) == 2 * measured
    assert table_of(job).warnings == ()


LENGTHS = """g (float[N, 4, 8, 8] x, int64[N, 1] length) => (float[N, 4, 8, 8] z) {
    scale = Cast <to = 1> (length)
    axes = Constant <value = int64[2] {2, 3}> ()
    factor = Unsqueeze(scale, axes)
    y = Conv <pads = [1, 1, 1, 1]> (x, w)
    z = Div(y, factor)
}"""


@pytest.fixture
def lengths(tmp_path):
    """A network with an integer input, and two files of sample inputs for it."""
    onnx.save(from_text(LENGTHS, w=noise(4, 4, 3, 3)), tmp_path / "net.onnx")
    for name, length in (("short", 1), ("long", 9)):
        length = np.full((5, 1), length)
        np.savez(tmp_path / f"{name}.npz", x=noise(5, 4, 8, 8), length=length)
    return tmp_path


def test_layers_are_timed_on_the_sample_inputs(lengths):
    job = job_of(lengths / "net.onnx", lengths, calib=str(lengths / "long.npz"), batch_size=7)
    feeds = timed_feeds(job.problem, job.options)
    assert feeds["length"].tolist() == [[9]] * 7
    rows = np.arange(7) % 5
    assert all(np.array_equal(feeds[n], x) for n, x in job.source.calib.read(rows).items())


def test_layers_are_timed_on_random_inputs_where_the_sample_inputs_have_other_sizes(tmp_path):
    graph = """g (float[N, 4, H, W] x) => (float[N, 4, H, W] z) {
        z = Conv <pads = [1, 1, 1, 1]> (x, w)
    }"""
    onnx.save(from_text(graph, w=noise(4, 4, 3, 3)), tmp_path / "net.onnx")
    options = {"calib": noise(5, 4, 8, 8), "input_shape": ("1,4,16,16",)}
    job = job_of(tmp_path / "net.onnx", tmp_path, **options)
    assert timed_feeds(job.problem, job.options)["x"].shape == (1, 4, 16, 16)
    assert timed_feeds(replace(job.problem, calib=None), job.options)["x"].any()


def test_lengths_are_conditions_of_a_time_and_random_numbers_are_not(lengths):
    jobs = [
        job_of(lengths / "net.onnx", lengths, calib=str(lengths / f"{name}.npz"))
        for name in ("short", "long")
    ]
    short, long = (conditions(job.problem, job.options) for job in jobs)
    assert repr(short) != repr(long)
    plain = make_net(lengths / "plain.onnx")
    images = [noise(5, 3, 8, 8, seed=seed) for seed in range(2)]
    one, other = (job_of(plain, lengths, calib=calib) for calib in images)
    assert conditions(one.problem, one.options) == conditions(other.problem, other.options)
