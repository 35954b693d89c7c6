"""The order of the packages, and the size of files and functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import converter

ROOT = Path(converter.__file__).parent.parent
FILES = sorted(p for room in ("converter", "scripts") for p in (ROOT / room).rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 300, 60, 7
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path):
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, Function)]


def lines(function):
    """Count the lines of a function without its docstring."""
    count = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        count -= function.body[0].end_lineno - function.body[0].lineno + 1
    return count


def parameters(function):
    """Count the parameters of a function; ``self`` and ``cls`` do not count."""
    args = function.args
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_each_package_imports_only_from_packages_below_it():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    long = [f.name for f in functions(path) if lines(f) > MAX_FUNCTION_LINES]
    wide = [f.name for f in functions(path) if parameters(f) > MAX_PARAMETERS]
    assert (long, wide) == ([], [])


def test_every_public_name_is_there():
    assert all(hasattr(converter, name) for name in converter.__all__)
