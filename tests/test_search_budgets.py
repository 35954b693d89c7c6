"""Budgets together: any two, and four at once; times are counts of MACs, so nothing is random."""

import itertools
import re

import numpy as np
import pytest
from conv_cases import difference
from networks import macs_stopwatch, make_net, table_by_macs, varied, work_in

import converter
from converter.graph.network import load, open_session
from converter.runtime import stopwatch
from converter.runtime.ort import run
from converter.search.budgets import BUDGETS

X = varied(64, 3, 8, 8, seed=1)
# All of these can be kept together.
FEASIBLE = {
    "max_drop": 0.02,
    "max_error": 0.08,
    "target_speedup": 3.0,
    "max_macs": 0.35,
    "max_bytes": 0.4,
}
COSTS = ["target_speedup", "max_macs", "max_bytes"]
FOURS = [(loss, *COSTS) for loss in ("max_drop", "max_error")]
IMPOSSIBLE = {
    "max_drop": 0.004,
    "max_error": 0.03,
    "target_speedup": 50.0,
    "max_macs": 0.01,
    "max_bytes": 0.01,
}
NAMED = re.compile(r"without (\w+) (\S+) the others are kept, and at best ([^;]*[^;.])")


@pytest.fixture(autouse=True, scope="module")
def counted_time():
    """Races count multiply-accumulates."""
    settings = stopwatch.TimingSettings(
        pause_s=0.0, race_s=0.0, min_rounds=2, max_rounds=2, stopwatch=macs_stopwatch
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "DEFAULT_SETTINGS", settings)
        yield


@pytest.fixture(autouse=True, scope="module")
def place(tmp_path_factory):
    """A network whose kernels are nearly of low rank, its times, and sample inputs."""
    with work_in(tmp_path_factory.mktemp("budgets")) as here:
        make_net(here / "net.onnx", channels=(3, 32, 32), size=8, loss=0.3)
        (here / "table.json").write_text(table_by_macs("net.onnx", (1, 3, 8, 8)).to_json())
        np.savez("calib.npz", x=X)
        yield here


@pytest.fixture(scope="module")
def convert(place):
    """Convert under limits; for ``max_drop``, accuracy is 1 less the relative output error."""
    original = run(open_session(load(place / "net.onnx")), {"x": X})["logits"]

    def evaluate(predict):
        return 1 - float(difference(predict({"x": X})["logits"], original))

    def convert(**limits):
        return converter.convert(
            "net.onnx",
            calib="calib.npz",
            latency="table.json",
            evaluate=evaluate if "max_drop" in limits else None,
            **limits,
        )

    return convert


def measured(result, option):
    """The value that a limit is held against, from the report alone."""
    report = result.report.to_dict()
    if option == "max_drop":
        return report["drop_points"] / 100
    if option == "max_error":
        return report["rel_output_error"]
    if option == "target_speedup":
        return report["speedup"]["median"]
    column = option.removeprefix("max_")
    return report["converted"][column] / report["original"][column]


def keeps(result, option, limit):
    value = measured(result, option)
    return value >= limit if option == "target_speedup" else value <= limit


def best_of(option, words):
    """The value in a sentence on what is best; a drop is told in points."""
    return float(re.search(r"[\d.]+", words)[0]) / (100 if option == "max_drop" else 1)


def relaxed(option, value):
    """A limit that is easier than a value: the search estimates losses on a part of the inputs."""
    return value * {"target_speedup": 0.98, "max_macs": 1.02, "max_bytes": 1.02}.get(option, 1.15)


def test_every_budget_is_tested():
    assert set(FEASIBLE) == set(IMPOSSIBLE) == {budget.option for budget in BUDGETS}


@pytest.mark.parametrize("options", [*itertools.combinations(FEASIBLE, 2), *FOURS], ids="+".join)
def test_budgets_hold_together(convert, options):
    limits = {option: FEASIBLE[option] for option in options}
    result = convert(**limits)
    assert result.report.met, result.report.reason
    assert {option: keeps(result, option, limit) for option, limit in limits.items()} == (
        dict.fromkeys(limits, True)
    )
    assert result.report.budget == limits
    assert result.report.reason is None


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (four, option)
        for four in FOURS
        for option in four
        if option not in ("max_macs", "max_bytes")
    ],
)
def test_of_four_budgets_the_one_in_the_way_is_named_with_its_best(convert, options, option):
    limits = {name: FEASIBLE[name] for name in options} | {option: IMPOSSIBLE[option]}
    result = convert(**limits)
    assert not result.report.met
    assert result.report.reason.startswith("No network found keeps all budgets: ")
    ((name, limit, words),) = NAMED.findall(result.report.reason)
    assert (name, float(limit)) == (option, IMPOSSIBLE[option])
    best = best_of(name, words)
    assert not keeps(result, option, limits[option])
    attainable = convert(**limits | {option: relaxed(option, best)})
    assert attainable.report.met, attainable.report.reason


@pytest.mark.parametrize("options", FOURS, ids="+".join)
def test_where_only_the_speedup_is_out_of_reach_the_others_are_kept(convert, options):
    limits = {name: FEASIBLE[name] for name in options} | {"target_speedup": 50.0}
    result = convert(**limits)
    assert not result.report.met
    kept = {name: keeps(result, name, limit) for name, limit in limits.items()}
    assert kept == {name: name != "target_speedup" for name in limits}


@pytest.mark.parametrize(("option", "words"), [("max_macs", "MACs"), ("max_bytes", "bytes")])
def test_of_four_budgets_one_beyond_all_forms_is_named(convert, option, words):
    limits = {name: FEASIBLE[name] for name in FOURS[1]} | {option: IMPOSSIBLE[option]}
    result = convert(**limits)
    assert not result.report.met
    least = re.fullmatch(
        rf"{option} \S+ is out of reach: no choice of faster forms leaves less than (\S+) "
        rf"of the {words}\.",
        result.report.reason,
    )[1]
    attainable = convert(**{option: float(least) + 0.01})
    assert attainable.report.met, attainable.report.reason


def test_two_budgets_beyond_all_forms_are_both_named(convert):
    result = convert(max_macs=0.01, max_bytes=0.01)
    assert re.fullmatch(
        " ".join(
            rf"{option} 0\.01 is out of reach: no choice of faster forms leaves less than \S+ of "
            rf"the {words}\."
            for option, words in (("max_macs", "MACs"), ("max_bytes", "bytes"))
        ),
        result.report.reason,
    )


@pytest.mark.parametrize("first", ["max_drop", "max_error"])
def test_a_loss_that_nothing_is_known_of_beforehand_is_kept(convert, first):
    """The search begins far above the loss of the fastest network, which loses too much."""
    result = convert(**{first: FEASIBLE[first]})
    assert result.report.met, result.report.reason
    assert keeps(result, first, FEASIBLE[first])
    assert result.plan.chosen()


@pytest.mark.parametrize("cost", ["max_macs", "max_bytes"])
def test_of_two_budgets_that_contradict_each_other_both_are_named(convert, cost):
    limits = {"max_error": IMPOSSIBLE["max_error"], cost: FEASIBLE[cost]}
    result = convert(**limits)
    assert not result.report.met
    named = NAMED.findall(result.report.reason)
    assert {name: float(limit) for name, limit, _ in named} == limits
    for name, _, words in named:
        best = best_of(name, words)
        attainable = convert(**limits | {name: relaxed(name, best)})
        assert attainable.report.met, attainable.report.reason
