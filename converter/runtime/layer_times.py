"""Time the layers of a network, here or on the target machine.

The time of a network does not depend on its weights, and a profile gives the time of every layer.
So a few variants of the whole network are enough: variant n has each layer in its n-th option.
Layers are timed inside the network because fusion and memory layout depend on the neighbours.

This file also runs without flatconv.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.runtime import stopwatch
from converter.runtime.attribution import LayerNodes, attribute, fused_layers
from converter.runtime.ort_session import NodeTime
from converter.runtime.stopwatch import Feeds, TimedSession, TimingSettings

FORMAT, VERSION = "flatconv-latency", 1
SAME_GAP = 0.03  # between two attempts that disagree with the clock equally
# Where the times of the original vary by less (interquartile range over median), the machine is
# idle, and a gap is due to the profile's own time for each node: STEADY_FACTOR times as much is no
# reason to measure again.
STEADY, STEADY_FACTOR = 0.05, 2.0
MAX_SCALE = 1.25  # factor by which the scale may differ from the ratio of wall time to profile
WARNING = (
    "The times of the nodes and of the whole network ({:.3f} ms) differ by {:.0%}; "
    "measure again when the machine is idle."
)


def time_layers(
    manifest: Mapping[str, Any],
    open_network: Callable[[str], Any],
    profile_network: Callable[[str, float], Sequence[NodeTime]],
    feeds: Feeds,
    settings: TimingSettings | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Any]:
    """Time the variants of a network.

    Where profile and clock disagree, everything is measured again, up to ``settings.attempts``
    times or until two attempts disagree equally, and the medians of all attempts are taken.

    Args:
        manifest: The variants and the conditions, as JSON values.
        open_network: Opens a network of the manifest, by name.
        profile_network: Profiles a network of the manifest, by name, for some seconds.
        feeds: Inputs by name.
        settings: How long and how often networks are timed; ``DEFAULT_SETTINGS`` if left out.
        progress: Called with the fraction that is done; it begins anew with each attempt.

    Returns:
        The latency table as JSON values; ``LatencyTable.from_document`` reads it. It has a warning
        if profile and clock disagree after the last attempt.
    """
    settings, names = settings or stopwatch.DEFAULT_SETTINGS, manifest["networks"]
    base = TimedSession.of(open_network(names[0]), feeds, settings)
    attempts = [_measure(manifest, open_network, profile_network, base, progress)]
    sums_ms, ms, gap = _combined(attempts)
    gaps = [gap]
    max_gap = _max_gap(attempts, settings)
    while gap > max_gap and len(attempts) < settings.attempts and not _repeats(gaps):
        attempts.append(_measure(manifest, open_network, profile_network, base, progress))
        sums_ms, ms, gap = _combined(attempts)
        gaps.append(_combined(attempts[-1:])[2])
        max_gap = _max_gap(attempts, settings)
    float_ms = None
    if manifest.get("float") is not None:
        in_float = TimedSession.of(open_network(manifest["float"]), feeds, settings)
        float_ms = ms * in_float.ratio_to(base)
    layers = []
    for layer, fused, (layer_ms, *options_ms) in zip(
        manifest["layers"], attempts[-1].fused, sums_ms.T.tolist()
    ):
        identity = {key: layer[key] for key in ("name", "output", "kernel", "geometry")}
        options = [{**option, "ms": t} for option, t in zip(layer["options"], options_ms)]
        fused_with = [manifest["layers"][other]["name"] for other in fused]
        layers.append({**identity, "ms": layer_ms, "options": options, "fused_with": fused_with})
    conditions = ("cpu", "onnxruntime", "provider", "threads", "block")
    return {
        "format": FORMAT,
        "version": VERSION,
        **{key: manifest[key] for key in conditions},
        "input_shapes": {name: list(array.shape) for name, array in feeds.items()},
        "ms": ms,
        "float_ms": float_ms,
        "layers": layers,
        "warnings": [WARNING.format(ms, gap)] if gap > max_gap else [],
    }


@dataclass(frozen=True)
class _Attempt:
    """One measurement of all variants.

    Attributes:
        profiles_ms: Milliseconds (variants, layers + 1) of the profiles, by layer.
        base_s: Seconds (variants,) of a call of the original, just before each profile.
        raced: Numbers of the variants that raced against the original; the first is the original.
        ratios: Ratios (raced,) of their times to that of the original.
        original_s: Seconds (rounds,) of a call of the original.
        fused: By layer, the numbers of the layers that run in the same nodes of the original.
    """

    profiles_ms: np.ndarray
    base_s: np.ndarray
    raced: np.ndarray
    ratios: np.ndarray
    original_s: np.ndarray
    fused: list[list[int]]


def _measure(
    manifest: Mapping[str, Any],
    open_network: Callable[[str], Any],
    profile_network: Callable[[str, float], Sequence[NodeTime]],
    base: TimedSession,
    progress: Callable[[float], None],
) -> _Attempt:
    """Profile all variants, and race some of them against the original."""
    settings, names = base.settings, manifest["networks"]
    layers = [
        LayerNodes(*(layer[key] for key in ("ends", "source", "weight", "macs")))
        for layer in manifest["layers"]
    ]
    raced = np.linspace(1, len(names) - 1, min(settings.variants, len(names) - 1), dtype=int)
    steps = len(names) + len(raced)
    base_s, profiles, ratios = [], [], [1.0]
    for number, name in enumerate(names):
        base_s.append(base.seconds())
        profiles.append(profile_network(name, settings.profile_s))
        progress((number + 1) / steps)
    for number in raced:
        variant = TimedSession.of(open_network(names[number]), base.feeds, settings)
        ratios.append(variant.ratio_to(base))
        progress((len(names) + len(ratios) - 1) / steps)
    original_s = [base.seconds() for _ in range(settings.rounds)]
    return _Attempt(
        np.array([attribute(nodes, layers) for nodes in profiles]),
        np.array(base_s),
        np.array([0, *raced]),
        np.array(ratios),
        np.array(original_s),
        fused_layers(profiles[0], layers),
    )


def _max_gap(attempts: Sequence[_Attempt], settings: TimingSettings) -> float:
    """Return the gap from which on profile and clock disagree."""
    times_s = np.concatenate([attempt.base_s for attempt in attempts])
    low, median, high = np.percentile(times_s, [25, 50, 75])
    return settings.max_gap * (STEADY_FACTOR if high - low < STEADY * median else 1.0)


def _repeats(gaps: Sequence[float]) -> bool:
    """Tell whether two attempts disagree with the clock equally: another one would, too."""
    return any(abs(gap - gaps[-1]) < SAME_GAP for gap in gaps[:-1])


def _combined(attempts: Sequence[_Attempt]) -> tuple[np.ndarray, float, float]:
    """Combine attempts by medians.

    The original is timed before each profile, to correct for changes in the machine's speed.

    Returns:
        Milliseconds (variants, layers + 1), milliseconds of the whole original by the clock, and
        the relative gap between the two for the original.
    """
    base_s = np.array([attempt.base_s for attempt in attempts])
    slowness = base_s / np.median(base_s)
    profiles = np.array([attempt.profiles_ms for attempt in attempts])
    sums = np.median(profiles / slowness[..., None], axis=0)
    ms = 1e3 * float(np.median([attempt.original_s for attempt in attempts]))
    ratios = np.median([attempt.ratios for attempt in attempts], axis=0)
    sums *= _scale(sums[attempts[0].raced].sum(1), ms * ratios)
    return sums, ms, abs(1 - float(sums[0].sum()) / ms)


def _scale(profiled: np.ndarray, wall_ms: np.ndarray) -> float:
    """Return the least-squares factor from changes of the profiled time to changes of wall time.

    The factor is clipped to near the ratio of the times themselves, since only noise leads far
    from it.
    """
    x, y = profiled - profiled[0], wall_ms - wall_ms[0]
    ratio = float(np.median(wall_ms / profiled))
    slope = float(x @ y / (x @ x)) if x.any() else ratio
    return float(np.clip(slope, ratio / MAX_SCALE, ratio * MAX_SCALE))
