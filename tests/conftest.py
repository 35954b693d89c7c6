"""Fixtures that several tests share: an own cache, one thread, short races, a working folder."""

import pytest
import torch
from helpers import work_in
from hypothesis import settings

from converter.timing import profile, race

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
def short_races():
    """Few rounds: these tests ask whether a race is run, seldom how it ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "BUDGET_S", 0.2)
        patch.setattr(race, "FEWEST_ROUNDS", 8)
        patch.setattr(race, "MOST_ROUNDS", 10)
        for name, value in {"PROFILE_S": 0.02, "RACED": 2, "ROUNDS": 3, "BLOCK_S": 0.005}.items():
            patch.setattr(profile, name, value)
        yield


@pytest.fixture
def workplace(tmp_path):
    """An empty current folder with the factories of ``toy.py``."""
    with work_in(tmp_path):
        yield tmp_path
