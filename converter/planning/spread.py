"""Where layers are solved: on the cores of this machine, or on a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from typing import Any

from joblib import parallel_config

from converter.errors import ConverterError, first_line

IDLE_S = 10  # for which helpers keep their memory
CONNECT_S = 10  # that a scheduler has to answer in
KILLED = (
    "A process that solves layers was killed, most likely for lack of memory; run the same command "
    "again with less --memory: what was solved is in the cache."
)


@contextlib.contextmanager
def spread(cluster: str | None) -> Iterator[None]:
    """Let joblib spread work over processes of one thread each.

    Args:
        cluster: Address of a Dask scheduler (``tcp://host:8786``); this machine's cores if None.
            Its workers have one thread each.

    Raises:
        ConverterError: When a process is killed, or the cluster cannot be used.
    """
    if cluster is None:
        with parallel_config(backend="loky", inner_max_num_threads=1, idle_worker_timeout=IDLE_S):
            try:
                yield
            except BrokenExecutor:
                raise ConverterError(KILLED) from None
        return
    with connected(cluster) as client, parallel_config(backend="dask", client=client):
        yield


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
