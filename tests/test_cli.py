"""The command line as a whole: its options by command, panel and value, and their help."""

import re
from dataclasses import fields

import pytest
from networks import flatconv

import converter
from converter.cli import app
from converter.options import SUBJECTS, Options

TIMING = {"--threads", "--provider", "--batch-size"}
IMAGES = {"--mean", "--std", "--resize", "--crop", "--channels", "--layout"}
MODEL = {"--checkpoint", "--factory-args", "--state-key", "--trust-pickle", "--input-shape"}
TRAINING = set(
    "--train --finetune --reconstruct --labels --loss --lr --train-batch --accumulate --precision "
    "--augment --workers --resume".split()
)
# The options of each command by the panel that its help shows them in.
PANELS = {
    "finetune": {
        "Parameters": {"--directory", "--output", "--evaluate", "--json", "--verbose", "--quiet"},
        "Training": TRAINING | {"--eval", "--device", "--seed", "--trust-pickle"},
    },
    "inspect": {
        "Parameters": set(
            "--model --calib --latency --int8 --gains --normal --json --cache --seed "
            "--verbose".split()
        ),
        "Model": MODEL,
        "Images": IMAGES,
        "Timing": TIMING,
    },
    "measure": {
        "Parameters": set(
            "--model --output --prepare --input-shape --int8 --verbose --quiet".split()
        ),
        "Timing": TIMING,
    },
    "compare": {
        "Arguments": {"MODELS"},
        "Parameters": set(
            "--data --eval --html --json --input-shape --task --seed --verbose --quiet".split()
        ),
        "Images": IMAGES,
        "Timing": TIMING,
    },
    "export": {"Parameters": {"--directory", "--output", "--verbose"}},
}


def parsed(line):
    """What a command is called with."""
    _, bound, _ = app.parse_args(line.split(), exit_on_error=False, print_error=False)
    return bound.arguments


def panels(command):
    """The options of a command by panel."""
    found = {}
    for argument in app[command].assemble_argument_collection(
        default_parameter=app.default_parameter
    ):
        if argument.show:
            (group,) = argument.parameter.group
            found.setdefault(group._name, set()).add(argument.names[0])
    return found


@pytest.mark.parametrize("command", PANELS)
def test_each_command_offers_what_it_uses_by_subject(command):
    assert panels(command) == PANELS[command]


def test_convert_offers_every_option_in_the_panel_of_its_subject():
    found = panels("convert")
    assert found.pop("Parameters") == set(
        "--model --output --evaluate --dry-run --json --verbose --quiet".split()
    )
    titles = {item.name: item.name.capitalize() for item in fields(Options)}
    assert list(found) == list(titles.values())
    for name, subject in SUBJECTS.items():
        option = {"epochs": "--finetune"}.get(name, "--" + name.replace("_", "-"))
        assert (option in found[titles[subject]]) == (name != "layers")


@pytest.mark.parametrize("command", ["convert", *PANELS])
def test_the_help_of_a_command_shows_its_panels(command):
    status, text, err = flatconv(command, "--help")
    assert (status, err) == (0, "")
    assert set(re.findall(r"╭─ (\w+) ─", text)) == set(panels(command))
    for names in panels(command).values():
        assert [name for name in names if name not in text] == []


def test_the_help_of_all_names_the_commands():
    status, text, err = flatconv()
    assert (status, err) == (0, "")
    assert re.findall(r"^│ (\w+) ", text, re.MULTILINE) == [
        "compare",
        "convert",
        "export",
        "finetune",
        "inspect",
        "measure",
    ]


def test_the_version_is_told():
    assert flatconv("--version") == (0, converter.__version__ + "\n", "")


def test_what_is_on_can_be_turned_off():
    options = parsed("convert net.onnx -o out --no-cache --no-correct --no-labels")["options"]
    turned = options.resources.cache, options.search.correct, options.training.labels
    assert turned == (False, False, False)
    assert parsed("finetune out --no-labels")["options"].labels is False
    assert parsed("inspect net.onnx --no-cache")["settings"].cache is False


def test_an_option_that_is_left_out_of_finetune_is_as_at_the_conversion():
    given = {n: v for n, v in vars(parsed("finetune out --lr 0.1")["options"]).items() if v}
    assert given == {"lr": 0.1}


def test_options_that_are_repeated_are_kept_in_order():
    options = parsed("convert net.onnx -o out --form channel --form conv1=tucker --keep a --keep b")
    assert options["options"].layers.form == ("channel", "conv1=tucker")
    assert options["options"].layers.keep == ("a", "b")
