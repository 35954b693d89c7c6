"""Fixtures that several tests share: an own cache, one thread, short races, a working folder."""

import pytest
import torch
from helpers import work_in
from hypothesis import settings

from converter.runtime import stopwatch

# The same examples in every run; pytest --hypothesis-profile=default looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test sees what the user, or an earlier run, has solved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLATCONV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny layers: several threads only wait for one another, processes cost their start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def short_timing():
    """Time little: these tests ask whether networks are timed, seldom how that ends."""
    short = stopwatch.TimingSettings(
        profile_s=0.02,
        variants=2,
        rounds=3,
        block_s=0.005,
        pause_s=0.0,
        race_s=0.2,
        min_rounds=8,
        max_rounds=10,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "DEFAULT_SETTINGS", short)
        yield


@pytest.fixture
def workplace(tmp_path):
    """An empty current folder with the factories of ``toy.py``."""
    with work_in(tmp_path):
        yield tmp_path
