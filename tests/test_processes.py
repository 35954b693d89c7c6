"""Two processes give the result of one; what they cannot do is refused."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from networks import fixed_race, flatconv, make_net, noise, table_by_macs
from torch import distributed

import converter
from converter import ConverterError
from converter.decomposition.forms import FORMS
from converter.evaluation import compare
from converter.evaluation.check import difference
from converter.processes import SINGLE_PROCESS, is_first, process_group

# What each of two processes runs. Reading the training inputs leaves a file for each process.
BOTH = """
import contextlib
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import fixed_race
from quick import read_torchlib_once, take_few_steps, time_little

import converter
from converter import cli
from converter.evaluation import compare
from converter.processes import process_group

compare.race = fixed_race
read_torchlib_once(pytest.MonkeyPatch())
take_few_steps(pytest.MonkeyPatch())
time_little(pytest.MonkeyPatch())


def inputs():
    Path(f"read_by_{os.environ['RANK']}").touch()
    with np.load("train.npz") as arrays:
        return iter([dict(arrays)])


def flatconv(line):
    sys.argv = ["flatconv", *line.split(), "--quiet"]
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            return end.code, err.getvalue()


def main():
    group = process_group("cpu")
    assert group.size == 2
    for count in range(5):
        items = list(range(count))
        part = list(group.shard(items))
        assert part == items[group.rank :: 2]
        assert group.gather(part) == ([] if group.rank else items)
    assert group.all_equal(5_000_001)
    for difference in (1, 2, -1):
        assert not group.all_equal(5 + difference * group.rank)
    assert group.broadcast(lambda: group.rank) == 0
    assert group.all_reduce_mean(group.rank) == 0.5
    if group.rank:
        assert [task(3) for task in group.tasks()] == ["3"]
    else:
        assert group.run_on_all(str, 2) == "2"
        group.broadcast_task(None)
    lines = Path("lines.txt").read_text().splitlines()
    if group.rank == 0:
        os.environ["WORLD_SIZE"] = "1"
        for line in lines:
            status, err = flatconv(line.format("one", "train.npz"))
            assert status == 0, (line, err)
        os.environ["WORLD_SIZE"] = "2"
    for line in lines:
        group.all_reduce_mean(0)  # until both are done with the last one
        status, err = flatconv(line.format("two", "both:inputs"))
        assert status == 0, (line, err)
    line = "convert toy:build --calib calib.npz --max-macs 0.5 --schedule 2 --finetune 2 -o no"
    status, err = flatconv(line)
    assert status == 2 and "--schedule works in one process" in err
    if group.rank:
        try:
            converter.convert("net.onnx")
        except converter.ConverterError as error:
            assert "converter.run_worker" in str(error)


if __name__ == "__main__":
    main()
"""
ROOT = Path(converter.__file__).parents[1]
CALIB = "convert net.onnx --calib calib.npz --cache=false"
LINES = (
    CALIB + " --max-macs 0.5 --latency latency.json -o {0}/search",
    CALIB + " --form separable --rank 0.5 -o {0}/moments --correct=false",
    "convert toy:build --cache=false --input-shape 1,3,8,8 --rank conv2=6 --lr 0.01 -o {0}/trained "
    "--train {1} --finetune 6",
    "finetune {0}/trained --train {1} --epochs 2 --lr 0.01",
)


def launched(*command):
    """Run Python in two processes; give status and standard error."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--main_process_port", "0"]
    process = subprocess.run(
        [*launch, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([os.getcwd(), str(ROOT), str(ROOT / "tests")])},
    )
    return process.returncode, process.stderr


@pytest.fixture
def inputs(workplace):
    """A network, a table of its MACs as times, and inputs to fit and to train."""
    make_net(workplace / "net.onnx", (3, 16, 16), size=8, loss=0.05)
    np.savez("calib.npz", x=noise(300, 3, 8, 8, seed=1))
    np.savez("train.npz", x=noise(400, 3, 8, 8, seed=3))
    Path("latency.json").write_text(table_by_macs("net.onnx", (1, 3, 8, 8), FORMS).to_json())
    return workplace


def outputs(path, x):
    """What an ONNX file gives for ``x``."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def error_of(folder, x):
    """The difference between a trained network and its original."""
    original, trained = (
        outputs(folder / "trained" / file, x) for file in ("original.onnx", "model.onnx")
    )
    return difference(original, trained)


def test_two_processes_find_the_same_plan_and_train_as_one_does(inputs, monkeypatch):
    monkeypatch.setattr(compare, "race", fixed_race)
    untrained = LINES[2].split(" --train")[0].format("start").split()
    assert flatconv(*untrained, "--quiet")[0] == 0
    (inputs / "both.py").write_text(BOTH)
    (inputs / "lines.txt").write_text("\n".join(LINES))
    status, err = launched("both.py")
    assert status == 0, err
    assert {path.name for path in inputs.glob("read_by_*")} == {"read_by_0", "read_by_1"}
    searched = [inputs / folder / "search" for folder in ("one", "two")]
    for file in ("plan.json", "model.onnx"):
        one, two = ((folder / file).read_bytes() for folder in searched)
        assert one == two
    x = noise(128, 3, 8, 8, seed=4)  # the order of sums differs, and the solver amplifies it
    one, two = (outputs(inputs / folder / "moments" / "model.onnx", x) for folder in ("one", "two"))
    assert difference(one, two) < 1e-3
    x = noise(128, 3, 8, 8, seed=4)
    start, one, two = (error_of(inputs / folder, x) for folder in ("start", "one", "two"))
    assert max(one, two) < 0.8 * start
    assert abs(one - two) < 0.1 * start


def test_all_processes_end_if_the_first_fails(inputs):
    line = "convert net.onnx --calib calib.npz --max-drop 0.01 --latency nothing.json -o out -q"
    status, err = launched("-m", "converter", *line.split())
    assert status != 0
    assert "nothing.json" in err
    assert not (inputs / "out").exists()


def test_a_lost_process_is_reported(monkeypatch):
    def broken(*_):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(distributed, "broadcast_object_list", broken)
    monkeypatch.setattr(distributed, "gather_object", broken)
    group = replace(SINGLE_PROCESS, rank=1, size=2)
    for call in (lambda: list(group.tasks()), lambda: group.gather([1])):
        with pytest.raises(ConverterError, match="Another process is gone: Connection closed"):
            call()


def test_without_accelerate_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConverterError, match="flatconv\\[tune\\]"):
        process_group("cpu")


@pytest.mark.parametrize(
    ("name", "number", "first"),
    [("RANK", "0", True), ("RANK", "1", False), ("PMI_RANK", "3", False), ("RANK", "", True)],
)
def test_a_process_knows_whether_it_is_the_first_by_what_started_it(
    name, number, first, monkeypatch
):
    monkeypatch.setenv(name, number)
    assert is_first() is first
