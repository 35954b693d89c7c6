"""What keeps tests cheap, for the test process and for the processes that it starts."""

import functools
import math

from torch.onnx._internal.exporter import _registration

from converter.decomposition.solvers import cp
from converter.runtime import stopwatch

SHORT_TIMING = stopwatch.TimingSettings(
    profile_s=0.02,
    variants=2,
    rounds=3,
    block_s=0.005,
    pause_s=0.0,
    race_s=0.2,
    min_rounds=8,
    max_rounds=10,
    attempts=1,
    max_gap=math.inf,  # a busy machine makes no table doubtful
)

FEW_STEPS = {"FIRST_STEPS": 4, "METRIC_STEPS": 6, "WARM_STEPS": 2, "MAX_SMALL_STEPS": 20}


def time_little(patch):
    """Time little: tests ask whether networks are timed, seldom how that ends."""
    patch.setattr(stopwatch, "DEFAULT_SETTINGS", SHORT_TIMING)


def take_few_steps(patch):
    """Take few steps where kernels are decomposed: any chain will do."""
    for name, most in FEW_STEPS.items():
        patch.setattr(cp, name, most)


def read_torchlib_once(patch):
    """Let torch read its ONNX functions once: it would parse their source in every export."""
    registry = _registration.ONNXRegistry
    read_once = functools.cache(registry.from_torchlib)
    patch.setattr(registry, "from_torchlib", staticmethod(read_once))
