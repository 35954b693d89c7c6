"""Build the wheel; try it where only it is installed, at its lower bounds and at the newest.

Two empty environments: one with the lowest version of each package that ``pyproject.toml`` allows,
one with the newest that can be had; torch at ``--torch`` in both. In each, the sample network is
converted by the command line, replayed, compared and fine-tuned, outside of the project.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench_results import ROOT, gather, resumable, table

SAMPLES = ROOT / "sample_models"
MODEL = ["paper:build", "--checkpoint", "paper_cifar10.safetensors"]
CALIB = ["--calib", "cifar10_calib.npz"]
NEEDED = re.compile(
    r"""^Requires-Dist: ([\w-]+)>=([\w.]+)(?:; extra == ["']tune["'])?$""", re.MULTILINE
)
STEPS: tuple[tuple[str, ...], ...] = (
    ("inspect", *MODEL, *CALIB),
    (
        "convert",
        *MODEL,
        *CALIB,
        "--form",
        "separable",
        "--rank",
        "0.5",
        "--keep",
        "linear",
        "-o",
        "out",
    ),
    ("convert", *MODEL, *CALIB, "--plan", "out/plan.json", "--int8", "-o", "again"),
    ("compare", "out/original.onnx", "out/model.onnx", "again/model.int8.onnx", "--html", "a.html"),
    ("finetune", "out", "--train", "cifar10_calib.npz", "--epochs", "1"),
    ("export", "out", "-o", "net.onnx"),
)


def lowest(wheel: Path) -> list[str]:
    """Give what the wheel needs, at the lower bounds, torch apart."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        needed = NEEDED.findall(archive.read(name).decode())
    return [f"{package}=={bound}" for package, bound in needed if package != "torch"]


def tried(bounds: str, wheel: Path, torch: str) -> dict[str, Any]:
    """Install the wheel into an empty environment and use it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        venv.create(folder / "venv", with_pip=True)
        tools = folder / "venv" / "bin"
        # Nothing of the project may be seen there but the wheel.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["FLATCONV_CACHE"] = str(folder / "cache")
        run = partial(subprocess.run, cwd=folder, text=True, capture_output=True, env=environment)
        pins = lowest(wheel) if bounds == "lowest" else []
        install = [tools / "python", "-m", "pip", "install", "-q", f"torch=={torch}", *pins]
        install += [f"{wheel}[tune]"] if pins else ["--upgrade", f"{wheel}[tune]"]
        found = run(install)
        if found.returncode:
            return {"name": bounds, "failed": "pip: " + found.stderr.strip().splitlines()[-1]}
        for name in ("paper_cifar10.safetensors", "cifar10_calib.npz"):
            (folder / name).symlink_to(SAMPLES / name)
        (folder / "paper.py").symlink_to(SAMPLES / "paper_cifar10.py")
        listed = run([tools / "python", "-m", "pip", "list", "--format=freeze"]).stdout
        seen = dict(re.findall(r"^(numpy|onnx|onnxruntime|torch|tensorly)==(\S+)", listed, re.M))
        row: dict[str, Any] = {"name": bounds, "commands": len(STEPS), "failed": "", **seen}
        for step in STEPS:
            found = run([tools / "flatconv", *step])
            if found.returncode or "Traceback" in found.stderr:
                row["failed"] = f"{step[0]}: {(found.stderr.strip() or '?').splitlines()[-1]}"
                print(found.stderr, file=sys.stderr)
                break
        return row | {"seconds": time.perf_counter() - start}


def rows(options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Try the wheel in both environments."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", scratch, str(ROOT)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(scratch).glob("*.whl")
        for bounds in ("lowest", "newest"):
            if bounds not in done:
                row = tried(bounds, wheel, options.torch)
                yield row | {"target": "every command works", "met": not row["failed"]}


def main() -> int:
    """Try, print, and write ``scripts/results/wheel.json``."""
    parser = resumable(__doc__)
    parser.add_argument("--torch", default="2.13.0")
    gather("wheel", rows, parser.parse_args())
    print(table("wheel"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
