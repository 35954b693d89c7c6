"""The time of the stages of a conversion."""

import json

import pytest
from helpers import make_net, noise

import converter
from converter.stages import Stage, StageTimer


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
