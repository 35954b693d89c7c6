"""Print where the time of solving goes, from samples of the stack 50 times a second.

Run ``python -m scripts.tools.profile_refit --checkpoints FOLDER`` in the root of a checkout.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from scripts.benchmarks.models import cifar_resnet
from scripts.benchmarks.run import convert
from scripts.benchmarks.suite import Settings

INTERVAL_S = 0.02
WHOLE = "refit_layers"
# Function -> what it does; the innermost one on the stack counts.
PARTS = {
    "minimise": "steps of Levenberg and Marquardt",
    "metric_from_patches": "second moments of the patches",
    "run_segment": "running the network up to each layer",
    "cut_patches": "cutting patches",
    "best_kernel": "least squares for the kernel",
    "_solve_one_sided": "targets in front of ReLU and pooling",
    WHOLE: "the rest",
}


def sample(thread: int, ended: threading.Event, found: Counter[str]) -> None:
    """Count the samples of a thread in each part, until ``ended`` is set."""
    while not ended.wait(INTERVAL_S):
        frame, names = sys._current_frames().get(thread), []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        if WHOLE in names:
            found[PARTS[next(name for name in names if name in PARTS)]] += 1


def main() -> None:
    """Convert ResNet-20, and print the seconds of each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, required=True)
    settings = replace(Settings(), checkpoints=parser.parse_args().checkpoints)
    network = cifar_resnet(20, settings)
    found: Counter[str] = Counter()
    ended = threading.Event()
    arguments = (threading.get_ident(), ended, found)
    sampler = threading.Thread(target=sample, args=arguments, daemon=True)
    sampler.start()
    start = time.perf_counter()
    convert(network.model, **network.on(settings), max_drop=0.005, cache=False)
    ended.set()
    sampler.join()
    print(f"whole conversion {time.perf_counter() - start:.1f} s; of {sum(found.values())} samples")
    for part, count in found.most_common():
        print(f"{count / sum(found.values()):6.1%}  {part}")


if __name__ == "__main__":
    main()
