"""The wheel in empty environments: with the lowest versions that it allows, and the newest.

In each, the sample network is converted by the command line, replayed, compared and fine-tuned,
outside of the project. torch is at ``--torch`` in both.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from functools import partial
from pathlib import Path

from scripts.benchmarks.models import SAMPLES
from scripts.benchmarks.results import ROOT
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

NEEDED = re.compile(
    r"""^Requires-Dist: ([\w-]+)>=([\w.]+)(?:; extra == ["']tune["'])?$""", re.MULTILINE
)
REPORTED = re.compile(r"^(numpy|onnx|onnxruntime|torch|tensorly)==(\S+)", re.MULTILINE)
MODEL = "paper:build --checkpoint paper_cifar10.safetensors --calib cifar10_calib.npz"
COMMANDS = f"""
inspect {MODEL}
convert {MODEL} --form separable --rank 0.5 --keep linear -o out
convert {MODEL} --plan out/plan.json --int8 -o again
compare out/original.onnx out/model.onnx again/model.int8.onnx --html a.html
finetune out --train cifar10_calib.npz --epochs 1
export out -o net.onnx
""".strip().splitlines()


def build_wheel(folder: Path) -> Path:
    """Build the wheel of the project."""
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def lowest_versions(wheel: Path) -> list[str]:
    """Give the requirements of a wheel at their lower bounds, without torch."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        needed = NEEDED.findall(archive.read(name).decode())
    return [f"{package}=={bound}" for package, bound in needed if package != "torch"]


def measure(bounds: str, settings: Settings) -> Figures:
    """Install the wheel into an empty environment, and run the commands."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel, tools = build_wheel(folder), folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=True)
        # Nothing of the project but the wheel may be importable.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["FLATCONV_CACHE"] = str(folder / "cache")
        run = partial(subprocess.run, cwd=folder, text=True, capture_output=True, env=environment)
        versions = lowest_versions(wheel) if bounds == "lowest" else ["--upgrade"]
        install = [tools / "python", "-m", "pip", "install", "-q", f"torch=={settings.torch}"]
        ended = run([*install, *versions, f"{wheel}[tune]"])
        if ended.returncode:
            return {"failed": "pip: " + ended.stderr.strip().splitlines()[-1]}
        for name in ("paper_cifar10.safetensors", "cifar10_calib.npz"):
            (folder / name).symlink_to(SAMPLES / name)
        (folder / "paper.py").symlink_to(SAMPLES / "paper_cifar10.py")
        listed = run([tools / "python", "-m", "pip", "list", "--format=freeze"]).stdout
        failed = ""
        for command in COMMANDS:
            ended = run([tools / "flatconv", *command.split()])
            if ended.returncode or "Traceback" in ended.stderr:
                failed = f"{command.split()[0]}: {(ended.stderr.strip() or '?').splitlines()[-1]}"
                print(ended.stderr, file=sys.stderr)
                break
    figures = {"commands": len(COMMANDS), "failed": failed, **dict(REPORTED.findall(listed))}
    return figures | {"seconds": time.perf_counter() - start}


TARGET = Target("every command works", lambda row: not row["failed"])
SUITE = Suite(
    "wheel",
    [Case(bounds, partial(measure, bounds), TARGET) for bounds in ("lowest", "newest")],
    about="the wheel in empty environments, with the lowest and the newest packages",
)
