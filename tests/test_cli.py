"""The command line as a whole: its options and their help, what is refused at once, processes."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from cli_files import assert_refused
from helpers import flatconv, make_net

import converter
from converter import progress
from converter.cli import app
from converter.options import SUBJECTS, Options

ROOT = Path(converter.__file__).parent.parent
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


# refused at once

EARLY = """
import contextlib
import io
import json
import shlex
import sys

from converter import cli

for line in sys.stdin:
    sys.argv = ["flatconv", *shlex.split(line)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
    loaded = sorted({"torch", "onnxruntime", "onnx_ir"} & set(sys.modules))
    print(json.dumps([[status, out.getvalue(), err.getvalue()], loaded]))
"""
CONVERT = "convert net.onnx -o out "
AT_ONCE = {
    CONVERT + "--max-drop 0": "--max-drop. It must be above 0 and below 1",
    CONVERT + "--max-drop nan": "--max-drop. It must be above 0 and below 1",
    CONVERT + "--max-error inf": "--max-error. It must be a number above 0",
    CONVERT + "--max-macs 43": "--max-macs. It must be above 0 and below 1",
    CONVERT + "--max-macs half": 'unable to convert "half" into float',
    CONVERT + "--max-bytes 500kB": 'unable to convert "500kB" into float',
    CONVERT + "--target-speedup 1": "--target-speedup. It must be above 1",
    CONVERT + "--target-speedup 2x": 'unable to convert "2x" into float',
    CONVERT + "--drop-type both": 'Choose from: "absolute", "relative"',
    CONVERT + "--max-joules 3": "Unknown option: --max-joules",
    CONVERT + "--solver als": 'Choose from: "flatconv", "tensorly", "tensorly+refine"',
    CONVERT + "--threads 0": "--threads. Must be >= 1",
    CONVERT + "--samples 0": "--samples. Must be >= 1",
    CONVERT + "--lr 0": "--lr. It must be a number above 0",
    CONVERT + "--train-batch 0": "--train-batch. Must be >= 1",
    CONVERT + "--channels grb": 'Choose from: "rgb", "bgr"',
    CONVERT + "--std 0.2,0": "--std. It must not be 0",
    CONVERT + "--mean half": "--mean: Write numbers such as 0.485,0.456,0.406",
    CONVERT + "--input-shape 1x3": "--input-shape: Write a shape as [NAME:]1,3,32,32",
    CONVERT + "--factory-args [8]": "--factory-args: It must be a JSON object",
    CONVERT + "--max-macs 0.5 --form spatial": "leave out --form, --rank and --plan, or --max-macs",
    CONVERT + "--max-error 0.1 --rank 8": "leave out --form, --rank and --plan, or --max-error",
    CONVERT + "--target-speedup 2 --plan plan.json": "or --target-speedup",
    CONVERT + "--plan plan.json --keep a": "--plan says what happens to each layer",
    CONVERT + "--stages 2": "--stages is an option of --form lvh",
    CONVERT + "--schedule 2 --finetune 2": "--schedule needs a budget",
    CONVERT + "--max-macs 0.5 --schedule 3 --finetune 2": "with an epoch or more for each step",
    CONVERT + "--resume": "--resume needs --finetune or --reconstruct, and the cache",
    CONVERT + "--resume --finetune 1 --no-cache": "and the cache",
    CONVERT + "--finetune 1": "--finetune needs inputs to train on; give --train",
    CONVERT + "--max-drop 0.01": "--max-drop needs sample inputs; give --calib",
    CONVERT + "--int8": "--int8 needs sample inputs; give --calib",
    CONVERT + "--frontier --form lvh": "--frontier needs a search",
    "convert net.onnx": "Name the output folder with -o, or pass --dry-run",
    "convert missing.onnx -o out": "missing.onnx does not exist",
    "convert net.onnx -o net.onnx": "net.onnx is a file; name a folder",
    "convert -o out": "parameter --model requires an argument",
    "convrt net.onnx": 'Unknown command "convrt"',
    "finetune out": "Give --epochs or --reconstruct, at least 1",
    "finetune out --epochs 1 --lr 0": "--lr. It must be a number above 0",
    "finetune out --epochs 1 --max-drop 0.1": "Unknown option: --max-drop",
    "inspect net.onnx --max-drop 0.1": "Unknown option: --max-drop",
    "inspect net.onnx --seed -1": "--seed. Must be >= 0",
    "measure net.onnx": "Name the table to write with -o, or a bundle with --prepare",
    "measure net.onnx -o missing/latency.json": "cannot be written",
    "compare net.onnx missing.onnx": "missing.onnx does not exist",
    "compare net.onnx net.onnx --html missing/page.html": "cannot be written",
    "finetune net.onnx --epochs 1": "net.onnx is not an output folder of flatconv",
    "export out": "parameter --output requires an argument",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What one process says to each line, and what it has imported by then."""
    folder = tmp_path_factory.mktemp("early")
    make_net(folder / "net.onnx")
    ended = subprocess.run(
        [sys.executable, "-c", EARLY],
        input="\n".join(AT_ONCE),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["net.onnx"]
    return dict(zip(AT_ONCE, map(json.loads, ended.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("line", AT_ONCE)
def test_options_are_refused_before_anything_heavy_is_imported(refusals, line):
    outcome, loaded = refusals[line]
    assert_refused(outcome, AT_ONCE[line])
    assert loaded == []


# progress


def test_without_a_terminal_progress_is_told_in_lines(monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", -1.0)
    err = io.StringIO()
    with contextlib.redirect_stderr(err), progress.show_progress(False) as update:
        for done in (0.25, 0.5, 1.0, 0.0, 0.25, 0.5):  # twice, as in a schedule
            update("training", done)
    shown = [("training", 25), ("training", 50), ("training", 100)]
    shown += [("training 2", 0), ("training 2", 25), ("training 2", 50)]
    assert err.getvalue().splitlines() == [f"{stage}: {done} %" for stage, done in shown]
    err = io.StringIO()
    with (
        contextlib.redirect_stderr(err),
        progress.show_progress(False, {"training": 1e6}) as update,
    ):
        update("training", 0.5)
    assert re.fullmatch(r"training: 0 %, about 11 days, 13:46:\d\d left\n", err.getvalue())
    err = io.StringIO()
    with contextlib.redirect_stderr(err), progress.show_progress(True) as update:
        update("training", 0.5)
    assert err.getvalue() == ""


# in a process of its own


def test_a_mistake_ends_the_process_with_status_2(tmp_path):
    command = [sys.executable, "-m", "converter", "convert", "missing.onnx", "-o", "out", "-q"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert_refused((ended.returncode, ended.stdout, ended.stderr), "missing.onnx does not exist")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_command_says_so_and_ends(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import sys, time\ndef build():\n    print('begun', flush=True)\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "converter", "convert", "slow:build", "-o", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "flatconv: interrupted; nothing was written.\n"
    assert not (tmp_path / "out").exists()
