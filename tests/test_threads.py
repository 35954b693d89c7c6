"""Threads of torch while small and large problems are solved."""

import pytest
import torch

from converter.decomposition.solvers.threads import MIN_SHARED, threads_for


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("operations", "threads"), [(1, 1), (MIN_SHARED, 2), (1e12, 2)])
def test_small_products_take_one_thread(operations, threads, two_threads):
    with threads_for(operations):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_the_threads_come_back_after_an_error(two_threads):
    with pytest.raises(ValueError, match="stop"), threads_for(1):
        raise ValueError("stop")
    assert torch.get_num_threads() == 2
