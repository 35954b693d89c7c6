"""The command line as a process: progress without a terminal, mistakes, interruptions."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys

from cli_files import ROOT, assert_refused
from networks import make_net

from converter import progress


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


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    make_net(tmp_path / "net.onnx")
    command = f"{sys.executable} -m converter inspect net.onnx | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (ended.returncode, ended.stderr) == (1, "")


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
    assert err == "flatconv: interrupted; files are written whole or not at all.\n"
    assert not (tmp_path / "out").exists()
