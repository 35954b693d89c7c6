"""Open and profile networks in onnxruntime; this file also runs without flatconv."""

from __future__ import annotations

import json
import platform
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from converter.runtime.stopwatch import Feeds

DEFAULT_PROVIDER = "CPUExecutionProvider"
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
MIN_CALLS, MAX_CALLS = 4, 60  # calls of the network in a profile
PAUSE_S = 0.02  # seconds before a profile, in which the threads of other sessions stop spinning
KERNEL_TIME = "_kernel_time"  # suffix of the name of the event that times a node
# Flags in /proc/cpuinfo (x86 and ARM) of the instructions that the speed of a network depends on.
VECTORS = {"avx2": "AVX2", "avx_vnni": "AVX-VNNI", "avx512f": "AVX-512", "avx512_vnni": "VNNI"}
VECTORS |= {"avx512_bf16": "BF16", "amx_tile": "AMX", "asimddp": "dot product", "i8mm": "I8MM"}
VECTORS |= {"bf16": "BF16", "sve": "SVE"}


@dataclass(frozen=True)
class NodeTime:
    """The time of one node of a network as the runtime optimized it.

    Attributes:
        operator: Operator type.
        name: Name of the node in the network, without the prefixes and suffixes of the runtime.
        ms: Milliseconds in one call of the network.
    """

    operator: str
    name: str
    ms: float


def open_session(
    model: bytes | str,
    threads: int = 1,
    provider: str = DEFAULT_PROVIDER,
    *,
    weights: str | None = None,
    profile: str | None = None,
    optimized: str | None = None,
) -> Any:
    """Open a network in onnxruntime; denormal numbers are flushed to zero.

    Args:
        model: The content of an ONNX file, or its path.
        threads: Threads of onnxruntime.
        provider: Execution provider.
        weights: Folder of the external weights if ``model`` is content, or None.
        profile: Prefix of the file to write a profile to, or None.
        optimized: File to write the optimized network to, or None.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if optimized is not None:
        options.optimized_model_filepath = optimized
    if weights is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, weights)
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def profile_nodes(
    open_profiled: Callable[[str], Any], feeds: Feeds, seconds: float
) -> tuple[NodeTime, ...]:
    """Profile a network in onnxruntime, node by node, in the order in which they run.

    Args:
        open_profiled: Opens the network, given the prefix of the file to write the profile to.
        feeds: Inputs by name.
        seconds: How long to run it.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_profiled(str(Path(folder) / "profile"))
        time.sleep(PAUSE_S)
        calls, start = 0, time.perf_counter()
        while calls < MIN_CALLS or (calls < MAX_CALLS and time.perf_counter() - start < seconds):
            session.run(None, feeds)
            calls += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL_TIME):
            key = (event["args"].get("op_name", ""), event["name"][: -len(KERNEL_TIME)])
            durations[key].append(event["dur"] / 1e3)
    times = []
    for (operator, name), ms in durations.items():
        settled = float(np.median(ms[len(ms) // 4 :]))  # caches are cold in the first calls
        name = re.sub(r"^fused |_nchwc$|_token_\d+$", "", name)  # what onnxruntime adds to names
        times.append(NodeTime(operator, name, len(ms) / calls * settled))
    return tuple(times)


def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor and its vector instructions, since the model name does not imply them.

    Args:
        info: File in which Linux describes the processors; elsewhere ``platform`` is asked.
    """
    entries: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    flags = entries.get("flags", entries.get("Features", "")).split()
    vectors = ", ".join(name for flag, name in VECTORS.items() if flag in flags)
    name = entries.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({vectors})" if vectors else name
