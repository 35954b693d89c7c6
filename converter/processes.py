"""``ProcessGroup``: the processes that share work; ``Resources``: threads, device, cache."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import distributed

from converter.errors import ConverterError, first_line
from converter.options import Options

T = TypeVar("T")
Progress = Callable[[str, float], None]  # a stage, and the fraction of it that is done
MISSING = object()  # fills up parts of unequal length
TIMEOUT = timedelta(days=1)  # the others wait while the first process searches and measures
# Environment variables of torchrun, MPICH, Open MPI and MVAPICH: number of processes, and rank.
SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share work, as seen by one of them.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes (world size).
        device: Device of this process.
        mean: Averages a tensor over all processes.
    """

    rank: int
    size: int
    device: torch.device
    mean: Callable[[torch.Tensor], torch.Tensor]

    def shard(self, items: Iterable[T]) -> Iterator[T]:
        """Return this process's part of the items: every ``size``-th."""
        return itertools.islice(items, self.rank, None, self.size)

    def gather(self, part: Sequence[T]) -> list[T]:
        """Merge what ``shard`` divided, in order. The result is empty except in the first process.

        Raises:
            ConverterError: If another process is gone.
        """
        if self.size == 1:
            return list(part)
        parts: list[Sequence[T]] | None = None if self.rank else [[]] * self.size
        with _other_processes():
            distributed.gather_object(part, parts)
        rounds = itertools.zip_longest(*parts or (), fillvalue=MISSING)
        return [item for items in rounds for item in items if item is not MISSING]

    def run_on_all(self, task: Callable[..., T], *args: Any) -> T:
        """Run ``task(*args)`` here, and ``task`` in all other processes with their own arguments.

        The first process calls this; the others get the task from ``tasks``.
        """
        self.broadcast_task(task)
        return task(*args)

    def broadcast_task(self, task: object) -> None:
        """Send a task from the first process to the others; None ends their ``tasks``."""
        if self.rank == 0:
            self.broadcast(lambda: task)

    def tasks(self) -> Iterator[Any]:
        """Iterate over the tasks that the first process sends to this one."""
        while (task := self.broadcast(lambda: None)) is not None:
            yield task

    def broadcast(self, make: Callable[[], T]) -> T:
        """Call ``make`` in the first process, and return its result in all.

        Raises:
            ConverterError: If another process is gone.
        """
        if self.size == 1:
            return make()
        values = [None if self.rank else make()]
        with _other_processes():
            distributed.broadcast_object_list(values)
        return cast(T, values[0])

    def all_reduce_mean(self, number: float) -> float:
        """Average a number over all processes."""
        if self.size == 1:
            return float(number)
        value = torch.tensor(float(number), dtype=torch.float64, device=self.device)
        return float(self.mean(value))

    def all_equal(self, number: float) -> bool:
        """Tell whether the number is the same in all processes."""
        return self.all_reduce_mean(number != self.broadcast(lambda: number)) == 0

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Average tensors over all processes, in place."""
        if self.size == 1 or not tensors:
            return
        means = self.mean(torch.cat([tensor.reshape(-1) for tensor in tensors]))  # one message
        for tensor, mean in zip(tensors, means.split([t.numel() for t in tensors])):
            tensor.copy_(mean.view(tensor.shape))

    def computes_bfloat16(self) -> bool:
        """Tell whether the device has bfloat16 instructions, and need not emulate them."""
        if self.device.type == "cpu":
            available = torch.backends.mkldnn.is_available()
            return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return self.device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


SINGLE_PROCESS = ProcessGroup(0, 1, torch.device("cpu"), lambda tensor: tensor)


def is_first() -> bool:
    """Tell from the environment whether this process is the only one or the first."""
    return not any(int(os.environ.get(name) or 0) for name in RANK_VARIABLES)


def check_device(name: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        ConverterError: If it cannot.
    """
    try:
        torch.ones(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConverterError(f"Device {name!r} cannot be used: {first_line(error)}") from None


def no_progress(stage: str, done: float) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Resources:
    """The resources of a conversion, and how it reports progress.

    Attributes:
        threads: Threads of the solvers and of networks that are run for their outputs.
        device: torch device of the iterative solvers and of training.
        memory_bytes: Approximate memory for calibration and solving.
        seed: Seed of every random choice.
        cache: Folder of results on disk, or None.
        cluster: Address of a Dask scheduler that solves layers, or None for this machine's cores.
        group: The processes that share the work on sample inputs.
        progress: Called with a stage and the fraction of it that is done.
        solver: Solver of kernels: "flatconv", "tensorly" or "tensorly+refine".
        effort: Share of the usual sample inputs, patches and steps with which layers are refit.
    """

    threads: int = 1
    device: str = "cpu"
    memory_bytes: float = 2.0**31
    seed: int = 0
    cache: Path | None = None
    cluster: str | None = None
    group: ProcessGroup = SINGLE_PROCESS
    progress: Progress = no_progress
    solver: Literal["flatconv", "tensorly", "tensorly+refine"] = "flatconv"
    effort: float = 1.0

    @classmethod
    def of(
        cls,
        options: Options,
        group: ProcessGroup = SINGLE_PROCESS,
        progress: Progress = no_progress,
    ) -> Resources:
        """Take the resources from the options, and the number of threads from torch."""
        resources = options.resources
        return cls(
            threads=torch.get_num_threads(),
            device=resources.device,
            memory_bytes=resources.memory * 2**30,
            seed=resources.seed,
            cache=resources.cache_folder(),
            cluster=resources.cluster,
            group=group,
            progress=progress,
            solver=options.search.solver,
        )

    def alone(self) -> Resources:
        """Return a copy for a task in one process that shows no progress; it can be pickled."""
        return replace(self, group=SINGLE_PROCESS, progress=no_progress)

    def stage(self, name: str) -> Callable[[float], None]:
        """Return the progress function of one stage."""
        return partial(self.progress, name)


@contextlib.contextmanager
def _other_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConverterError(f"Another process is gone: {first_line(error)}") from None


def process_group(device: str, timeout: timedelta | None = None) -> ProcessGroup:
    """Join the processes that were started together, and choose this one's device.

    Args:
        device: torch device.
        timeout: How long processes wait for each other; torch's default if left out. It has no
            effect if they were joined before.

    Raises:
        ConverterError: If accelerate is not installed or the device does not exist.
    """
    check_device(device)
    single = replace(SINGLE_PROCESS, device=torch.device(device))
    if max(int(os.environ.get(name) or 1) for name in SIZE_VARIABLES) < 2:
        return single
    try:
        from accelerate import PartialState
        from accelerate.utils import reduce
    except ImportError:
        raise ConverterError(
            "Several processes need accelerate; pip install 'flatconv[tune]'."
        ) from None
    limit = {} if timeout is None else {"timeout": timeout}
    state = PartialState(cpu=single.device.type == "cpu", **limit)
    if state.num_processes < 2:
        return single
    mean = partial(reduce, reduction="mean")
    return ProcessGroup(state.process_index, state.num_processes, state.device, mean)
