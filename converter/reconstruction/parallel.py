"""Where layers are solved: on the cores of this machine, or on a cluster."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from converter.errors import ConverterError, first_line

T = TypeVar("T")
IDLE_S = 10  # for which helpers keep their memory
CONNECT_S = 10  # that a scheduler has to answer in
AHEAD = 4  # jobs for each worker
KILLED = (
    "A process that solves layers was killed, most likely for lack of memory; run the same command "
    "again with less --memory: what was solved is in the cache."
)


def parallel_map(
    jobs: Iterable[Callable[[], T]], cluster: str | None = None, alone: bool = False
) -> Iterator[T]:
    """Run jobs in processes of one thread each, and give what they return, in order.

    Args:
        jobs: They can be pickled; made when there is room for them.
        cluster: Address of a Dask scheduler (``tcp://host:8786``); this machine's cores if None.
            Its workers have one thread each.
        alone: Without a cluster, run them in this process, with all its threads.

    Raises:
        ConverterError: When a process is killed, or the cluster cannot be used.
    """
    if cluster is not None:
        with connected(cluster) as client:
            yield from _submitted(jobs, client)
        return
    with parallel_config(backend="loky", inner_max_num_threads=1, idle_worker_timeout=IDLE_S):
        run = Parallel(n_jobs=1 if alone else -1, return_as="generator")
        try:
            yield from run(delayed(job)() for job in jobs)
        except BrokenExecutor:
            raise ConverterError(KILLED) from None


def _submitted(jobs: Iterable[Callable[[], T]], client: Any) -> Iterator[T]:
    """Run jobs on a cluster, a few ahead of the one whose result is waited for.

    Not by joblib's backend for Dask, which waits forever for a worker that was killed.
    """
    waiting: deque[Any] = deque()
    for job in jobs:
        waiting.append(client.submit(job, pure=False))
        if len(waiting) > AHEAD * len(client.nthreads()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def connected(cluster: str) -> Iterator[Any]:
    """Connect to a Dask scheduler.

    Raises:
        ConverterError: When ``distributed`` is not installed, nothing answers there, there are no
            workers or some have several threads, or one is killed.
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
