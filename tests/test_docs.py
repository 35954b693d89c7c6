"""The documentation: commands run, options exist, tables are those of the results, pages build."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import flatconv, work_in
from safetensors.torch import save_file

import converter
from converter.cli import app
from converter.decomposition.forms import FORMS
from scripts import doc_figures, doc_layout, doc_tables

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "pages"
README = (ROOT / "README.md").read_text()
TEXTS = [ROOT / "README.md", *sorted(PAGES.rglob("*.md"))]
RUN_GUIDES = [page for page in sorted(PAGES.glob("guides/*.md")) if "```bash" in page.read_text()]
# Options of other programs that the pages name.
FOREIGN = {"--num_processes", "--multi_gpu", "--nthreads", "--config-file"}


def run(command, folder, **more):
    """Run a command in ``folder``, with the programs of this environment, in this checkout."""
    tools = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **more,
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


# Less data and fewer channels than on the pages, with which the same commands work.
SMALLER = {
    "audio": {
        '"widen_factor": 0.25': '"widen_factor": 0.03125',
        "((64, 12, 1024))": "((32, 12, 64))",
    },
    "int8": {},
    "medical": {"[8, 16, 32]": "[2, 4, 4]", "((8, 1, 32, 32, 32))": "((4, 1, 8, 8, 8))"},
    "onnx": {
        "[[16], [32], [64]], 16,": "[[4], [8], [8]], 4,",
        "((64, 3, 32, 32))": "((16, 3, 32, 32))",
    },
    "torch": {},
    "README": {"((64, 3, 16, 16)": "((16, 3, 16, 16)", "32, 64": "4, 64", "(3, 32": "(3, 4"},
}


def smaller(text, name):
    """Make what the scripts of a page prepare smaller; the commands stay as they are."""
    for large, small in SMALLER[name].items():
        assert large in text
        text = text.replace(large, small)
    return text


def write_samples(folder):
    """Write a small network and a part of the data under the names of those of the project."""
    made, given = folder / "sample_models", ROOT / "sample_models"
    made.mkdir()
    (made / "__init__.py").touch()
    code = (given / "paper_cifar10.py").read_text()
    assert "(96, 128, 256)" in code
    (made / "paper_cifar10.py").write_text(code.replace("(96, 128, 256)", "(8, 8, 8)"))
    build = runpy.run_path(str(made / "paper_cifar10.py"))["build"]
    torch.manual_seed(0)
    save_file(build().state_dict(), made / "paper_cifar10.safetensors")
    for name in ("cifar10_calib.npz", "cifar10_eval.npz"):
        with np.load(given / name) as data:
            np.savez(made / name, **{key: data[key][:64] for key in data})


def commands(page):
    """Split the bash blocks of a page into flatconv commands, Python scripts and the rest."""
    text = smaller(page.read_text(), page.stem)
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        joined = block.replace("\\\n", " ")
        for part in re.split(r"^(flatconv .*\n)", joined, flags=re.MULTILINE):
            yield from filter(str.strip, re.split(r'^(python -c "\n[^"]*"\n)', part, flags=re.M))


def run_flatconv(command, folder):
    """Run a command in this process, with the short races of all tests."""
    line, _, other_status = command.strip().partition(" || test $? = ")
    line = re.sub(
        r'"\$\(cat (\S+)\)"', lambda match: shlex.quote((folder / match[1]).read_text()), line
    )
    status, _, err = flatconv(*shlex.split(line)[1:])
    assert status in {0, int(other_status or 0)}, f"{command}\n{err}"


@pytest.mark.parametrize("page", RUN_GUIDES, ids=lambda page: page.stem)
def test_the_commands_of_a_guide_work(page, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("sample_models")]:
        monkeypatch.delitem(sys.modules, name)
    write_samples(tmp_path)
    assert len(list(commands(page))) > 1
    for command in commands(page):
        with work_in(tmp_path):
            if command.startswith("flatconv "):
                run_flatconv(command, tmp_path)
            elif command.startswith("python -c "):
                exec(shlex.split(command)[2], {"__name__": "__main__"})
            else:
                done = run(["bash", "-c", command], tmp_path)
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_guides_have_commands_that_are_run():
    assert {page.stem for page in RUN_GUIDES} == {"audio", "int8", "medical", "onnx", "torch"}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_every_option_that_a_page_names_exists(page):
    known = set(re.findall(r"--[a-z][\w-]*", app.generate_docs(output_format="markdown")))
    text = re.sub(r"^\|.*$", "", page.read_text(), flags=re.MULTILINE)  # without tables
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= known | FOREIGN


def written_commands(page):
    """Find the flatconv commands of all code on a page, without placeholders."""
    joined = page.read_text().replace("\\\n", " ")
    code = re.findall(r"^```\w+\n(.*?)^```", joined, re.MULTILINE | re.DOTALL)
    code += re.findall(r"(?<!`)`([^`]+)`(?!`)", joined)
    line = (
        r"(?:flatconv|-m converter) ((?:convert|finetune|inspect|measure|compare|export) [^\n|]*)"
    )
    for text in re.findall(line, "\n".join(code)):
        yield (
            text.replace('"$(cat resnet.json)"', "{}")
            .replace('"$(cat unet.json)"', "{}")
            .replace("...", "-o out" if " -o " not in text else "")
        )


COMMANDS = [(page.stem, line) for page in TEXTS for line in written_commands(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_of_a_page_parses(page, line):
    app.parse_args(shlex.split(line, comments=True), exit_on_error=False, print_error=False)


# What an option needs beside it.
BESIDE = {
    "--schedule": "--max-macs 0.5 --finetune 9",
    "--resume": "--finetune 1",
    "--stages": "--form lvh",
}


def written_options(page):
    """Find the options with their values in inline code, each code by itself."""
    for code in re.findall(r"(?<!`)`(--[^`]+)`(?!`)", page.read_text()):
        if " " in code or code.startswith("--no-"):
            yield code.replace("\n", " ").replace("{...}", "{}")


OPTIONS = sorted({code for page in TEXTS for code in written_options(page)})


@pytest.mark.parametrize("code", OPTIONS)
def test_every_option_with_a_value_parses(code):
    words = [word for word in shlex.split(code) if word != "..."]
    beside = BESIDE.get(words[0], "").split()
    line = ["convert", "net.onnx", "-o", "out", *words, *beside]
    app.parse_args(line, exit_on_error=False, print_error=False)


def test_pages_have_commands_and_options_that_are_parsed():
    assert len(COMMANDS) > 20 and len(OPTIONS) > 20
    assert "--no-cache" in OPTIONS and "--no-correct" in OPTIONS and "--no-labels" in OPTIONS


def test_the_readme_is_short():
    assert len(README.encode()) <= 10_000
    assert len(README.split()) <= 1_500
    assert README.count("\n| --- |") == 1


def test_the_readme_names_the_two_commands_that_set_up_and_test():
    for script in ("scripts/demo.sh", "scripts/test.sh"):
        assert f"bash {script}" in README
        assert (ROOT / script).exists()


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_python_example_of_the_readme_ends_in_an_onnxruntime_session(tmp_path, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "example.py").write_text(smaller(example, "README"))
    with work_in(tmp_path):
        runpy.run_path("example.py")
    assert capsys.readouterr().out.endswith("(1, 12544)\n")
    assert (tmp_path / "out" / "model.onnx").exists()


def test_the_form_of_the_extension_page_works_in_the_module_of_a_factory(tmp_path):
    code = re.search(r"```python\n(.*?)```", (PAGES / "extend.md").read_text(), re.DOTALL)[1]
    before = dict(FORMS)
    try:
        with work_in(tmp_path):
            (tmp_path / "mine.py").write_text(f"from toy import build\n\n{code}")
            arguments = "convert mine:build --input-shape 1,3,8,8 --form conv2=narrow_input -o out"
            status, _, err = flatconv(*arguments.split())
            assert status == 0, err
            assert '"narrow_input"' in (tmp_path / "out" / "plan.json").read_text()
            del FORMS["narrow_input"], sys.modules["mine"]  # as in a new process
            replayed = "convert mine:build --input-shape 1,3,8,8 --plan out/plan.json -o again"
            status, _, err = flatconv(*replayed.split())
            assert status == 0, err
            del FORMS["narrow_input"], sys.modules["mine"]  # as in a new process
            assert len(list(converter.load("out").conv2)) == 2
    finally:
        FORMS.clear()
        FORMS.update(before)


@pytest.mark.parametrize("page", doc_tables.PAGES, ids=lambda page: page.stem)
def test_the_tables_are_those_of_the_results(page):
    text = page.read_text()
    assert "<!-- table: " in text
    assert doc_tables.filled(text) == text


def test_every_table_is_shown_and_every_result_is_in_a_table():
    shown = re.findall(r"<!-- table: (\w+) -->", (PAGES / "benchmarks.md").read_text())
    assert sorted(shown) == sorted([*doc_layout.TABLES, "missed"])
    results = {path.stem for path in doc_tables.RESULTS.glob("*.json")}
    assert {layout.results for layout in doc_layout.TABLES.values()} == results


def test_a_table_leaves_out_empty_columns_and_marks_rows_measured_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(doc_tables, "RESULTS", tmp_path)
    monkeypatch.setitem(
        doc_layout.TABLES, "toy", doc_layout.Table("toy", "speedup minutes drop_points met")
    )
    (tmp_path / "toy.json").write_text(
        """{"conditions": {"cpu": "C", "threads": 2, "date": "D", "commit": "abc", "versions":
        {"onnxruntime": "1", "torch": "2", "tensorly": "3", "numpy": "4"}}, "rows": [
        {"name": "a", "speedup": 2.0, "met": true},
        {"name": "b", "drop_points": 0.5, "commit": "def", "cpu": "E"}]}"""
    )
    assert doc_tables.table("toy").splitlines() == [
        "| Network | Speedup | Points lost | Met |",
        "| --- | ---: | ---: | --- |",
        "| a | 2.00 |  | yes |",
        "| b ¹ |  | 0.50 |  |",
        "",
        "C, 2 threads, onnxruntime 1, torch 2, tensorly 3, numpy 4; D, commit abc.",
        "",
        "¹ commit def, E.",
    ]
    assert doc_tables.missed() == ""


def test_a_summary_of_rows_that_are_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(doc_tables, "SUMMARY", (("a", "paper", "no such row"),))
    with pytest.raises(ValueError, match="not enough values"):
        doc_tables.summary()


@pytest.mark.parametrize("name", doc_figures.PICTURES)
def test_the_pictures_are_those_of_the_results(name):
    rows = doc_tables.read("resnets_untuned")["rows"]
    assert (PAGES / "pictures" / name).read_text() == doc_figures.PICTURES[name](rows)


def test_the_pages_are_built_without_a_warning(tmp_path):
    command = "python -m mkdocs build --config-file docs/mkdocs.yml --strict --quiet --site-dir"
    done = run([*command.split(), str(tmp_path)], ROOT, NO_MKDOCS_2_WARNING="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    names = re.findall(r'<h\d id="converter\.(\w+)"', (tmp_path / "python/index.html").read_text())
    assert {"Options", "Plan", "Result", "convert", "finetune"} <= set(names)
    page = (tmp_path / "commands/index.html").read_text()
    assert "--target-speedup" in page
    assert "--no-cache" in page
