"""onnxruntime: open, run, and what machine it runs on."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from converter.errors import ConverterError, first_line

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Flags of Linux, of x86 and of ARM, that the speed of a network hangs on.
VECTORS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_tile": "AMX",
    "asimddp": "dot product",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}


def check_provider(provider: str) -> None:
    """Check that onnxruntime has an execution provider.

    Raises:
        ConverterError: When it has not; the sentence lists those it has.
    """
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ConverterError(
            f"Provider {provider!r} is not available here; use one of {', '.join(available)}."
        )


def open_file(
    source: bytes | Path,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    *,
    profile: Path | None = None,
    optimized: Path | None = None,
    weights: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open a network; denormals are flushed to zero.

    Args:
        source: The content of an ONNX file, or its path.
        threads: Of onnxruntime.
        provider: Its execution provider.
        profile: Beginning of the name of the file to profile into, or None.
        optimized: Where to write the network as the runtime optimized it, or None.
        weights: Folder of the files that hold weights, for a ``source`` that is content; or None.

    Raises:
        ConverterError: When the provider is not there or onnxruntime cannot run the network.
    """
    check_provider(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if weights is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(weights))
    content = str(source) if isinstance(source, Path) else source
    try:
        return onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # onnxruntime raises its own unexported classes
        raise ConverterError(f"onnxruntime cannot open the network: {first_line(error)}") from None


@dataclass(frozen=True)
class Argument:
    """What a session says of an input or output; its own object would keep the session alive."""

    name: str
    shape: tuple[int | str | None, ...]
    type: str

    @classmethod
    def of(cls, value: onnxruntime.NodeArg) -> Argument:
        """Copy what is said."""
        return cls(value.name, tuple(value.shape), value.type)


class ExclusiveSession:
    """A session that is one of several too large to be open together: using it closes the other.

    Attributes:
        open_now: The session that is open, by the identity of its owner; shared by all of them.
    """

    def __init__(
        self,
        opened: Callable[[], onnxruntime.InferenceSession],
        open_now: dict[int, Any],
    ) -> None:
        """Take what opens the session, and where the one that is open is kept."""
        self._opened, self.open_now = opened, open_now
        session = self._session()
        self._inputs = [Argument.of(value) for value in session.get_inputs()]
        self._outputs = [Argument.of(value) for value in session.get_outputs()]

    def _session(self) -> onnxruntime.InferenceSession:
        if id(self) not in self.open_now:
            self.open_now.clear()
            self.open_now[id(self)] = self._opened()
        return self.open_now[id(self)]

    def get_inputs(self) -> list[Argument]:
        """List the inputs, as a session does."""
        return self._inputs

    def get_outputs(self) -> list[Argument]:
        """List the outputs, as a session does."""
        return self._outputs

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the network, as a session does."""
        found: list[np.ndarray] = self._session().run(names, feeds)
        return found


Session: TypeAlias = onnxruntime.InferenceSession | ExclusiveSession


def run(session: Session, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a session and return its outputs by name.

    Raises:
        ConverterError: When onnxruntime refuses the inputs or fails.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feeds))))
    except Exception as error:  # onnxruntime raises its own unexported classes
        raise ConverterError(
            f"onnxruntime cannot run the network on inputs of shape "
            f"{ {name: array.shape for name, array in feeds.items()} }: {first_line(error)}"
        ) from None


def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor, and its vector instructions: processors of one name differ in them.

    Args:
        info: What Linux says of the processors; where it is missing, Python is asked.
    """
    known: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        known.setdefault(key.strip(), value.strip())
    flags = known.get("flags", known.get("Features", "")).split()
    vectors = ", ".join(name for flag, name in VECTORS.items() if flag in flags)
    name = known.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({vectors})" if vectors else name
