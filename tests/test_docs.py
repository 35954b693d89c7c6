"""The tutorials' commands work as they stand, and the pages are built of the docstrings."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import flatconv, work_in

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "pages" / "tutorials").glob("*.md"))


def run(command, folder):
    """What a shell makes of a command in ``folder``."""
    tools = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_commands_of_a_tutorial_work(page, tmp_path):
    (tmp_path / "sample_models").symlink_to(ROOT / "sample_models")
    commands = re.findall(r"^    (.+)$", page.read_text(), re.MULTILINE)
    assert len(commands) > 1
    for command in commands:
        if command.startswith("flatconv "):  # here, with the short races of all tests
            line, _, misses = command.partition(" || test $? = ")
            with work_in(tmp_path):
                status, _, err = flatconv(*shlex.split(line)[1:])
            assert status in {0, int(misses or 0)}, f"{command}\n{err}"
        else:
            found = run(command, tmp_path)
            assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"


def test_the_pages_are_built(tmp_path):
    command = "python -m mkdocs build --config-file docs/mkdocs.yml --strict --quiet --site-dir"
    found = run(f"{command} {tmp_path / 'site'}", ROOT)
    assert found.returncode == 0, found.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    assert "converter.options.Options" in reference
    assert "target_speedup" in reference
