"""How much memory processes take."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def peak_memory(own: bool = True) -> Iterator[dict[str, float]]:
    """Sample the memory of this process and its children, ten times a second at most.

    Pages that several processes share count once. Reading the sizes slows down processes that
    allocate meanwhile, so at most a twentieth of the time is spent on it.

    Args:
        own: Whether this process counts; its children always do.

    Yields:
        ``peak_gib``, kept up to date.
    """
    process, memory, ended = psutil.Process(), {"peak_gib": 0.0}, threading.Event()

    def sample() -> None:
        pause_s = 0.1
        while not ended.wait(pause_s):
            size_bytes, start = 0, time.perf_counter()
            for each in [process] * own + process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    size_bytes += each.memory_full_info().pss
            memory["peak_gib"] = max(memory["peak_gib"], size_bytes / 2**30)
            pause_s = max(0.1, 20 * (time.perf_counter() - start))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield memory
    finally:
        ended.set()
        sampler.join()
