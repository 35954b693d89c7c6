"""The benchmarks: what suites declare, how rows are recorded, and the tables made of them."""

import json
import re
from dataclasses import replace

import pytest

from converter.runtime.ort import cpu_model
from scripts.benchmarks.results import RESULTS, ROOT, commit, earlier_rows, write
from scripts.benchmarks.rows import FIGURES, from_int8, from_pair, from_report
from scripts.benchmarks.run import SUITES, find_suite, flags, run_suite
from scripts.benchmarks.suite import Case, Settings, Suite, Target
from scripts.benchmarks.suites.resnets_tuned import compare_to_labels

FAST = Target("2x", lambda row: row["speedup"] >= 2)
NETWORK = {"params": 8, "macs": 100, "latency_ms": {"median": 4.0}, "accuracy": 0.9}
REPORT = {
    "original": NETWORK,
    "converted": NETWORK | {"macs": 50, "latency_ms": {"median": 2.0}, "accuracy": 0.8},
    "speedup": {"median": 2.0, "low": 1.9, "high": 2.1},
    "drop_points": 10.0,
    "agreement": 0.85,
    "rel_output_error": 0.1,
    "predicted_speedup": None,
    "reason": None,
    "layers": [{"form": "lvh"}, {"form": None}],
}


def settings(folder, **values):
    return Settings(out=folder, **values)


def toy(*cases, **values):
    return Suite("toy", cases, **values)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_declares_cases_of_different_names(name):
    suite = find_suite(name)
    names = [case.name for case in suite.cases]
    assert suite.name == name
    assert suite.about
    assert len(set(names)) == len(names) > 1


def test_a_suite_that_does_not_exist_is_refused():
    with pytest.raises(SystemExit, match="There is no suite 'speed'; choose one of solver"):
        find_suite("speed")


def test_the_recorded_rows_have_names_of_cases():
    for name in (
        "solver",
        "zoo",
        "onnx",
        "scale",
        "numbers",
        "intervals",
        "wheel",
        "fuzz",
        "faults",
    ):
        rows = {row["name"] for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]}
        cases = {n for case in find_suite(name).cases for n in case.rows or (case.name,)}
        summaries = {"delivered at 1.5x", "delivered at 3x", "predicted within 10 %", "slower"}
        assert rows - summaries <= cases


def test_rows_of_this_commit_are_kept_and_the_others_measured(tmp_path):
    calls = []

    def measure(settings):
        calls.append(settings)
        return {"speedup": 2.0}

    assert earlier_rows("toy", tmp_path) == []
    write("toy", [{"name": "a", "speedup": 1.0}], tmp_path)
    suite = toy(Case("a", measure), Case("b", measure))
    rows = run_suite(suite, settings(tmp_path, resume=True))
    assert rows == [{"name": "a", "speedup": 1.0}, {"name": "b", "speedup": 2.0}]
    assert earlier_rows("toy", tmp_path) == rows
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]


def test_without_resume_all_rows_are_measured_again(tmp_path):
    write("toy", [{"name": "a", "speedup": 1.0}], tmp_path)
    rows = run_suite(toy(Case("a", lambda settings: {"speedup": 3.0})), settings(tmp_path))
    assert rows == [{"name": "a", "speedup": 3.0}]


def test_only_the_cases_whose_names_match_are_measured(tmp_path):
    suite = toy(*(Case(name, lambda settings: {}) for name in ("ResNet-20", "ResNet-56", "VGG")))
    rows = run_suite(suite, settings(tmp_path, only=("ResNet-*",)))
    assert [row["name"] for row in rows] == ["ResNet-20", "ResNet-56"]


def test_rows_of_cases_that_are_not_chosen_stay(tmp_path):
    write("toy", [{"name": "a", "speedup": 1.0}, {"name": "b", "speedup": 1.0}], tmp_path)
    suite = toy(*(Case(name, lambda settings: {"speedup": 2.0}) for name in "ab"))
    rows = run_suite(suite, settings(tmp_path, only=("b",)))
    assert rows == [{"name": "a", "speedup": 1.0}, {"name": "b", "speedup": 2.0}]


def test_a_pattern_without_a_case_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="No case of toy matches vgg"):
        run_suite(toy(Case("VGG", lambda settings: {})), settings(tmp_path, only=("vgg",)))
    assert not list(tmp_path.iterdir())


def test_a_case_is_left_out_without_what_it_requires(tmp_path):
    case = Case("a", lambda settings: {}, requires="fashion")
    assert not case.is_chosen(Settings())
    assert case.is_chosen(Settings(fashion=tmp_path))


@pytest.mark.parametrize(("speedup", "met"), [(2.0, True), (1.99, False)])
def test_a_row_is_judged_by_its_target(speedup, met):
    row = Case("a", lambda settings: {}, FAST).judge({"speedup": speedup})
    assert row == {"name": "a", "speedup": speedup, "target": "2x", "met": met}


def test_further_rows_of_a_case_keep_their_names_and_have_no_target(tmp_path):
    figures = [{"name": "other", "speedup": 9.0}, {"speedup": 1.0}]
    case = Case("a", lambda settings: figures, FAST, rows=("a", "other"))
    rows = run_suite(toy(case), settings(tmp_path))
    assert rows == [figures[0], {"name": "a", "speedup": 1.0, "target": "2x", "met": False}]
    assert case.is_done({"a", "other"})
    assert not case.is_done({"a"})


def test_a_measurement_that_fails_in_its_own_process_is_a_row(tmp_path):
    name = "open-nsfw, --max-error 0.1"
    suite = replace(find_suite("onnx"), cases=[find_suite("onnx").case(name)])
    (row,) = run_suite(suite, settings(tmp_path, opennsfw=tmp_path))
    assert row["reason"].startswith("it failed: ")
    assert "does not exist" in row["reason"]
    assert row["met"] is False


def test_rows_of_another_commit_are_kept_on_demand_and_say_so(tmp_path):
    write("toy", [{"name": "a"}], tmp_path)
    document = json.loads((tmp_path / "toy.json").read_text())
    document["conditions"] |= {"commit": "another", "cpu": "other"}
    (tmp_path / "toy.json").write_text(json.dumps(document))
    assert earlier_rows("toy", tmp_path) == []
    older = [{"name": "a", "commit": "another", "cpu": "other"}]
    assert earlier_rows("toy", tmp_path, older=True) == older
    write("toy", [*older, {"name": "b"}], tmp_path)
    assert earlier_rows("toy", tmp_path) == [{"name": "b"}]
    assert earlier_rows("toy", tmp_path, older=True) == [*older, {"name": "b"}]


def test_results_have_their_conditions(tmp_path):
    write("toy", [], tmp_path, threads=2)
    conditions = json.loads((tmp_path / "toy.json").read_text())["conditions"]
    assert (conditions["cpu"], conditions["threads"]) == (cpu_model(), 2)
    assert conditions["commit"] == commit()
    assert {"python", "onnxruntime"} <= conditions["versions"].keys()


def test_figures_are_those_of_the_report():
    assert from_report(REPORT, " ".join(FIGURES)) == {
        "accuracy": 0.8,
        "drop_points": 10.0,
        "macs_ratio": 2.0,
        "params_ratio": 1.0,
        "macs_share": 0.5,
        "params_share": 1.0,
        "original_ms": 4.0,
        "original_latency_ms": 4.0,
        "latency_ms": 2.0,
        "speedup": 2.0,
        "speedup_low": 1.9,
        "speedup_high": 2.1,
        "predicted_speedup": None,
        "rel_output_error": 0.1,
        "agreement": 0.85,
        "reason": None,
        "layers_converted": 1,
    }


def test_a_figure_that_does_not_exist_is_refused():
    with pytest.raises(KeyError, match="speed"):
        from_report(REPORT, "speed")


def test_a_network_of_a_comparison_is_set_beside_the_original():
    network = NETWORK | {"macs": 25, "speedup": REPORT["speedup"], "drop_points": 1.0}
    assert from_pair(NETWORK, network, "macs_ratio drop_points speedup") == {
        "macs_ratio": 4.0,
        "drop_points": 1.0,
        "speedup": 2.0,
    }


@pytest.mark.parametrize("accuracy", [0.85, None])
def test_int8_without_labels_has_no_accuracies(accuracy):
    int8 = NETWORK | {"speedup": REPORT["speedup"], "accuracy": accuracy}
    report = REPORT | {"int8": {"original": int8, "converted": int8, "gain": REPORT["speedup"]}}
    assert ("points_between" in from_int8(report)) == (accuracy is not None)


def test_options_are_written_as_on_the_command_line():
    values = {"max_drop": 0.01, "rank": ("conv1=3", "conv2=4"), "labels": False, "int8": True}
    expected = "--max-drop 0.01 --rank conv1=3 --rank conv2=4 --no-labels --int8"
    assert flags(**values) == expected.split()


@pytest.mark.parametrize(("drop", "met"), [(0.6, True), (0.61, False)])
def test_a_row_without_labels_is_judged_by_the_row_with_them(drop, met):
    with_labels = {"name": "a", "drop_points": 0.3, "target": "0.2 points", "met": False}
    without = {"name": "a, no labels", "drop_points": drop, "target": "0.2 points", "met": False}
    alone = {"name": "b, no labels", "drop_points": 0.1, "target": "0.2 points", "met": True}
    target = "0.3 points more than with labels"
    assert compare_to_labels([with_labels, without, alone]) == [
        with_labels,
        without | {"target": target, "met": met},
        alone,
    ]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_suites_that_the_documentation_runs_exist(page):
    suites = re.findall(r"scripts\.benchmarks run (\w+)", page.read_text())
    assert set(suites) <= {*SUITES, "SUITE"}
