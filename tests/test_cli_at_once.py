"""Mistakes in options: refused before anything heavy is imported."""

import json
import os
import subprocess
import sys

import pytest
from cli_files import ROOT, assert_refused
from networks import make_net

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
