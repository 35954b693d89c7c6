"""The time of the stages of a conversion."""

import json

import pytest
from networks import make_net, noise

import converter
from converter.cache import load_seconds
from converter.progress import Position
from converter.stages import Stage, StageTimer, seconds_left


def test_the_time_before_a_report_is_that_of_its_stage():
    times, shown = iter([0.0, 1.0, 3.0, 3.5, 7.5]), []
    cpu_times = iter([0.0, 2.0, 3.0, 3.5, 4.5])
    timer = StageTimer(
        lambda *report: shown.append(report), lambda: next(times), lambda: next(cpu_times)
    )
    reports = [("loading", 1.0), ("solving", 0.5), ("scoring", 1.0), ("solving", 1.0)]
    for report in reports:
        timer(*report)
    assert list(timer.stages.items()) == [
        ("loading", Stage(1.0, 2.0)),
        ("solving", Stage(6.0, 2.0)),
        ("scoring", Stage(0.5, 0.5)),
    ]
    assert timer.stages["loading"].cores == 2.0
    assert Stage().cores == 0.0
    assert shown == reports


def test_a_report_holds_the_stages_of_its_conversion(tmp_path):
    make_net(tmp_path / "net.onnx")
    shown = set()
    result = converter.convert(
        tmp_path / "net.onnx",
        calib={"x": noise(32, 3, 8, 8)},
        form="channel",
        rank=4,
        progress=lambda stage, done: shown.add(stage),
    )
    result.save(tmp_path / "out")
    stages = json.loads((tmp_path / "out" / "report.json").read_text())["stages"]
    assert set(stages) == shown >= {"loading", "solving", "timing", "scoring"}
    for name, stage in result.report.stages.items():
        assert stages[name] == {
            "seconds": pytest.approx(stage.seconds, abs=0.001),
            "cores": pytest.approx(stage.cores, abs=0.01),
        }


EXPECTED_S = {"loading": 4.0, "solving": 20.0, "searching": 2.0, "scoring": 6.0}


@pytest.mark.parametrize(
    ("spent_s", "left_s"),
    [
        ({}, 32.0),
        ({"loading": 1.0}, 31.0),
        ({"loading": 4.0, "solving": 5.0}, 23.0),
        ({"loading": 4.0, "solving": 50.0}, 8.0),  # more networks than the last time
        ({"loading": 4.0, "solving": 5.0, "searching": 1.0}, 22.0),  # solving comes again
        ({"loading": 8.0, "solving": 5.0}, 51.0),  # a larger network
        ({"loading": 4.0, "solving": 20.0, "searching": 2.0, "scoring": 6.0}, 0.0),
        ({"another": 3.0}, 32.0),
    ],
)
def test_the_time_left_follows_from_an_earlier_run(spent_s, left_s):
    assert seconds_left(EXPECTED_S, spent_s) == pytest.approx(left_s)


def test_what_is_left_of_a_stage_that_is_new_follows_from_its_fraction():
    spent_s = {"loading": 4.0, "solving": 20.0, "searching": 2.0, "training": 30.0}
    assert seconds_left(EXPECTED_S, spent_s, 0.25) == pytest.approx(90.0 + 6.0)
    assert seconds_left(EXPECTED_S, spent_s, 0.0) == pytest.approx(6.0)


def test_the_bar_grows_to_its_end():
    times = iter([0.0, 4.0, 9.0, 10.0, 14.0, 24.0, 36.0])
    position, shown = Position(EXPECTED_S, lambda: next(times)), []
    for report in (
        ("loading", 1.0),
        ("solving", 0.5),
        ("searching", 0.0),
        ("solving", 0.2),
        ("solving", 1.0),
        ("scoring", 1.0),
    ):
        position.update(*report)
        shown.append((position.text, round(position.share, 3), position.left))
    assert shown[0] == ("loading", 0.125, "about 0:00:28 left")
    assert shown[3][0] == "solving 2"
    assert [share for _, share, _ in shown] == sorted(share for _, share, _ in shown)
    assert position.share == 1.0


def test_the_stages_of_a_conversion_are_expected_of_the_next(tmp_path, monkeypatch):
    make_net(tmp_path / "net.onnx")
    assert load_seconds(tmp_path / "cache") is None and load_seconds(None) is None
    monkeypatch.setenv("FLATCONV_CACHE", str(tmp_path / "cache"))
    result = converter.convert(tmp_path / "net.onnx", form="channel", rank=4)
    seconds = load_seconds(tmp_path / "cache")
    assert seconds and set(seconds) == set(result.report.stages)
