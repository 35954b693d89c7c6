"""Where work runs: on which device, as one of how many processes."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from converter.errors import ConverterError, first_line
from converter.options import Options

T = TypeVar("T")
Progress = Callable[[str, float], None]  # a stage, and the share of it that is done
NONE = object()
# Where torchrun and the kinds of mpirun say how many processes they start.
HOW_MANY = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
WHICH = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@dataclass(frozen=True)
class ProcessGroup:
    """Where work runs.

    Attributes:
        rank: Number of this process.
        processes: How many there are.
        device: Of this process.
        mean: Averages a tensor over all of them.
    """

    rank: int
    processes: int
    device: torch.device
    mean: Callable[[torch.Tensor], torch.Tensor]

    def shard(self, items: Iterable[T]) -> Iterator[T]:
        """Give this process's part of what all processes have: every so-manyth item."""
        return itertools.islice(items, self.rank, None, self.processes)

    def gather(self, mine: Sequence[T]) -> list[T]:
        """Put the parts of all processes together again, in order; empty except in the first.

        Raises:
            ConverterError: When another process is gone.
        """
        if self.processes == 1:
            return list(mine)
        parts: list[Sequence[T]] | None = None if self.rank else [[]] * self.processes
        with _all_there():
            distributed.gather_object(mine, parts)
        rounds = itertools.zip_longest(*parts or (), fillvalue=NONE)
        return [item for items in rounds for item in items if item is not NONE]

    def broadcast_task(self, task: object) -> None:
        """Give the other processes something to do; None where there is nothing more."""
        if self.rank == 0:
            self.broadcast(lambda: task)

    def run_on_all(self, task: Callable[..., T], *args: object) -> T:
        """Run a task in every process; the first calls this, the others run its ``tasks``.

        Args:
            task: Can be pickled; called with ``args`` here, in each other process with its own.
            args: Not sent to the other processes.
        """
        self.broadcast_task(task)
        return task(*args)

    def tasks(self) -> Iterator[Any]:
        """What the first process gives this one to do."""
        while (task := self.broadcast(lambda: None)) is not None:
            yield task

    def broadcast(self, make: Callable[[], T]) -> T:
        """Give what ``make`` gives in the first process, which alone calls it.

        Raises:
            ConverterError: When another process is gone.
        """
        if self.processes == 1:
            return make()
        found = [None if self.rank else make()]
        with _all_there():
            distributed.broadcast_object_list(found)
        return cast(T, found[0])

    def all_reduce_mean(self, number: float) -> float:
        """Average a number over all processes."""
        if self.processes == 1:
            return float(number)
        value = torch.tensor(float(number), dtype=torch.float64, device=self.device)
        return float(self.mean(value))

    def all_equal(self, number: float) -> bool:
        """Tell whether all processes have the same number."""
        return self.all_reduce_mean(number != self.broadcast(lambda: number)) == 0

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Average tensors over all processes, in place and in one message."""
        if self.processes == 1 or not tensors:
            return
        together = self.mean(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        for tensor, mean in zip(tensors, together.split([t.numel() for t in tensors])):
            tensor.copy_(mean.view(tensor.shape))

    def computes_bfloat16(self) -> bool:
        """Tell whether the device has instructions for bfloat16; elsewhere it is emulated."""
        if self.device.type == "cpu":
            there = torch.backends.mkldnn.is_available()
            return bool(there and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return self.device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


SINGLE_PROCESS = ProcessGroup(0, 1, torch.device("cpu"), lambda tensor: tensor)


def is_first() -> bool:
    """Tell whether this is the only process, or the first, by what started it."""
    return not any(int(os.environ.get(name) or 0) for name in WHICH)


def check_device(name: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        ConverterError: When it cannot.
    """
    try:
        torch.ones(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConverterError(f"Device {name!r} cannot be used: {first_line(error)}") from None


def no_progress(stage: str, done: float) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Resources:
    """What a conversion may use, and where it tells how far it is.

    Attributes:
        threads: Threads of the solvers and of networks that are run for their outputs.
        device: torch device of the iterative solvers and of training.
        memory_bytes: What calibration and solving may take, roughly.
        seed: Of every random choice.
        cache: Folder of results on disk, or None.
        cluster: Address of a Dask scheduler that solves layers, or None for this machine's cores.
        group: The processes that share the work on sample inputs.
        progress: Called with a stage and the share of it that is done.
        solver: What decomposes a kernel: "flatconv", "tensorly" or "tensorly+refine".
    """

    threads: int = 1
    device: str = "cpu"
    memory_bytes: float = 2.0**31
    seed: int = 0
    cache: Path | None = None
    cluster: str | None = None
    group: ProcessGroup = SINGLE_PROCESS
    progress: Progress = no_progress
    solver: str = "flatconv"

    @classmethod
    def of(
        cls,
        options: Options,
        group: ProcessGroup = SINGLE_PROCESS,
        progress: Progress = no_progress,
    ) -> Resources:
        """Take the resources that ``options`` allow, with the threads that torch has now."""
        return cls(
            threads=torch.get_num_threads(),
            device=options.resources.device,
            memory_bytes=options.resources.memory * 2**30,
            seed=options.resources.seed,
            cache=options.resources.cache_folder(),
            cluster=options.resources.cluster,
            group=group,
            progress=progress,
            solver=options.search.solver,
        )

    def alone(self) -> Resources:
        """Return the same for a task in one process that shows no progress; can be pickled."""
        return replace(self, group=SINGLE_PROCESS, progress=no_progress)

    def stage(self, name: str) -> Callable[[float], None]:
        """Return what shows the progress of one stage."""
        return lambda done: self.progress(name, done)


@contextlib.contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConverterError(f"Another process is gone: {first_line(error)}") from None


def process_group(device: str, patience: timedelta | None = None) -> ProcessGroup:
    """Find out which of how many processes this is, and give it its device.

    Args:
        device: Of torch.
        patience: For how long processes wait for each other, where this is what brings them
            together; torch's own if left out.

    Raises:
        ConverterError: When accelerate or the device is not there.
    """
    check_device(device)
    where = torch.device(device)
    if max(int(os.environ.get(name) or 1) for name in HOW_MANY) < 2:
        return replace(SINGLE_PROCESS, device=where)
    try:
        from accelerate import PartialState
        from accelerate.utils import reduce
    except ImportError:
        raise ConverterError(
            "Several processes need accelerate; pip install 'flatconv[tune]'."
        ) from None
    waiting = {} if patience is None else {"timeout": patience}
    processes = PartialState(cpu=where.type == "cpu", **waiting)
    if processes.num_processes < 2:
        return replace(SINGLE_PROCESS, device=where)
    return ProcessGroup(
        processes.process_index,
        processes.num_processes,
        processes.device,
        lambda tensor: reduce(tensor, "mean"),
    )
