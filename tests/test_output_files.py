"""Files of a report: JSON that every reader takes, and folders that cannot be replaced."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from converter.errors import ConverterError
from converter.evaluation.comparison import Comparison, Figures
from converter.evaluation.tasks.task import Judgement
from converter.report.paths import to_json, writable_folder
from converter.report.tables import figure_rows
from converter.timing.race import Interval


def test_numbers_that_json_lacks_become_null():
    document = {"a": [1.5, math.inf, (-math.inf, math.nan)], "b": {"c": math.nan, "d": "NaN"}}
    wanted = {"a": [1.5, None, [None, None]], "b": {"c": None, "d": "NaN"}}
    assert json.loads(to_json(document)) == wanted


def test_a_mount_point_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConverterError, match=r"is a mount point.*name a folder in it") as refusal:
        writable_folder(tmp_path / "out")
    proposed = str(refusal.value).rpartition("such as ")[2].rstrip(".")
    assert writable_folder(Path(proposed)) == tmp_path.resolve() / "out" / "converted"


def test_a_network_with_fewer_details_has_a_gap_in_the_table():
    one = Interval(1.0, 1.0, 1.0)
    sound, broken = (
        Judgement(lost, 0.0, details=details)
        for lost, details in ((0.0, {"cosine": 1.0, "same_neighbour": 1.0}), (1.0, {"cosine": 0.0}))
    )
    first = Figures("a", 1, 1, 1, one, None, one, one, None, 0.0, sound, {"y": sound})
    networks = {
        "a": first,
        "b": replace(first, name="b"),
        "c": replace(first, name="c", judgement=broken, by_output={"y": broken}),
    }
    conditions = ("numbers", None, 9, 1, 1, "CPU", 1, {}, "cpu", {})
    comparison = Comparison(networks, one, {"y": "embed"}, "cosine", (), *conditions)
    rows = dict(figure_rows(comparison))
    assert rows["same neighbour"] == ["", "1.0000", "-"]
