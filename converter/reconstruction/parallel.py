"""Jobs in parallel: on the cores of this machine, or on a Dask cluster."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from converter.errors import ConverterError, first_line

T = TypeVar("T")
IDLE_S = 10  # after which idle worker processes end
CONNECT_S = 10  # timeout of the connection to a scheduler
JOBS_PER_WORKER = 4  # submitted before the next result is taken
KILLED = (
    "A process that solves layers was killed, most likely for lack of memory; run the same command "
    "again with less --memory: solved layers are in the cache."
)


def parallel_map(
    jobs: Iterable[Callable[[], T]], cluster: str | None = None, serial: bool = False
) -> Iterator[T]:
    """Run jobs in processes of one thread each, and yield their results in order.

    Args:
        jobs: Functions that can be pickled; taken from the iterator when a worker is free.
        cluster: Address of a Dask scheduler (``tcp://host:8786``) whose workers have one thread
            each; None for the cores of this machine.
        serial: Without a cluster, run the jobs in this process, with all its threads.

    Raises:
        ConverterError: When a process is killed, or the cluster cannot be used.
    """
    if cluster is not None:
        with connected(cluster) as client:
            yield from _submitted(jobs, client)
        return
    with parallel_config(backend="loky", inner_max_num_threads=1, idle_worker_timeout=IDLE_S):
        run = Parallel(n_jobs=1 if serial else -1, return_as="generator")
        try:
            yield from run(delayed(job)() for job in jobs)
        except BrokenExecutor:
            raise ConverterError(KILLED) from None


def _submitted(jobs: Iterable[Callable[[], T]], client: Any) -> Iterator[T]:
    """Run jobs on a cluster, a few ahead of the one whose result is next.

    joblib's backend for Dask is not used: it waits forever for a worker that was killed.
    """
    waiting: deque[Any] = deque()
    for job in jobs:
        waiting.append(client.submit(job, pure=False))
        if len(waiting) > JOBS_PER_WORKER * len(client.nthreads()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def connected(cluster: str) -> Iterator[Any]:
    """Connect to a Dask scheduler.

    Raises:
        ConverterError: When ``distributed`` is not installed, the scheduler does not answer, it
            has no workers or some with several threads, or a worker is killed.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise ConverterError("--cluster needs Dask; pip install 'flatconv[cluster]'.") from None
    try:
        client = Client(cluster, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConverterError(
            f"--cluster {cluster} cannot be reached; start dask scheduler and "
            f"dask worker --nthreads 1 there: {first_line(error)}"
        ) from None
    with client:
        threads = client.nthreads()
        if not threads or max(threads.values()) > 1:
            raise ConverterError(
                f"--cluster {cluster} needs workers of one thread each; start some there by dask "
                "worker --nthreads 1."
            )
        try:
            yield client
        except KilledWorker:
            raise ConverterError(KILLED) from None
