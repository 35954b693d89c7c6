"""A virtual environment for each tool."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.benchmarks.results import ROOT
from scripts.benchmarks.run import run

REQUIREMENTS = {
    "tensorly-torch": ["tensorly-torch==0.5.0"],
    "aimet": ["aimet-torch==2.42.0"],
    "torch-pruning": ["torch-pruning==1.6.1"],
    "openvino": ["openvino==2026.4.1", "nncf==3.4.0"],
}


def interpreter(tool: str, folder: Path) -> Path:
    """Make the virtual environment of a tool, if there is none in its version.

    Args:
        tool: Name of the tool; one without requirements uses this interpreter.
        folder: Folder of the environments.

    Returns:
        The path of its Python.

    Raises:
        RuntimeError: When pip fails.
    """
    if tool not in REQUIREMENTS:
        return Path(sys.executable)
    python, stamp = folder / tool / "bin" / "python", folder / tool / "installed"
    constraints = ROOT / "constraints.txt"
    wanted = "\n".join([*REQUIREMENTS[tool], constraints.read_text()])
    if not stamp.exists() or stamp.read_text() != wanted:
        run([sys.executable, "-m", "venv", "--clear", folder / tool])
        own = [] if tool == "openvino" else ["-e", f"{ROOT}[tune]", "pytorchcv==0.0.67"]
        pip = [python, "-m", "pip", "install", "-q", "-c", constraints]
        run([*pip, *own, *REQUIREMENTS[tool]])
        stamp.write_text(wanted)
    return python
