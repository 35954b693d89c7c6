"""Plans: written down, read back, replayed, refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from plan_cases import SHAPES, chosen, plan_of, reasons

from converter.errors import ConverterError
from converter.search.plan import Choice, Plan

# written and read


def test_a_plan_survives_json(layers):
    forms, ranks = ("channel", "block1.*=tucker"), ("20", "block1.conv2=2,4")
    plan = plan_of(layers, form=forms, rank=ranks, seed=7)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert (again.seed, again.input_shapes) == (7, SHAPES)


def test_a_plan_says_what_a_person_wants_to_know(layers):
    document = json.loads(plan_of(layers, form=("tucker",), rank=("4,8",)).to_json())
    assert (document["format"], document["version"]) == ("flatconv-plan", 1)
    assert document["input_shapes"] == {"x": [1, 3, 8, 8]}
    assert list(document["layers"]) == [part.name for part in layers]
    entry = document["layers"]["block1.conv1"]
    assert (entry["form"], entry["rank"]) == ("tucker", [4, 8])
    assert len(entry["kernel_sha256"]) == 64
    assert document["layers"]["up"] == {"reason": "its weight is shared by 2 layers"}


def test_a_plan_does_not_change(layers):
    plan = plan_of(layers, form=("channel",))
    with pytest.raises(AttributeError):
        plan.seed = 3
    with pytest.raises(AttributeError):
        plan.choices[0].form = None


def test_a_withdrawn_plan_keeps_every_layer(layers):
    plan = plan_of(layers, form=("channel",), keep=("stem",)).reverted(
        "it is no faster", [layer.name for layer in layers]
    )
    assert plan.chosen() == {}
    assert reasons(plan)["head"] == "it is no faster"
    assert reasons(plan)["stem"] == "the user keeps it"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"format": "flatconv-plan", "version": 1}'],
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ConverterError, match="not a flatconv plan"):
        Plan.from_json(text)


# replayed


@pytest.fixture
def write(tmp_path):
    """Write a plan, or what a hand made of it, to a file."""

    def write_plan(plan, **changes):
        document = json.loads(plan.to_json())
        for name, entry in changes.pop("layers", {}).items():
            document["layers"][name] = entry
        (tmp_path / "plan.json").write_text(json.dumps(document | changes))
        return tmp_path / "plan.json"

    return write_plan


def by_hand(*entries):
    """A plan with nothing that a person would not write."""
    return Plan(tuple(Choice(name, form, rank) for name, form, rank in entries), {})


def test_a_replayed_plan_chooses_the_same(layers, write):
    plan = plan_of(layers, form=("channel",), rank=("20",), keep=("stem",), seed=3)
    assert plan_of(layers, plan=write(plan)) == plan


def test_a_plan_written_by_hand_is_enough(layers, write):
    path = write(by_hand(), layers={"block1.conv1": {"form": "channel", "rank": 4}})
    plan = plan_of(layers, plan=path)
    assert chosen(plan) == {"block1.conv1": ("channel", (4,))}
    assert reasons(plan)["stem"] == "the plan does not name it"
    assert [c.layer for c in plan.choices] == [part.name for part in layers]


def test_a_plan_may_keep_a_layer_without_a_reason(layers, write):
    plan = plan_of(layers, plan=write(by_hand(), layers={"stem": {}}))
    assert reasons(plan)["stem"] == "the plan keeps it"


def test_a_plan_for_other_weights_is_refused(layers, write):
    path = write(plan_of(layers, form=("channel",)))
    conv = layers[1].conv
    changed = replace(layers[1], conv=replace(conv, kernel=conv.kernel * np.float32(1.0001)))
    with pytest.raises(ConverterError, match=r"other weights: layer block1\.conv1 differs"):
        plan_of((layers[0], changed, *layers[2:]), plan=path)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"form": "channel", "rank": 17}, "Rank 17 does not fit; channel takes 1 to 16"),
        ({"form": "channel", "rank": 0}, "Rank 0 does not fit"),
        ({"form": "channel", "rank": -1}, "Rank -1 does not fit"),
        ({"form": "channel", "rank": [4, 4]}, "Rank 4,4 does not fit"),
        ({"form": "tucker", "rank": 4}, "Rank 4 does not fit"),
        ({"form": "channel", "rank": 4.5}, "must be a whole number"),
        ({"form": "channel", "rank": [4.0]}, "must be a whole number"),
        ({"form": "channel", "rank": "4"}, "must be a whole number"),
        ({"form": "channel", "rank": True}, "must be a whole number"),
        ({"form": "channel", "rank": []}, "must be a whole number"),
        ({"form": "channel"}, "must be a whole number"),
        ({"form": "flat", "rank": 4}, "no form 'flat'"),
        ("channel", "not a flatconv plan"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(layers, write, entry, match):
    path = write(by_hand(), layers={"block1.conv1": entry})
    with pytest.raises(ConverterError, match=match) as raised:
        plan_of(layers, plan=path)
    assert str(path) in str(raised.value)


def test_a_plan_for_a_layer_that_cannot_be_converted_is_refused(layers, write):
    with pytest.raises(ConverterError, match="layer up: its weight is shared"):
        plan_of(layers, plan=write(by_hand(("up", "channel", (4,)))))


def test_a_plan_for_an_unknown_layer_is_refused_with_close_names(layers, write):
    path = write(by_hand(("block1.conv3", "channel", (4,))))
    with pytest.raises(ConverterError, match=r"no layer 'block1\.conv3'; .*block1\.conv"):
        plan_of(layers, plan=path)


@pytest.mark.parametrize("changes", [{"version": 2}, {"version": None}, {"format": "other"}])
def test_a_plan_of_another_version_is_refused(layers, write, changes):
    with pytest.raises(ConverterError, match="not a flatconv plan of version 1"):
        plan_of(layers, plan=write(plan_of(layers, form=("channel",)), **changes))


def test_a_damaged_plan_is_refused(layers, write):
    path = write(plan_of(layers, form=("channel",)))
    for text in (path.read_text()[:200], "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConverterError, match=r"plan\.json cannot be used"):
            plan_of(layers, plan=path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00plan"])
def test_an_unreadable_plan_is_refused(layers, tmp_path, content):
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConverterError, match="cannot be read"):
        plan_of(layers, plan=tmp_path / "plan.json")
