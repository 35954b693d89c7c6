"""ResNets without fine-tuning: accuracy over rank, budgets, and the time that solving takes.

CIFAR-10 ResNets with public weights: every 3x3 convolution but the first, one rank for all, solved
and refit on 2,048 unlabelled training images; scored on the whole test set; batch 1, one thread.
ImageNet-sized ResNets (random weights): time and memory only. Then the same networks and the sample
network under budgets, where the search chooses all forms and ranks. Last, accuracy over rank for
three ways of solving.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from scripts.benchmarks.memory import peak_memory
from scripts.benchmarks.models import SAMPLE, ZOO, Network, cifar_resnet, noise
from scripts.benchmarks.results import ROOT
from scripts.benchmarks.rows import BUDGET, from_pair, from_report
from scripts.benchmarks.run import convert, report_of
from scripts.benchmarks.suite import Case, Figures, Settings, Suite, Target

# Minimum accuracy by depth and rank; flattened may lose 1.5 points more than separable.
MIN_ACCURACY = {(20, 1.0): 0.885, (20, 2.0): 0.912, (56, 1.0): 0.905, (56, 2.0): 0.930}
SLACK = {"separable": 0.0, "flattened": 0.015}
SOLVE_S = {(20, "separable", 1.0): 30.0}
# depth -> share of the MACs that is left, points that may be lost (LC, CVPR 2020, lost 1.1, 1.2 and
# 0.9 points after about 750 epochs)
MACS = {20: (0.43, 0.5), 32: (0.39, 0.6), 56: (0.34, 0.8)}
MAX_DROP, MIN_SPEEDUP = 0.005, 1.4
DEPTHS = (20, 56)
SAMPLE_DROP, SAMPLE_SPEEDUP = 0.01, 6.0
SAMPLE_RANKS, SAMPLE_POINTS = (32, 64, 128), 2.5
LARGE: dict[str, tuple[float, float]] = {"resnet18": (60.0, 3.0), "resnet50": (120.0, float("inf"))}
CONVERT_S, CONVERT_GIB = {"cold": 180.0, "warm": 45.0}, 3.0
RANKS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
WAYS: dict[str, dict[str, Any]] = {
    "weights alone": {"calib": None},
    "data-aware": {"correct": False},
    "corrected": {},
}


class StageReached(Exception):
    """Ends a conversion after the stage that is timed."""


class SolveTimer:
    """A progress function that times solving, calibration included.

    Attributes:
        seconds: From the end of loading to the last progress of solving.
    """

    def __init__(self, stop: bool = False) -> None:
        """Start; with ``stop``, end the conversion when all layers are solved."""
        self.stop, self.seconds, self._start_s = stop, 0.0, time.perf_counter()

    def __call__(self, stage: str, done: float) -> None:
        """Take notice of a stage.

        Raises:
            StageReached: When all layers are solved and nothing else is wanted.
        """
        if stage == "loading" and done == 1:
            self._start_s = time.perf_counter()
        if stage == "solving":
            self.seconds = time.perf_counter() - self._start_s
            if self.stop and done == 1:
                raise StageReached


def fixed_rank(depth: int, form: str, rank: float, way: str, settings: Settings) -> Figures:
    """Convert a ResNet by one form and one rank."""
    network, timer = cifar_resnet(depth, settings), SolveTimer()
    choices = {"form": (form,), "rank": (str(rank),), "keep": ("conv1",), "cache": False}
    values = network.on(settings) | choices | WAYS[way]
    result = convert(network.model, progress=timer, **values)
    return from_report(result.report.to_dict()) | {"solve_s": timer.seconds}


def on_curve(rank: float, way: str, settings: Settings) -> Figures:
    """Measure one point of the picture of accuracy over rank."""
    return fixed_rank(20, "separable", rank, way, settings) | {"way": way, "rank": rank}


def solve_large(name: str, settings: Settings) -> Figures:
    """Solve an ImageNet-sized ResNet for its inputs; the refit is left out."""
    images, timer = noise(64, 3, 224, 224), SolveTimer(stop=True)
    module = ZOO[name.replace("resnet", "ResNet-")].build()
    choices = {"form": ("separable",), "rank": ("1.0",), "keep": ("*init*",)}
    with peak_memory() as memory, contextlib.suppress(StageReached):
        convert(
            module,
            images[:1],
            calib=images,
            progress=timer,
            cache=False,
            correct=False,
            **choices,
        )
    return {"solve_s": timer.seconds, **memory}


def convert_large(caches: str, settings: Settings) -> Figures:
    """Convert an ImageNet-sized ResNet-18 under a budget, from empty caches or from full ones."""
    folder = ROOT / "runs" / "bench_cache"
    if caches == "cold":
        shutil.rmtree(folder, ignore_errors=True)
    os.environ["FLATCONV_CACHE"] = str(folder)
    images, start = noise(64, 3, 224, 224), time.perf_counter()
    with peak_memory() as memory:
        report = report_of(ZOO["ResNet-18"].build(), images[:1], calib=images, max_error=0.2)
    seconds = time.perf_counter() - start
    return {"speedup": report["speedup"]["median"], "whole_s": seconds, **memory}


def budgeted(
    network: Callable[[Settings], Network], values: dict[str, Any], settings: Settings
) -> Figures:
    """Convert a network with forms and ranks chosen by the search or by hand."""
    chosen = network(settings)
    return from_report(report_of(chosen.model, **chosen.on(settings), **values))


def max_drop(depth: int, settings: Settings) -> list[Figures]:
    """Convert a ResNet under a budget of accuracy, and give its frontier as rows, too."""
    network = cifar_resnet(depth, settings)
    report = report_of(network.model, **network.on(settings), max_drop=MAX_DROP, frontier=True)
    frontier = [
        {
            "name": f"ResNet-{depth}, network {number} of the frontier",
            "frontier": depth,
            **from_pair(report["original"], point, BUDGET),
        }
        for number, point in enumerate(report["frontier"], start=1)
    ]
    return [*frontier, from_report(report)]


def rank_case(depth: int, rank: float, form: str) -> Case:
    """Declare the conversion of a ResNet by one form and one rank."""
    accuracy = MIN_ACCURACY[depth, rank] - SLACK[form]
    seconds = SOLVE_S.get((depth, form, rank), float("inf"))
    text = f"accuracy {accuracy:.3f}"
    text += f", solved in {seconds:g} s" if seconds < float("inf") else ""
    target = Target(text, lambda row: row["accuracy"] >= accuracy and row["solve_s"] <= seconds)
    measure = partial(fixed_rank, depth, form, rank, "corrected")
    return Case(f"ResNet-{depth}, {form}, R = {rank:g} O", measure, target)


def drop_case(name: str, limit: float, measure: Any, speedup: float = 0.0) -> Case:
    """Declare a conversion that may lose ``limit`` points, and must reach a speedup."""
    text = f"{speedup:g}x" if speedup else f"{limit:g} points"
    target = Target(text, lambda row: row["drop_points"] <= limit and row["speedup"] >= speedup)
    return Case(name, measure, target)


def large_case(name: str) -> Case:
    """Declare the solving of an ImageNet-sized ResNet."""
    seconds, gib = LARGE[name]
    text = f"{seconds:g} s" + (f", {gib:g} GiB" if gib < float("inf") else "")
    target = Target(text, lambda row: row["solve_s"] <= seconds and row["peak_gib"] <= gib)
    title = f"{name}, 224x224, separable, R = O, random weights"
    return Case(title, partial(solve_large, name), target, own_process=True)


def cache_case(caches: str) -> Case:
    """Declare a whole conversion of ResNet-18."""
    seconds = CONVERT_S[caches]
    target = Target(
        f"{seconds:g} s, {CONVERT_GIB:g} GiB",
        lambda row: row["whole_s"] <= seconds and row["peak_gib"] <= CONVERT_GIB,
    )
    name = f"resnet18, 224x224, --max-error 0.2, whole conversion, caches {caches}"
    return Case(name, partial(convert_large, caches), target, own_process=True)


def sample(settings: Settings) -> Network:
    """Give the sample network."""
    return SAMPLE


SAMPLE_BY_HAND: dict[str, Any] = {
    "form": ("flattened",),
    "rank": tuple(f"conv{n}={rank}" for n, rank in enumerate(SAMPLE_RANKS, start=1)),
}
SUITE = Suite(
    "resnets_untuned",
    [
        *(rank_case(depth, rank, form) for depth, rank in MIN_ACCURACY for form in SLACK),
        drop_case(
            f"sample network, flattened, ranks {'/'.join(map(str, SAMPLE_RANKS))}",
            SAMPLE_POINTS,
            partial(budgeted, sample, SAMPLE_BY_HAND),
        ),
        *map(large_case, LARGE),
        *(
            drop_case(
                f"ResNet-{depth}, --max-macs {share:g}",
                points,
                partial(budgeted, partial(cifar_resnet, depth), {"max_macs": share}),
            )
            for depth, (share, points) in MACS.items()
        ),
        *(
            drop_case(
                f"ResNet-{depth}, --max-drop {MAX_DROP:g}",
                100 * MAX_DROP,
                partial(max_drop, depth),
                MIN_SPEEDUP,
            )
            for depth in DEPTHS
        ),
        drop_case(
            f"sample network, --max-drop {SAMPLE_DROP:g}",
            100 * SAMPLE_DROP,
            partial(budgeted, sample, {"max_drop": SAMPLE_DROP}),
            SAMPLE_SPEEDUP,
        ),
        *map(cache_case, CONVERT_S),
        *(
            Case(f"ResNet-20, separable, R = {rank:g} O, {way}", partial(on_curve, rank, way))
            for way in WAYS
            for rank in RANKS
        ),
    ],
    about="public CIFAR-10 ResNets without fine-tuning; time and memory of solving",
)
