"""One thread of torch for small problems."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

# Operations of a product from which on a second thread gains anything.
MIN_SHARED = 1e8


@contextlib.contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Compute small products on one thread of torch.

    Threads wait for one another after each product. On a quiet machine a second thread gains
    nothing then; beside other work, each wait lasts until the system lets it run, and solving took
    fifty times as long.

    Args:
        operations: Operations of one product.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if operations < MIN_SHARED else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
