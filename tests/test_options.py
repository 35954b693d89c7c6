"""Options: parsed from text, taken as they are in Python, checked, written and read back."""

import json
from pathlib import Path

import pytest

from converter.errors import ConverterError
from converter.options import LayerForm, Options, parse_input_shape, shapes_by_name


@pytest.mark.parametrize(
    ("texts", "shapes"),
    [
        ([], [{}]),
        (["1,3,32,32"], [{"x": (1, 3, 32, 32)}]),
        (["mask:2,7", "5,3"], [{"mask": (2, 7), "x": (5, 3)}]),
        (["1,3", "1,5"], [{"x": (1, 3)}, {"x": (1, 5)}]),
        (["1,3", "x:1,5", "mask:1"], [{"x": (1, 3), "mask": (1,)}, {"x": (1, 5), "mask": (1,)}]),
    ],
)
def test_input_shapes_are_read(texts, shapes):
    given = Options.of(input_shape=texts).model.input_shape
    assert shapes_by_name(given, ["x", "mask"]) == shapes


@pytest.mark.parametrize("text", ["x:", "1,3,", "1x3", "1,-3", "0,3", "1.5,3"])
def test_a_shape_must_be_positive_integers(text):
    with pytest.raises(ConverterError, match=r"--input-shape. Write a shape as \[NAME:\]1,3,32,32"):
        Options.of(input_shape=[text])


def test_a_shape_of_an_unknown_input_is_refused():
    with pytest.raises(ConverterError, match="no input 'z', only x, mask"):
        shapes_by_name([parse_input_shape("z:1,3")], ["x", "mask"])


@pytest.mark.parametrize(
    ("value", "shapes"),
    [
        ((1, 3, 8, 8), [{"x": (1, 3, 8, 8)}]),
        ([(1, 3), (1, 5)], [{"x": (1, 3)}, {"x": (1, 5)}]),
        ({"mask": (2, 7)}, [{"mask": (2, 7)}]),
        ({"x": [(1, 3), (1, 5)]}, [{"x": (1, 3)}, {"x": (1, 5)}]),
    ],
)
def test_python_gives_shapes_as_tuples(value, shapes):
    assert shapes_by_name(Options.of(input_shape=value).model.input_shape, ["x", "mask"]) == shapes


def test_factory_arguments_are_read():
    assert Options.of(factory_args='{"width": 8, "norm": null}').model.factory_args == {
        "width": 8,
        "norm": None,
    }
    assert Options.of(factory_args={"width": 8}).model.factory_args == {"width": 8}


@pytest.mark.parametrize(
    ("text", "match"), [("width=8", "is not JSON"), ("", "is not JSON"), ("[8]", "JSON object")]
)
def test_factory_arguments_must_be_a_json_object(text, match):
    with pytest.raises(ConverterError, match=match):
        Options.of(factory_args=text)


def test_factory_arguments_that_no_record_can_hold_are_refused_at_once():
    with pytest.raises(ConverterError, match="type object is not JSON"):
        Options.of(factory_args={"norm": object()})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"max_drop": 0.005, "target_speedup": 2, "samples": 64, "cache": False},
        {"mean": (0.5, 0.4), "std": 0.2, "input_shape": (1, 3, 8, 8), "checkpoint": "/a/b.pt"},
        {"form": ("spatial", "conv1=tucker"), "rank": (0.5, 0.25), "keep": "stem"},
        {"layers": {"conv1": LayerForm("tucker", (8, 0.5)), "fc": None}},
        {"finetune": 3, "factory_args": {"width": 8}, "labels": False},
        {"plan": "/plan.json", "lr": 1, "batch_size": 3, "calib": "a:b", "channels": "bgr"},
    ],
)
def test_options_are_written_and_read_back(values):
    options = Options.of(**values)
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_options_of_version_0_1_are_read():
    recorded = {"mean": "0.5,0.4", "factory_args": "{}", "rank": ["conv1=16"], "finetune": 2}
    options = Options.from_json(recorded)
    assert options.images.mean == (0.5, 0.4)
    assert options.layers.rank == ("conv1=16",)
    assert options.training.epochs == 2


def test_data_that_has_no_name_is_not_recorded():
    assert "calib" not in Options.of(calib=[[1.0]]).to_json()
    assert Options.of(calib=Path("x.npz")).to_json()["calib"] == "x.npz"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_drop": 1}, "--max-drop. It must be above 0 and below 1; write 1 % as 0.01"),
        ({"samples": 0}, "--samples. Must be >= 1"),
        ({"threads": 10_000}, "--threads. Must be <="),
        ({"threads": "x"}, "Invalid value 'x' for --threads"),
        ({"std": (0, 1)}, "--std. It must not be 0"),
        ({"mean": "a,b"}, "--mean. Write numbers such as"),
        ({"stages": 3}, "Invalid value 3 for --stages"),
        ({"stages": 2}, "--stages is an option of --form lvh"),
        ({"max_dorp": 0.1}, "no option 'max_dorp'. Did you mean 'max_drop'"),
        ({"max_macs": 0.5, "rank": 16}, "leave out --form, --rank and --plan, or --max-macs"),
        ({"plan": "p.json", "keep": "a"}, "--plan says what happens to each layer"),
        ({"schedule": 2}, "--schedule needs a budget"),
        ({"resume": True}, "--resume needs --finetune or --reconstruct"),
        ({"lr": 0.0}, "--lr. It must be a number above 0"),
        ({"memory": float("inf")}, "--memory. It must be a number above 0"),
        ({"solver": "magic"}, "Invalid value 'magic' for --solver"),
    ],
)
def test_options_that_do_not_fit_are_refused(values, words):
    with pytest.raises(ConverterError, match=words):
        Options.of(**values)


def test_options_may_be_given_as_one_writes_them():
    given = Options.of(checkpoint="net.pth", form="spatial", rank=["0.5"], eval=Path("a.npz"))
    meant = Options.of(checkpoint=Path("net.pth"), form=("spatial",), rank=("0.5",), eval="a.npz")
    assert given == meant
    assert Options.of(rank=0.5) == Options.of(rank=("0.5",))
    assert Options.of(form="", rank=[""], plan="", checkpoint="") == Options()


@pytest.mark.parametrize("name", ["form", "rank", "only", "keep"])
def test_a_plan_leaves_nothing_to_choose(name):
    with pytest.raises(ConverterError, match="--plan says what happens to each layer"):
        Options.of(plan=Path("plan.json"), **{name: ("conv1=8",)})
