"""``Comparison``: measurements of networks by name, and the conditions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from converter.evaluation.tasks.task import Judgement
from converter.timing.race import Interval

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Figures:
    """The measurements of one network; the last six are relative to the first network.

    Attributes:
        name: File name or role.
        params: Number of weights, in floating point or quantized.
        macs: Multiply-accumulates for one example.
        bytes: Size of the file.
        latency_ms: Milliseconds of one call.
        accuracy: Score of the task against the labels, such as the share of correct ones, or the
            user's measure; None without either.
        speedup: Latency of the first network divided by this one's.
        drop_points: Percentage points of the task's score that are lost: against the labels, or
            without labels against the first network's answers.
        agreement: Share of examples with the same class; None without classes.
        rel_output_error: RMS error over standard deviation, of the worst channel of the outputs.
        judgement: The loss by the task that loses most.
        by_output: The loss by every task, by the names of its outputs.
    """

    name: str
    params: int
    macs: int
    bytes: int
    latency_ms: Interval
    accuracy: float | None
    speedup: Interval
    drop_points: Interval
    agreement: float | None
    rel_output_error: float
    judgement: Judgement
    by_output: Mapping[str, Judgement]

    @property
    def verdict(self) -> str:
        """Say whether the network is faster than the first."""
        return verdict(self.speedup)


def verdict(speedup: Interval) -> str:
    """Say whether a speedup differs from 1 by more than its interval."""
    if speedup.low > 1:
        return f"{speedup.median:.2f}x faster"
    if speedup.high < 1:
        return f"{1 / speedup.median:.2f}x slower"
    return "no difference"


@dataclass(frozen=True)
class Timing:
    """Latencies and speedups by network, at a further input shape."""

    input_shapes: Shapes
    latency_ms: Mapping[str, Interval]
    speedup: Mapping[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Measurements of several networks by name, and the conditions they were measured under.

    Attributes:
        networks: Measurements by name; the first network is the reference.
        gain: Speedup of the last network over the one before it.
        tasks: Names of the tasks, by the names of their outputs.
        unit: What a lost point is a hundredth of, such as the accuracy.
        further: Timings at further input shapes.
        data: Description of the inputs.
        preprocessing: What was done to images, in words; None if arrays were taken as they are.
        examples: Number of examples that were scored.
        rounds: Paired blocks of the race.
        threads: Threads of the runtime.
        provider: Execution provider.
        batch_size: Examples per call when timing.
        input_shapes: Input shapes for timing, by name, batch included.
        cpu: Name of the processor.
        versions: Versions of packages by name.
        compared: Inner tensors that were compared instead of the outputs, if an output's shape
            depends on the data.
    """

    networks: Mapping[str, Figures]
    gain: Interval
    tasks: Mapping[str, str]
    unit: str
    further: tuple[Timing, ...]
    data: str
    preprocessing: str | None
    examples: int
    rounds: int
    threads: int
    provider: str
    batch_size: int
    input_shapes: Shapes
    cpu: str
    versions: Mapping[str, str]
    compared: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Figures:
        """Return the figures of the network ``name``."""
        return self.networks[name]

    @property
    def original(self) -> Figures:
        """The reference: the original of a conversion."""
        return next(iter(self.networks.values()))

    @property
    def converted(self) -> Figures:
        """The converted network, in floating point."""
        return self.networks["converted"]

    @property
    def original_int8(self) -> Figures | None:
        """The original in int8, or None."""
        return self.networks.get("original, int8")

    @property
    def converted_int8(self) -> Figures | None:
        """The converted network in int8, or None."""
        return self.networks.get("converted, int8")

    @property
    def shipped(self) -> Figures:
        """The last network, for which budgets hold."""
        return list(self.networks.values())[-1]

    @property
    def others(self) -> list[Figures]:
        """All networks but the reference."""
        return list(self.networks.values())[1:]


def renamed_networks(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """Return a comparison whose networks have other names, in the same order."""
    networks = zip(names, comparison.networks.values(), strict=True)
    return replace(
        comparison, networks={name: replace(figures, name=name) for name, figures in networks}
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that the figures depend on."""
    packages = ("flatconv", "onnxruntime", "onnx", "torch", "tensorly", "numpy")
    return {"python": platform.python_version(), **{name: version_of(name) for name in packages}}


def version_of(package: str) -> str:
    """Return the version of a package; flatconv's own source tree need not be installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
